"""The stage `describe`: one sentence on what is seen in each good picture, the VeC. The AltText is never shown to the describer."""

import io
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar, Protocol

import pyarrow as pa
from pydantic import Field, SerializeAsAny

from veclip_core.captioning.engines.base import EngineConfig, EngineRuntime, Message, Request, Sampling, opened
from veclip_core.captioning.prompts import DescribePrompt, describe_prompt
from veclip_core.captioning.styles import Style
from veclip_core.config import Config
from veclip_core.download.pictures import BROKEN, FORMATS
from veclip_core.samples import DESCRIBE_SCHEMA
from veclip_core.screening.verdicts import admitted
from veclip_core.settings import CPU_COUNT
from veclip_core.stage import RowCounts, ShardTask

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
"""Refused before decoding: pictures come from our own downloader, so a larger one is no picture of ours."""
MAX_BYTES = 256 * 1024**2
"""Of a picture's file; a tar of strangers may claim any size."""
DECODERS = min(4, CPU_COUNT)
"""Threads that decode pictures while the engine computes: decoding lets go of Python's lock."""
AHEAD = 64
"""Decoded pictures that may wait for the engine: some 200 MB at the largest side of a describer."""


class Describer(Protocol):
    """A loaded captioner."""

    model_id: str
    prompt_id: str
    max_side_px: int | None
    """Larger pictures are scaled down to this before it sees them; None for none."""

    def describe(self, images: "Iterable[Image]") -> Sequence[Any]:
        """One description a picture, each with `text` and `detail` (a mapping fit for JSON). Takes pictures as it needs them."""
        ...


@dataclass(frozen=True)
class VlmDescription:
    """What a vision-language model said."""

    text: str
    detail: Mapping[str, Any]


class VlmConfig(Config):
    """A vision-language model as describer."""

    engine: EngineConfig
    """The model."""
    prompt: DescribePrompt = describe_prompt("describe-reconstructed-v1")
    """What it is asked."""
    sampling: Sampling = Sampling(max_tokens=64)
    """How the answer is drawn."""
    max_side_px: int = Field(1024, ge=32)
    """A larger picture is scaled down to this before the model's own preprocessing, which is slow on large ones."""


def vlm_config_for(model: str, style: Style | None = None) -> VlmConfig:
    """The configuration for a vision-language model's path or hub id; with a style that describes in its own way, that way."""
    engine = EngineConfig(model=model, max_model_len=4096)
    if style is None or style.describe is None:
        return VlmConfig(engine=engine)
    sampling = Sampling(max_tokens=style.describe_tokens, stop=style.stop)
    return VlmConfig(engine=engine, prompt=describe_prompt(style.describe), sampling=sampling)


class DescribeConfig(Config):
    """What decides the descriptions."""

    describer: SerializeAsAny[Config]
    """The captioner's own configuration."""


class VlmDescriber:
    """Descriptions by a vision-language model, on either engine."""

    def __init__(self, engine: Any, config: VlmConfig):
        self._engine, self._config = engine, config
        self.model_id, self.prompt_id = engine.model_id, config.prompt.id
        self.max_side_px: int | None = config.max_side_px

    def describe(self, images: "Iterable[Image]") -> list[VlmDescription]:
        ask = (Message("user", self._config.prompt.text),)
        answers = self._engine.generate((Request(ask, image=image) for image in images), self._config.sampling)
        return [
            VlmDescription(
                " ".join(made.text.split()), {"finish_reason": made.finish_reason, "tokens": made.completion_tokens}
            )
            for made, *_ in answers
        ]


@contextmanager
def open_vlm(config: VlmConfig, runtime: EngineRuntime) -> Iterator[VlmDescriber]:
    """A vision-language describer for the length of a with block."""
    # Several answers on one picture do share their beginning.
    runtime = runtime.model_copy(update={"share_prefixes": config.sampling.candidates > 1})
    with opened(config.engine, runtime) as engine:
        yield VlmDescriber(engine, config)


@dataclass(frozen=True)
class DescribeOperation:
    """Input: `download`, its table and its tar; `screen` where pictures are screened."""

    name: ClassVar[str] = "describe"
    config: DescribeConfig
    opener: Callable[[], AbstractContextManager[Describer]]
    """Loads the describer in the worker; picklable, such as `functools.partial(open_vlm, config, runtime)`."""

    @contextmanager
    def open(self) -> Iterator[Callable[[ShardTask], RowCounts]]:
        with self.opener() as describer:
            yield lambda task: describe_shard(task, describer)


def describe_shard(task: ShardTask, describer: Describer) -> RowCounts:
    """Write one row for each good picture: described, or an error with its reason. One that screening refuses is not looked at."""
    pictures, refused = admitted(task, ["offset", "bytes"])
    places = {row["url_id"]: (row["offset"], row["bytes"]) for row in pictures}
    rows: dict[str, dict[str, Any]] = {}
    with task.inputs["download"].open(task.key, "tar") as tar:
        for row in _described(pictures_in(tar, places), describer):
            rows[row["url_id"]] = row
    for missing in places.keys() - rows.keys():
        rows[missing] = _error(missing, "missing_in_tar", describer)
    rows |= {url_id: _error(url_id, reason, describer) for url_id, reason in refused.items()}
    ordered = [rows[url_id] for url_id in sorted(rows)]
    task.write(pa.Table.from_pylist(ordered, schema=DESCRIBE_SCHEMA))
    errors = Counter(row["error"] for row in ordered if row["status"] == "error")
    tokens = sum(json.loads(row["detail"]).get("tokens", 0) for row in ordered)
    return RowCounts(
        rows_in=len(ordered),
        rows_ok=len(ordered) - sum(errors.values()),
        errors=dict(errors),
        extra={"completion_tokens": tokens} if tokens else {},
    )


def pictures_in(tar: IO[bytes], places: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, bytes]]:
    """(url_id, picture) in the tar's order, so that a remote tar is one stream. What lies beyond its end, or is too large, is
    left out."""
    for url_id, (offset, size) in sorted(places.items(), key=lambda place: place[1]):
        if size > MAX_BYTES:
            continue
        tar.seek(offset)
        data = tar.read(size)
        if len(data) == size:
            yield url_id, data


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> "Image | None":
    """The picture in RGB, upright and on white, or None when it can't be decoded in full or has too many pixels."""
    from PIL import Image, ImageOps

    from veclip_core.sources.pictures import on_white

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                return None
            return on_white(ImageOps.exif_transpose(image))
    except (*BROKEN, Image.DecompressionBombError) as error:
        log.debug("undecodable picture: %s", error)
        return None


def decoded_ahead(
    pictures: Iterable[tuple[str, bytes]], max_side_px: int | None
) -> "Iterator[tuple[str, Image | None]]":
    """Each picture decoded and scaled down, in order; the next ones are worked on in threads meanwhile, `AHEAD` at most."""

    def prepare(data: bytes) -> "Image | None":
        image = decode(data)
        if image is not None and max_side_px is not None:
            image.thumbnail((max_side_px, max_side_px))
        return image

    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[str, Future[Image | None]]] = deque()
        for name, data in pictures:
            waiting.append((name, pool.submit(prepare, data)))
            if len(waiting) >= AHEAD:
                first, image = waiting.popleft()
                yield first, image.result()
        for name, image in waiting:
            yield name, image.result()


def _described(pictures: Iterable[tuple[str, bytes]], describer: Describer) -> Iterator[dict[str, Any]]:
    good: list[str] = []
    bad: list[str] = []

    def images() -> "Iterator[Image]":
        for url_id, image in decoded_ahead(pictures, describer.max_side_px):
            if image is None:
                bad.append(url_id)
            else:
                good.append(url_id)
                yield image

    descriptions = describer.describe(images())
    for url_id in bad:
        yield _error(url_id, "undecodable", describer)
    for url_id, description in zip(good, descriptions, strict=True):
        if not description.text.strip():
            said = description.detail.get("finish_reason", "stop")
            yield _error(url_id, "empty_description" if said == "stop" else said, describer)
            continue
        yield {
            "url_id": url_id,
            "vec": description.text,
            "status": "ok",
            "error": None,
            "model": describer.model_id,
            "prompt_id": describer.prompt_id,
            "detail": json.dumps(description.detail, sort_keys=True, ensure_ascii=False),
        }


def _error(url_id: str, reason: str, describer: Describer) -> dict[str, Any]:
    return {
        "url_id": url_id,
        "vec": "",
        "status": "error",
        "error": reason,
        "model": describer.model_id,
        "prompt_id": describer.prompt_id,
        "detail": "{}",
    }
