"""The scales: one table, readable beside the paper's.

S is the first `parts` parts of its source, so 12m contains 3m and nothing is fetched or captioned twice. The sample scale is a
source of its own, small enough for a laptop; its describer is a stand-in. `own` is whatever pictures a person has.
"""

from dataclasses import dataclass

from veclip_core.captioning.captioners import STAND_IN, captioner_named

CLIP_L14 = "openai/clip-vit-large-patch14"
"""The CLIP by which DataComp's baselines filter (arXiv 2304.14108). Apple's own filtering network is not released."""
OF_ITS_OWN = "clip"
"""A stand-in for a filtering network: the scale's own baseline, which was trained on the very pairs that it scores."""


@dataclass(frozen=True)
class Source:
    """A URL list and how it is cut."""

    name: str
    rows_per_part: int
    """Aimed at: parts are equal ranges of url_id, so sizes vary by a fraction of a percent at a million."""
    rows_per_shard: int
    max_pixels: int
    """Pictures with more are refused by their header."""
    description: str


@dataclass(frozen=True)
class Scale:
    """One row of the table: how much of which source, who captions, what is trained."""

    name: str
    source: Source
    parts: int
    """The first so many parts of the source; all of a list that has fewer."""
    captioner: str
    """The pair of models by name, in `captioning/captioners.py`."""
    recipe: str
    """The training recipe's name in `training/recipe.py`."""
    network: str = CLIP_L14
    """The data-filtering network, as VECLIP_DFN names one."""

    @property
    def describer_is_stand_in(self) -> bool:
        return captioner_named(self.captioner).describer == STAND_IN


OPENCLIPART = Source(
    "openclipart",
    rows_per_part=1_000,
    rows_per_shard=1_000,
    max_pixels=16_000_000,  # larger ones were not compared with the evaluation set (sources/sample_world.py)
    description="OpenClipArt drawings with their uploaders' titles as AltText",
)
OWN = Source(
    "own",
    rows_per_part=1_000_000,  # of no meaning here: the pictures' own grid is taken
    rows_per_shard=500,
    max_pixels=64_000_000,
    description="your own pictures: VECLIP_PICTURES, a folder or WebDataset shards, with AltTexts from VECLIP_ALT_TEXTS",
)
VECAP300M = Source(
    "vecap300m",
    rows_per_part=1_000_000,
    rows_per_shard=10_000,
    max_pixels=40_000_000,
    description="a web crawl's URL list with AltText, given by VECLIP_URLS",
)

SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        #      name      source       parts  captioner  recipe    network
        Scale("sample", OPENCLIPART, 4, "sample", "sample", OF_ITS_OWN),
        Scale("own", OWN, 1, "sample", "sample"),
        Scale("3m", VECAP300M, 3, "default", "3m"),
        Scale("12m", VECAP300M, 12, "default", "12m"),
        Scale("100m", VECAP300M, 100, "default", "100m"),
        Scale("200m", VECAP300M, 200, "default", "200m"),
        Scale("300m", VECAP300M, 300, "default", "300m"),
    )
}


def scale_named(name: str) -> Scale:
    """Raises ValueError that lists the scales."""
    if name not in SCALES:
        raise ValueError(f"there is no scale {name!r}; there are {', '.join(SCALES)}")
    return SCALES[name]
