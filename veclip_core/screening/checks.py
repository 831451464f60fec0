"""What is looked at in each picture: a check adds columns of its own to the table of the stage `look`, and decides nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import pyarrow as pa

from veclip_core.config import Config
from veclip_core.mendable import Mendable

if TYPE_CHECKING:
    from PIL.Image import Image

CHOICES = ("duplicates", "evaluation", "nsfw", "faces", "known")
"""What VECLIP_SCREEN may name."""

Looks = Callable[["Sequence[Image]"], Mapping[str, Sequence[Any]]]
"""RGB pictures, upright, to one value a picture for each of a check's columns."""


class ScreeningError(Mendable):
    """A model or a list that screening needs can't be used; the message says how to mend that."""


class PictureCheck(Protocol):
    """One check. Picklable: it is opened in the worker process."""

    name: ClassVar[str]
    columns: ClassVar[pa.Schema]
    needs_network: ClassVar[bool]
    """Whether it computes on a neural network: such workers take all threads, and as many stand as there are GPUs for."""

    @property
    def config(self) -> Config: ...

    def open(self) -> Looks:
        """Load what every picture needs. Raises ScreeningError where that can't be had."""
        ...
