"""Apple's released checkpoints: from a zip, here or anywhere, to a folder that is known to hold one.

A zip holds one folder with `config.json` and `model.safetensors`, as transformers' `CLIPModel` has them, and neither tokenizer nor
preprocessing. It is a stranger's file: nothing is written outside of its folder, nothing larger than it says, and nothing is run.
"""

import json
import logging
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from veclip_core import storage
from veclip_core.captioning.engines.weights import WeightsMissing, without_foreign_code
from veclip_core.config import digest_of
from veclip_core.sources.released_files import Wanted, fetch_all

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")
CLIP_VOCABULARY = 49_408

GIB = 1 << 30
MAX_ARCHIVE_BYTES, MAX_BYTES = 16 * GIB, 16 * GIB
"""The largest released model, H/14 in float32, is about 4 GB."""
MAX_MEMBERS = 100
MAX_CONFIG_BYTES = 1 << 20
MAX_INFLATION = 50
"""Bytes out of one byte: weights hardly shrink."""
MAX_LAYERS = 512
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Released:
    """What the release says of a checkpoint."""

    model: str
    """open_clip's name of the same architecture."""
    image_size: int = 224


RELEASED: dict[str, Released] = {
    "veclip_b16_3m": Released("ViT-B-16"),
    "veclip_b16_12m": Released("ViT-B-16"),
    "veclip_b16_100m": Released("ViT-B-16"),
    "veclip_b16_200m": Released("ViT-B-16"),
    "vecapdfn_clip_b16": Released("ViT-B-16"),
    "vecapdfn_clip_l14": Released("ViT-L-14"),
    "vecapdfn_clip_h14_336": Released("ViT-H-14", 336),
}


class BadCheckpoint(WeightsMissing):
    """A file that is no released checkpoint, or not all of one."""


def is_archive(source: str) -> bool:
    """Whether a model's name is the path or address of a zip."""
    path = urlsplit(source).path if "://" in source else source
    return path.lower().endswith(".zip")


def name_of(source: str) -> str:
    return PurePosixPath(urlsplit(source).path if "://" in source else source).stem


def is_released(folder: Path) -> bool:
    """Whether a folder is an unpacked release: a `CLIPModel` without preprocessing, and not of CLIP's own vocabulary."""
    if not (folder / CONFIG).is_file() or any((folder / name).exists() for name in PREPROCESSING_FILES):
        return False
    config = _config_json(folder)
    text = config.get("text_config") or {}
    return config.get("model_type") == "clip" and text.get("vocab_size", CLIP_VOCABULARY) != CLIP_VOCABULARY


def unpacked(source: str, cache: Path, allowed_hosts: frozenset[str] = frozenset()) -> Path:
    """The folder of a zip's checkpoint, checked; fetched and unpacked on first use, whole or not at all.

    Args:
        source: a path, or an http(s) or object store address.
        allowed_hosts: `host:port` of http servers inside private networks that may be asked.

    Raises:
        BadCheckpoint: when the zip or what is in it can't be used.
        FetchError: when the address can't be fetched.
    """
    name = name_of(source)
    if not storage.is_local(source):
        version: list[Any] = [source]
    else:
        path = storage.local_path(source)
        if not path.is_file():
            raise BadCheckpoint(f"there is no {source}: give the path or address of a released zip")
        version = [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{name}-{digest_of(version)[:16]}"
    with FileLock(cache / f"{target.name}.lock"):  # a second process waits, and finds it there
        if target.is_dir():
            return target
        storage.remove_dead_temporaries(str(cache))
        # A folder of its own for each address: another's zip may have the same name.
        archive = _local_copy(source, cache / "fetched" / target.name, cache / "partial" / target.name, allowed_hosts)
        unfinished = storage.beside(target)
        try:
            with storage.fatal_errors_named(str(cache)):
                unfinished.mkdir()
                _unpack(archive, unfinished)
            checked(unfinished, source)
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not storage.is_local(source):
                archive.unlink(missing_ok=True)  # unpacked, or of no use: the next try fetches it again
    log.info("%s is unpacked in %s", storage.shown(source), target)
    return target


def _local_copy(source: str, fetched_to: Path, partial: Path, allowed_hosts: frozenset[str]) -> Path:
    if storage.is_local(source):
        return storage.local_path(source)

    shown = storage.shown(source)

    def bounded(name: str, done: int, whole: int | None) -> None:
        if max(done, whole or 0) > MAX_ARCHIVE_BYTES:
            raise BadCheckpoint(f"{shown} has more than {MAX_ARCHIVE_BYTES // GIB} GiB: that is no released checkpoint")

    wanted = Wanted(source)
    if not wanted.name or wanted.name.startswith("."):
        raise BadCheckpoint(f"{shown} names no file: give the address of a released zip")
    try:
        (fetched,) = fetch_all([wanted], str(fetched_to), partial, bounded, allowed_hosts)
    except (ValueError, ImportError) as error:  # fsspec's, of a protocol that it doesn't know
        raise BadCheckpoint(f"{shown} can't be fetched ({error}): use http, https or s3") from error
    return storage.local_path(fetched.uri)


def _unpack(archive: Path, folder: Path) -> None:
    """The checkpoint's own files of a zip, flat in `folder`; of the rest nothing is written."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member in _wanted_members(zipped, archive):
                _extract(zipped, member, folder / PurePosixPath(member.filename).name)
    # NotImplementedError is zipfile's word for a compression that it doesn't know.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, zlib.error) as error:
        raise BadCheckpoint(f"{archive.name} is damaged or cut short ({error}): fetch it again") from error


def _wanted_members(zipped: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    members = zipped.infolist()
    if len(members) > MAX_MEMBERS:
        raise BadCheckpoint(f"{archive.name} holds {len(members):,} files: that is no released checkpoint")
    for member in members:
        _require_harmless(member, archive)
    declared = sum(member.file_size for member in members)
    if declared > min(MAX_BYTES, MAX_INFLATION * archive.stat().st_size + MAX_CONFIG_BYTES):
        raise BadCheckpoint(f"{archive.name} would unpack to {declared:,} bytes: that is no released checkpoint")
    files = [member for member in members if not member.is_dir() and not member.filename.startswith("__MACOSX/")]
    configs = [member for member in files if PurePosixPath(member.filename).name == CONFIG]
    if len(configs) != 1:
        raise BadCheckpoint(f"{archive.name} must hold one {CONFIG}, and holds {len(configs)}: is it a released zip?")
    place = PurePosixPath(configs[0].filename).parent
    wanted = {str(place / name): name for name in (CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG)}
    found = [member for member in files if member.filename in wanted]
    if len({member.filename for member in found}) < len(found):
        raise BadCheckpoint(f"{archive.name} holds a file twice: that is no released checkpoint")
    if not any(member.filename == str(place / WEIGHTS) for member in found):
        raise BadCheckpoint(_no_weights(archive.name, [PurePosixPath(member.filename).name for member in files]))
    return found


def _require_harmless(member: zipfile.ZipInfo, archive: Path) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    name = member.filename
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name or "\0" in name:
        raise BadCheckpoint(
            f"{archive.name} holds the path {name!r}, which leads out of its folder: it is not unpacked"
        )
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadCheckpoint(f"{archive.name} holds {name!r}, which is a link or device: it is not unpacked")
    if member.flag_bits & 1:
        raise BadCheckpoint(f"{archive.name} is encrypted: unpack it yourself, and give the folder")


def _extract(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """No further than the size that it declares; `zipfile` checks the sum at the end."""
    left = member.file_size
    with zipped.open(member) as source, open(path, "wb") as file:
        while block := source.read(min(COPY_BYTES, left + 1)):
            left -= len(block)
            if left < 0:
                raise BadCheckpoint(f"{member.filename} is larger than the zip says: it is not unpacked")
            file.write(block)
    if left:
        raise zipfile.BadZipFile(f"{member.filename} lacks {left:,} bytes")


def _no_weights(where: str, names: list[str]) -> str:
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    if not pickles:
        return f"{where} has no {WEIGHTS}: is it all of the release?"
    return (
        f"{where} has its weights as a pickle ({pickles[0]}), which may run code. Convert it where you trust it: load it by"
        f" `torch.load(..., weights_only=True)` and write {WEIGHTS} with `safetensors.torch.save_file`"
    )


def _config_json(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("too large")
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} can't be read ({error})") from error
    return value


def checked(folder: Path, source: str = "") -> Any:
    """The `CLIPConfig` of an unpacked checkpoint whose weights are all there, in the shapes it says. No weight is read.

    Raises:
        BadCheckpoint: naming what is wrong.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import CLIPConfig

    from veclip_core.training.transformers_clip import shapes_of

    where = storage.shown(source) or str(folder)
    value = _config_json(folder)
    if value.get("model_type") != "clip":
        raise BadCheckpoint(
            f"{where} is another architecture: its config.json is of {value.get('model_type')!r}, not 'clip'"
        )
    if not (folder / WEIGHTS).is_file():
        raise BadCheckpoint(_no_weights(where, [path.name for path in folder.iterdir()]))
    try:
        layers = [int((value.get(part) or {}).get("num_hidden_layers", 0)) for part in ("text_config", "vision_config")]
        if max(layers) > MAX_LAYERS:
            raise ValueError(f"{max(layers):,} layers")
        if not isinstance((value.get("vision_config") or {}).get("image_size", 224), int):
            raise ValueError("pictures that are not square")
        config = without_foreign_code(CLIPConfig.from_dict(value), where)
        expected = shapes_of(config)
    except WeightsMissing as error:
        raise BadCheckpoint(str(error)) from error
    except Exception as error:  # what a wrong value raises is transformers' and torch's own
        raise BadCheckpoint(f"{where}: its config.json describes no model ({type(error).__name__}: {error})") from error
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(f"{where}: {WEIGHTS} is damaged or cut short ({error}): fetch it again") from error
    # Older versions of transformers wrote the positions' numbers too.
    found = {name: shape for name, shape in found.items() if not name.endswith("position_ids")}
    differ = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if differ:
        name = differ[0]
        raise BadCheckpoint(
            f"{where} is another architecture than its config.json says: {len(differ)} weights differ, such as {name}"
            f" ({found.get(name, 'missing')} in place of {expected.get(name, 'nothing')})"
        )
    return config
