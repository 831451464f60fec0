"""CLIP_benchmark's WebDataset layout, read in place: `{split}/nshards.txt`, `{split}/0.tar` and on, `classnames.txt`,
`zeroshot_classification_templates.txt`, `dataset_type.txt`. The order is that of its own loader, `build_wds_dataset`.

A member's name is a key and never a path: nothing is unpacked.
"""

import hashlib
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from veclip_core.evaluation.layouts.class_folders import LABEL
from veclip_core.evaluation.layouts.found import Found, Labels, refuse
from veclip_core.evaluation.sets import EvaluationSetError, PicturePlace
from veclip_core.sources.picture_tars import MAX_NAME_CHARS, MAX_TEXT_BYTES

SHARDS, TYPE = "nshards.txt", "dataset_type.txt"
DEFAULT_SPLIT = "test"
PICTURES = ("webp", "png", "jpg", "jpeg")
"""In the order of CLIP_benchmark's preference."""
SELECTION = "image_caption_selection"
"""What a type file may say of pictures with a choice of captions."""
MAX_SHARDS = 100_000


@dataclass
class _Sample:
    key: str
    picture: tuple[int, int, str] | None = None
    """Offset, length, sha256."""
    rank: int = len(PICTURES)
    texts: dict[str, bytes] = field(default_factory=dict)


def split_folder(folder: Path, split: str) -> Path | None:
    """The folder of the shards: that of the split, or this one; None where there are none."""
    inside = folder / (split or DEFAULT_SPLIT)
    if (inside / SHARDS).is_file():
        return inside
    if not split:
        if (folder / SHARDS).is_file():
            return folder
        others = sorted(folder.glob(f"*/{SHARDS}")) if folder.is_dir() else []
        if len(others) == 1:
            return others[0].parent
    return None


def files_of(shards: Path) -> list[Path]:
    """All that is read. Raises EvaluationSetError where tars are missing."""
    kind = _type_file(shards)
    return [shards / SHARDS, *tars_of(shards), *([kind] if kind else [])]


def _type_file(shards: Path) -> Path | None:
    """Beside the tars, or above the split's folder."""
    return next((path for path in (shards / TYPE, shards.parent / TYPE) if path.is_file()), None)


def tars_of(shards: Path) -> list[Path]:
    """Raises EvaluationSetError where not all are there."""
    count = shard_count(shards / SHARDS)
    tars = [shards / f"{number}.tar" for number in range(count)]
    refuse(
        shards, [tar.name for tar in tars if not tar.is_file()], f"{SHARDS} says {count:,} tars, and some are missing",
        "Fetch them.",
    )  # fmt: skip
    return tars


def shard_count(file: Path) -> int:
    """What `nshards.txt` says. Raises EvaluationSetError where it is no number of tars."""
    try:
        with open(file, "rb") as told:
            count = int(told.read(100))
        if not 0 < count <= MAX_SHARDS:
            raise ValueError(f"{count:,}")
    except (OSError, ValueError) as error:
        raise EvaluationSetError(f"{file} must hold the number of tars ({error})") from error
    return count


def read(name: str, shards: Path) -> Found:
    """Captions are the lines of each `txt`, labels the number in each `cls`."""
    kind = _kind(name, shards)
    needed = "cls" if kind == "classification" else "txt"
    found = Found(choice=kind == SELECTION)
    numbers: list[int] = []
    incomplete: list[str] = []
    for tar in tqdm(tars_of(shards), f"{name}: reading", unit="tar", disable=None):
        for sample in _samples(tar):
            where = f"{tar.stem}/{sample.key}"
            told = sample.texts.get(needed)
            if sample.picture is None or told is None:
                incomplete.append(f"{where} (no {needed if sample.picture else 'picture'})")
                continue
            offset, length, sha256 = sample.picture
            captions: list[str] = []
            if needed == "txt":
                captions = told.decode("utf-8", "replace").splitlines()
            else:
                numbers.append(_number(where, told))
            found.add(where, PicturePlace(str(tar), offset, length), sha256, captions)
    refuse(
        shards, incomplete, f"{len(incomplete):,} samples that are not whole",
        f"Each needs a picture ({', '.join(PICTURES)}) and a .{needed}.",
    )  # fmt: skip
    if needed == "cls":
        there = sorted(set(numbers))
        at = {number: row for row, number in enumerate(there)}
        found.labels[LABEL] = Labels([at[number] for number in numbers], list(map(str, there)), numbered=True)
    return found


def _kind(name: str, shards: Path) -> str:
    path = _type_file(shards)
    kind = path.read_text("utf-8", "replace").strip().lower() if path else "classification"
    if kind == "multilabel":
        raise EvaluationSetError(
            f"{name} has several labels a picture (multilabel): such a set can't be scored here. Take one with one label each"
        )
    if kind not in ("classification", "retrieval", SELECTION):
        raise EvaluationSetError(f"{path} says {kind[:50]!r}: retrieval, classification or {SELECTION} is known")
    return kind


def _samples(tar: Path) -> list[_Sample]:
    """In the tar's order. Keys and suffixes are split as webdataset does, at the name's first dot."""
    samples: dict[str, _Sample] = {}
    end = 0
    try:
        with tarfile.open(tar, "r:") as members:
            for member in members:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                _take(member, members, samples, tar)
        with open(tar, "rb") as file:
            file.seek(end)
            # After a header that it can't read tarfile ends without a word.
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end")
    except (tarfile.TarError, EOFError, OverflowError, OSError) as error:
        raise EvaluationSetError(f"{tar} is damaged or cut off ({error}): fetch it again") from error
    return list(samples.values())


def _take(member: tarfile.TarInfo, members: tarfile.TarFile, samples: dict[str, _Sample], tar: Path) -> None:
    folder, slash, base = member.name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    suffix = suffix.lower()
    if not stem or not dot or suffix not in (*PICTURES, "txt", "cls") or member.isdir():
        return
    shown = member.name[:MAX_NAME_CHARS]
    if not member.isreg() or member.issparse():
        raise EvaluationSetError(f"{tar} holds {shown!r:.200}, which is no plain file: make the tar anew without links")
    key = f"{folder}{slash}{stem}"[:MAX_NAME_CHARS].encode("utf-8", "replace").decode()
    sample = samples.setdefault(key, _Sample(key))
    if suffix in PICTURES:
        if sample.picture is None or PICTURES.index(suffix) < sample.rank:
            sample.picture = (member.offset_data, member.size, _sha256(members, member))
            sample.rank = PICTURES.index(suffix)
        return
    if member.size > MAX_TEXT_BYTES:
        raise EvaluationSetError(f"{tar}: {shown!r:.200} has {member.size:,} bytes: that is no caption and no label")
    if suffix in sample.texts:
        raise EvaluationSetError(f"{tar}: {shown!r:.200} is there twice: each sample needs a key of its own")
    content = members.extractfile(member)
    sample.texts[suffix] = content.read() if content else b""


def _sha256(members: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = members.extractfile(member)
    assert content is not None  # a plain file
    digest, left = hashlib.sha256(), member.size
    while left and (block := content.read(1 << 20)):
        digest.update(block)
        left -= len(block)
    if left:
        raise tarfile.ReadError(f"{left:,} bytes of its last member are missing")
    return digest.hexdigest()


def _number(where: str, told: bytes) -> int:
    try:
        number = int(told)
    except ValueError:
        number = -1
    if number < 0:
        raise EvaluationSetError(f"{where}.cls holds {told[:20]!r}: the number of a class, from 0 on, is needed")
    return number
