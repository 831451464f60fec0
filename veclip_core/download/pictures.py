"""Bytes from a stranger to a small JPEG: what is no whole picture is refused, what is transparent is laid on white.

This takes the place of img2dataset's `Resizer` (same call, same answer) because that one decodes truncated files without a word,
turns 16-bit pictures white, ignores the EXIF orientation, and works on transparency in float64 at full size: 2 GB for a
picture of 16 megapixels.
"""

import io
import struct
import warnings
import zlib
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What Pillow may open. Never all it knows: EPS alone would start Ghostscript on a stranger's file."""

BROKEN = (
    OSError, ValueError, ArithmeticError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's parsers raise on broken files."""

ResizeMode = Literal["keep_ratio_largest", "keep_ratio", "center_crop", "border", "no"]
Answer = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]
"""img2dataset's: jpg, width, height, original width, original height, reason of the error."""


class BadPicture(Exception):
    """Not a picture we take; `reason` is one of the vocabulary."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PictureResizer:
    """Called with a stream as img2dataset calls its own resizer. OpenCV uses one thread: many pictures are under way."""

    def __init__(self, image_size: int, resize_mode: ResizeMode, quality: int, min_size: int, max_pixels: int) -> None:
        import cv2
        from PIL import Image

        cv2.setNumThreads(1)
        # Pillow warns above its limit, raises above twice that, and again when a frame outgrows what the header said.
        Image.MAX_IMAGE_PIXELS = max_pixels
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        self._size, self._mode, self._quality = image_size, resize_mode, quality
        self._min_size, self._max_pixels = min_size, max_pixels

    def __call__(self, stream: IO[bytes], blurring_boxes: object = None) -> Answer:
        try:
            return self._shrink(stream.read())
        except BadPicture as bad:
            return None, None, None, None, None, bad.reason

    def _shrink(self, data: bytes) -> Answer:
        import cv2

        kind = self._check(data)
        pixels = _decode(data, kind)
        height, width = pixels.shape[:2]
        small = self._fit(_on_white(pixels) if pixels.ndim == 3 and pixels.shape[2] == 4 else pixels)
        written, jpg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        if not written:
            raise BadPicture("not_an_image")
        return jpg.tobytes(), small.shape[1], small.shape[0], width, height, None

    def _check(self, data: bytes) -> str:
        """The format, after a look at the header and at the end: nothing is decoded before its size is known."""
        from PIL import Image, UnidentifiedImageError

        try:
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise BadPicture("too_many_pixels") from error
        except UnidentifiedImageError as error:
            raise BadPicture("not_an_image") from error
        except BROKEN as error:
            raise BadPicture("truncated" if _webp_is_cut(data) else "damaged") from error
        width, height = picture.size
        if width * height > self._max_pixels:
            raise BadPicture("too_many_pixels")
        if min(width, height) < self._min_size:
            raise BadPicture("too_small")
        kind = (
            "JPEG" if picture.format == "MPO" else str(picture.format)
        )  # MPO: several JPEGs, of which the first is taken
        _require_end(data, kind)
        return kind

    def _fit(self, pixels: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        import cv2

        height, width = pixels.shape[:2]
        side = min(height, width) if self._mode in ("keep_ratio", "center_crop") else max(height, width)
        if self._mode != "no" and side > self._size:
            scale = self._size / side
            size = max(1, round(width * scale)), max(1, round(height * scale))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            height, width = pixels.shape[:2]
        if self._mode == "center_crop":
            top, left = max(0, (height - self._size) // 2), max(0, (width - self._size) // 2)
            pixels = pixels[top : top + self._size, left : left + self._size]
        if self._mode == "border":
            down, across = self._size - height, self._size - width
            edges = (down // 2, down - down // 2, across // 2, across - across // 2)
            pixels = cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        return pixels


def _decode(data: bytes, kind: str) -> "np.ndarray[Any, Any]":
    """8-bit pixels, H x W x 3 (BGR) or 4 (BGRA). JPEG, PNG and WebP by OpenCV, which is faster; the rest by Pillow."""
    import cv2
    import numpy as np

    if kind not in ("JPEG", "PNG", "WEBP"):
        return _decode_by_pillow(data)
    flags = cv2.IMREAD_COLOR if kind == "JPEG" else cv2.IMREAD_UNCHANGED  # COLOR turns a JPEG upright by its EXIF
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise BadPicture("damaged") from error
    if pixels is None:
        return _decode_by_pillow(data)
    if pixels.dtype == np.uint16:
        pixels = (pixels // 256).astype(np.uint8)
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else pixels


def _decode_by_pillow(data: bytes) -> "np.ndarray[Any, Any]":
    import numpy as np
    from PIL import Image, ImageOps

    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=FORMATS))
        rgba = np.asarray(picture.convert("RGBA"))
    except BROKEN as error:
        raise BadPicture("truncated" if "truncated" in str(error) else "damaged") from error
    return np.ascontiguousarray(rgba[..., [2, 1, 0, 3]])


def _on_white(pixels: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """BGRA over white as BGR, in bands of rows: the wide integers of a whole large picture would not fit in memory."""
    import numpy as np

    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    band = max(1, (1 << 18) // pixels.shape[1])
    for top in range(0, pixels.shape[0], band):
        rows = pixels[top : top + band]
        if rows[..., 3].min() == 255:
            out[top : top + band] = rows[..., :3]
            continue
        alpha = rows[..., 3:].astype(np.uint16)
        over = rows[..., :3] * alpha + (255 - alpha) * np.uint16(255) + np.uint16(127)  # at most 65,152
        out[top : top + band] = over // 255
    return out


def _require_end(data: bytes, kind: str) -> None:
    """Refuse a file that was cut off: decoders fill what is missing with grey and say nothing."""
    if kind == "JPEG":
        if not _jpeg_ends(data):
            _require_decodable(data)  # a few encoders forget the end marker: only a decoder can tell
    elif kind == "PNG":
        _walk_png(data)
    elif kind == "WEBP" and _webp_is_cut(data):
        raise BadPicture("truncated")


def _webp_is_cut(data: bytes) -> bool:
    return data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)


def _jpeg_ends(data: bytes) -> bool:
    """True when an end marker follows the picture's own data; a thumbnail's, in a segment before it, does not count."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # start of scan: entropy-coded data never contains FF D9
            return data.rfind(b"\xff\xd9", at) > 0
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _require_decodable(data: bytes) -> None:
    from PIL import Image

    try:
        Image.open(io.BytesIO(data), formats=FORMATS).load()
    except BROKEN as error:
        raise BadPicture("truncated" if "truncated" in str(error) else "damaged") from error


def _walk_png(data: bytes) -> None:
    """Every chunk whole up to IEND, and the picture's own chunks with the right checksum."""
    at = 8
    view = memoryview(data)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        kind = bytes(view[at + 4 : at + 8])
        if end > len(data):
            break
        if kind == b"IEND":
            return
        if kind == b"IDAT" and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise BadPicture("damaged")
        at = end
    raise BadPicture("truncated")
