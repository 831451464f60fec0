"""A picture of an evaluation set, opened as warily as a stranger's: by the model that is scored, and by the page that shows it."""

import errno
import io
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from veclip_core.captioning.describe import MAX_BYTES, MAX_PIXELS
from veclip_core.download.pictures import FORMATS
from veclip_core.samples import UNDECODABLE

if TYPE_CHECKING:
    from PIL.Image import Image

    from veclip_core.evaluation.sets import PicturePlace

logger = logging.getLogger(__name__)

MISSING, CUT_SHORT, TOO_LARGE = "missing", "cut_short", "too_large"
MAX_ASPECT = 100
"""Of a picture's sides: a resized shorter side would make gigabytes of the longer one."""
OF_THE_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Errors that say nothing of a picture."""


class Unreadable(Exception):
    """Why a picture can't be scored: a reason fit for a row's `error`."""


def is_of_the_machine(error: Exception) -> bool:
    """Whether it would be raised for any picture: no room on the disk or in memory."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in OF_THE_MACHINE)


def picture_at(place: "PicturePlace") -> "Image":
    """The picture as RGB on white, as it lies in its file: the protocols of CLIP's papers turn none by its EXIF.

    Raises:
        Unreadable: with the reason.
    """
    from PIL import Image

    from veclip_core.sources.pictures import on_white

    wanted = MAX_BYTES + 1 if place.length is None else place.length
    if wanted > MAX_BYTES + 1:
        raise Unreadable(TOO_LARGE)
    try:
        data = replace(place, length=wanted).read()
    except OSError as error:
        if is_of_the_machine(error):
            raise
        raise Unreadable(MISSING) from error
    if len(data) > MAX_BYTES:
        raise Unreadable(TOO_LARGE)
    if place.length is not None and len(data) < place.length:
        raise Unreadable(CUT_SHORT)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            long, short = max(picture.size), min(picture.size)
            if picture.width * picture.height > MAX_PIXELS or long > MAX_ASPECT * short:
                raise Unreadable(TOO_LARGE)
            return on_white(picture)
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(TOO_LARGE) from error
    except Exception as error:  # what Pillow's parsers raise has no end
        if is_of_the_machine(error):
            raise
        logger.debug("%s can't be decoded", place.address, exc_info=True)
        raise Unreadable(UNDECODABLE) from error
