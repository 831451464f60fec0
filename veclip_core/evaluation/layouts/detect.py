"""Which layout a folder or file has, by one rule each, and how it is then read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veclip_core.evaluation.layouts import annotations, class_folders, parquets, tables, webdataset
from veclip_core.evaluation.layouts.class_names import CLASS_NAMES
from veclip_core.evaluation.layouts.found import Found
from veclip_core.evaluation.layouts.listing import Listing
from veclip_core.evaluation.set_catalogue import Layout, SetSpec
from veclip_core.evaluation.sets import EvaluationSetError

LAYOUTS = (
    "CLIP_benchmark's WebDataset layout (test/nshards.txt with test/0.tar and on); a json of Karpathy's splits, of COCO or of"
    " SugarCrepe, with the folder of its pictures; parquet files of Hugging Face `datasets` with the pictures inside; one csv, tsv,"
    " jsonl or parquet table of files and captions or classes, beside the pictures; a folder a class with its pictures."
    " Archives are unpacked first"
)


@dataclass(frozen=True)
class Reading:
    """How a set is read."""

    layout: Layout
    facts: list[Any]
    """What tells it from another at the same place: files by size and time."""
    read: Callable[[Path], Found]
    """Given a folder of its own in the cache, for what has to be copied."""
    folders: tuple[Path, ...]
    """Where class names and templates may lie, the nearest first."""

    def beside(self, *files: str) -> Path | None:
        """The first of these files that is there."""
        return next((path for folder in self.folders for file in files if (path := folder / file).is_file()), None)


def detect(name: str, spec: SetSpec, path: Path) -> Reading:
    """The layout of a local folder or file.

    Raises:
        EvaluationSetError: where none fits, or several files could be meant.
    """
    if not path.exists():
        raise EvaluationSetError(
            f"there is no evaluation set at {path}: give a folder, a file, an address, or a name of the catalogue"
            " (VECLIP_EVALUATION_SETS)"
        )
    layout = spec.layout or _layout_of(path)
    if layout is None:
        raise EvaluationSetError(f"{path} is in no known layout. Known are: {LAYOUTS}")
    if layout == "webdataset":
        shards = webdataset.split_folder(path, spec.split)
        if shards is None:
            raise EvaluationSetError(
                f"{path} has no {spec.split or webdataset.DEFAULT_SPLIT}/{webdataset.SHARDS}: the layout of CLIP_benchmark's"
                " WebDatasets is one folder a split, with nshards.txt and 0.tar, 1.tar and on (another"
                " split: `split` in the catalogue)"
            )
        # No more than what is read: in a folder above, whatever else lies there would make another set of it.
        facts = _facts(webdataset.files_of(shards))
        return Reading(layout, facts, lambda _: webdataset.read(name, shards), (shards, shards.parent))
    folder = path if path.is_dir() else path.parent
    if layout == "parquet":
        files = parquets.files_of(name, spec, path)
        return Reading(layout, _facts(files), lambda copy: parquets.read(name, spec, files, copy), (folder,))
    pictures = Listing.of(Path(spec.pictures) if spec.pictures else folder)
    if layout == "folders":
        classes = class_folders.classes_of(name, spec, pictures)
        return Reading(
            layout, [classes, *pictures.facts()], lambda _: class_folders.read(name, spec, pictures), (folder,)
        )
    file = path if path.is_file() else _one_of(path, layout)
    read = annotations.read if layout == "json" else tables.read
    return Reading(layout, [*_facts([file]), *pictures.facts()], lambda _: read(name, spec, file, pictures), (folder,))


def _layout_of(path: Path) -> Layout | None:
    if path.is_file():
        if path.suffix == ".json":
            return "json" if annotations.looks_so(path) else None
        if path.suffix == ".parquet" and parquets.looks_so(path):
            return "parquet"
        return "table" if tables.is_table(path.name) else None
    if webdataset.split_folder(path, ""):
        return "webdataset"
    # Before json: a folder of the hub's may describe its columns in one.
    if any(parquets.looks_so(file) for file in parquets.candidates(path)):
        return "parquet"
    if _candidates(path, "json"):
        return "json"
    if _candidates(path, "table"):
        return "table"
    return "folders" if class_folders.looks_so(Listing.of(path)) else None


def _candidates(folder: Path, layout: Layout) -> list[Path]:
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    files = [file for file in files if file.stem != Path(CLASS_NAMES).stem]
    if layout == "json":
        return [file for file in files if file.suffix == ".json" and annotations.looks_so(file)]
    return [file for file in files if tables.is_table(file.name)]


def _one_of(folder: Path, layout: Layout) -> Path:
    found = _candidates(folder, layout)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise EvaluationSetError(
            f"{folder} must hold one {layout} of texts, and holds {names}: give the path of the one meant"
        )
    return found[0]


def _facts(files: list[Path]) -> list[list[Any]]:
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
