"""Styles: further captions of every sample beside its VeCap, shorter ones or denser ones, each a column of the manifest.

A style is data: an entry of `prompt_texts/styles.json` names its prompts and says what its captions must satisfy.
"""

from functools import cache

from pydantic import Field, field_validator

from veclip_core.captioning.prompts import read_presets
from veclip_core.captioning.quality import QualityThresholds, VecThresholds
from veclip_core.config import Config
from veclip_core.mixing.choose import CONTROL


class Style(Config):
    """How one more caption of a sample is made."""

    name: str = Field(pattern="^[a-z][a-z0-9]*$")
    """Its captions are the column `vecap_<name>`, its descriptions, where it has its own, `vec_<name>`."""
    note: str = Field(exclude=True)
    """What it is for; no part of the identity."""
    describe: str | None = None
    """The describing prompt's id; None takes the descriptions that are there."""
    describe_tokens: int = Field(64, ge=1)
    """Longest description in tokens."""
    description: VecThresholds = VecThresholds()
    """What its own description must satisfy."""
    fuse: tuple[str, ...] = Field(min_length=1)
    """Ids of the fusion prompts, one a round."""
    fuse_by_example: tuple[str, ...] = Field(min_length=1)
    """The same for the sample's fuser, which follows examples and not instructions."""
    several_lines: bool = False
    """Whether an answer may have more than one line; else it ends with the first."""
    fuse_tokens: int = Field(96, ge=1)
    """Longest caption in tokens."""
    thresholds: QualityThresholds = QualityThresholds()
    """What a caption must satisfy."""

    @field_validator("name")
    @classmethod
    def _is_not_the_controls(cls, name: str) -> str:
        if name == CONTROL:
            raise ValueError(f"a style can't be called {CONTROL!r}: that is the experiment's control")
        return name

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends an answer of a model that follows instructions."""
        return () if self.several_lines else ("\n",)

    @property
    def column(self) -> str:
        return f"vecap_{self.name}"

    @property
    def vec_column(self) -> str:
        return f"vec_{self.name}"


@cache
def styles() -> dict[str, Style]:
    """The presets by name."""
    return {style["name"]: Style.model_validate(style) for style in read_presets("styles.json")}


def style_named(name: str) -> Style:
    """Raises ValueError that lists the presets."""
    if name not in styles():
        raise ValueError(f"there is no caption style {name!r}; there are {', '.join(styles())}")
    return styles()[name]
