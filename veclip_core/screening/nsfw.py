"""The check `nsfw`: how surely an image classifier takes a picture for one that is not safe for work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from veclip_core.captioning.engines.weights import checked_config
from veclip_core.config import Config
from veclip_core.screening.checks import Looks, ScreeningError

if TYPE_CHECKING:
    from PIL.Image import Image

UNSAFE = ("nsfw", "unsafe", "porn", "porno", "hentai", "sexy", "explicit", "nude", "nudity")
"""Names of labels, in small letters, that published classifiers give such pictures."""
BATCH = 32


class NsfwConfig(Config):
    """What decides a score."""

    kind: Literal["nsfw"] = "nsfw"
    model: str
    """Hub id, or the name of a folder of transformers' `AutoModelForImageClassification`."""
    revision: str | None
    """Commit on the hub, or a digest of the folder's files."""
    folder: str | None = Field(None, exclude=True)
    """Where the weights lie, for a model that is a folder."""
    unsafe: tuple[str, ...] = UNSAFE
    """The score is the sum of the probabilities of these labels."""


@dataclass(frozen=True)
class NsfwCheck:
    """`nsfw` is the score, from 0 to 1."""

    name: ClassVar[str] = "nsfw"
    columns: ClassVar[pa.Schema] = pa.schema([("nsfw", pa.float32())])
    needs_network: ClassVar[bool] = True
    config: NsfwConfig
    threads: int

    def open(self) -> Looks:
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        path, revision = self.config.folder or self.config.model, None if self.config.folder else self.config.revision
        unsafe = unsafe_labels(path, revision, self.config.unsafe)
        torch.set_num_threads(self.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            # float32 whatever the file holds, so that a GPU's scores differ from a CPU's in the last digits only.
            model: Any = AutoModelForImageClassification.from_pretrained(path, revision=revision, dtype=torch.float32)
            processor: Any = AutoImageProcessor.from_pretrained(path, revision=revision)
        except (
            Exception
        ) as error:  # a damaged file fails in safetensors, in torch or in a parser, each with errors of its own
            raise ScreeningError(
                f"VECLIP_NSFW_MODEL={path}: the weights or the image processor can't be read ({error}). Fetch the model again,"
                " or name another"
            ) from error
        model = model.eval().to(device)

        def scores(pictures: "Sequence[Image]") -> Mapping[str, Sequence[Any]]:
            found: list[float] = []
            for at in range(0, len(pictures), BATCH):
                pixels = processor(images=list(pictures[at : at + BATCH]), return_tensors="pt").to(device)
                with torch.inference_mode():
                    probability_BL = model(**pixels).logits.softmax(dim=-1)
                found += probability_BL[:, unsafe].sum(dim=-1).tolist()
            return {"nsfw": found}

        return scores


def unsafe_labels(path: str, revision: str | None, names: Sequence[str]) -> list[int]:
    """The numbers of a model's unsafe labels.

    Raises:
        WeightsMissing: the model is not on this machine and can't be fetched.
        ScreeningError: the model has none of them, or nothing else.
    """
    labels = {int(number): str(label) for number, label in checked_config(path, revision).id2label.items()}
    unsafe = [number for number, label in labels.items() if label.lower() in names]
    if not unsafe or len(unsafe) == len(labels):
        raise ScreeningError(
            f"VECLIP_NSFW_MODEL={path}: its labels are {', '.join(labels.values())}, and which of them is unsafe can't be told."
            f" Name that one `nsfw` in `id2label` of a copy's config.json, or take a model with one of {', '.join(names)}"
        )
    return unsafe
