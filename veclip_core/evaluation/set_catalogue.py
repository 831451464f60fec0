"""Evaluation sets by name: a YAML file that says where each lies and how it is to be read.

flickr30k: /data/flickr30k
coco:
  path: /data/coco/dataset_coco.json
  pictures: /data/coco
imagenetv2:
  path: imagenetv2-matched-frequency-format-val     # beside this file
  templates: openai
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from veclip_core import storage
from veclip_core.config import Config
from veclip_core.evaluation.sets import EvaluationSetError

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
OPENMOJI = "openmoji"
Layout = Literal["json", "webdataset", "parquet", "table", "folders"]
TemplateList = Literal["openai", "simple", "drawing"]


class SetSpec(Config):
    """One evaluation set: where it lies, and what can't be seen there."""

    path: str = Field(min_length=1)
    """A folder, file or address; a relative path is beside the catalogue."""
    layout: Layout | None = None
    """None: by what is there."""
    split: str = ""
    """By default `test`, or the only one there is."""
    captions: int | None = Field(default=None, ge=1)
    """So many of each picture, the first; by default all, as CLIP_benchmark uses them."""
    templates: TemplateList | tuple[str, ...] | None = None
    """Of the class texts, `{}` or `{c}` in the class's place: a list by name (open_clip's `openai` or `simple`, the sample's
    `drawing`) or one's own. By default the set's own file, and `openai` for a set whose name begins with `imagenet`."""
    classes: str = ""
    """A file of class texts: `classnames.txt` (one a line, in the order of the labels), csv or tsv (label, text), json."""
    pictures: str = ""
    """The folder of the pictures, where that is not the one of the annotations."""
    image_column: str = ""
    """Of a table, where its name is not one of the usual."""
    caption_column: str = ""
    """Likewise; several with commas between."""
    label_column: str = ""
    """Likewise."""
    choice: bool = False
    """A picture's captions are a choice of which the first is right, as SugarCrepe's are."""

    @field_validator("templates", mode="before")
    @classmethod
    def _own_templates(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """Those that are named."""
        return tuple(name.strip() for name in self.caption_column.split(",") if name.strip())


def plain_name(name: str) -> str:
    """By which a known set is recognised: case, `-` and CLIP_benchmark's leading `wds_` don't matter."""
    return name.lower().replace("-", "_").removeprefix("wds_")


def read_catalogue(uri: str) -> dict[str, SetSpec]:
    """The sets of a catalogue by name.

    Raises:
        EvaluationSetError: where the file is not there, no YAML, or an entry can't be used; it says which and why.
    """
    import yaml

    try:
        entries = yaml.safe_load(storage.read_bytes(uri))
    except FileNotFoundError as error:
        raise EvaluationSetError(
            f"there is no catalogue of evaluation sets at {uri}: set VECLIP_EVALUATION_SETS to one"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise EvaluationSetError(f"{uri} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, Mapping):
        raise EvaluationSetError(f"{uri} must hold sets by name, such as `mine: {{path: /data/mine}}`")
    return {str(name): _entry(str(name), entry, uri) for name, entry in entries.items()}


def _entry(name: str, entry: Any, uri: str) -> SetSpec:
    import re

    if not re.fullmatch(NAME, name) or name == OPENMOJI:
        raise EvaluationSetError(
            f"{uri}: a set can't be named {name!r}: take letters, digits, '.', '_' and '-', and not {OPENMOJI!r}"
        )
    given = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(given, Mapping):
        raise EvaluationSetError(f"{uri}: {name} must be a path, or keys such as `path: /data/{name}`")
    given = {str(key): value for key, value in given.items()}
    if unknown := sorted(given.keys() - SetSpec.model_fields.keys()):
        raise EvaluationSetError(
            f"{uri}: {name} has the unknown keys {', '.join(unknown)}. Known are {', '.join(SetSpec.model_fields)}"
        )
    try:
        spec = SetSpec.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise EvaluationSetError(f"{uri}: {name} can't be used: {problems}") from error
    beside = uri.replace("\\", "/").rpartition("/")[0] or "."
    places = {
        key: beside_catalogue(beside, value) for key in ("path", "pictures", "classes") if (value := getattr(spec, key))
    }
    return spec.model_copy(update=places)


def beside_catalogue(folder: str, path: str) -> str:
    """A relative path of the catalogue's, from its folder."""
    return path if "://" in path or path.startswith(("/", "~")) else storage.join(folder, path)
