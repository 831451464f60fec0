"""The scales: one table, readable beside the paper's.

S is the first `parts` parts of its source, so 12m contains 3m and nothing is fetched or captioned twice. The sample scale is a
source of its own, small enough for a laptop; its describer is a stand-in.
"""

from dataclasses import dataclass


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
    """One row of the table: how much of which source, who describes, who fuses, what is trained."""

    name: str
    source: Source
    parts: int
    """The first so many parts of the source; all of a list that has fewer."""
    describer: str
    fuser: str
    recipe: str
    """The training recipe's name in `training/recipe.py`."""

    @property
    def describer_is_stand_in(self) -> bool:
        return self.describer == "concepts"


OPENCLIPART = Source(
    "openclipart",
    rows_per_part=1_000,
    rows_per_shard=1_000,
    max_pixels=16_000_000,  # larger ones were not compared with the evaluation set (sources/sample_world.py)
    description="OpenClipArt drawings with their uploaders' titles as AltText",
)
VECAP300M = Source(
    "vecap300m",
    rows_per_part=1_000_000,
    rows_per_shard=10_000,
    max_pixels=40_000_000,
    description="a web crawl's URL list with AltText, given by VECLIP_URLS",
)

LLAVA = "llava-hf/llava-1.5-7b-hf"
VICUNA = "lmsys/vicuna-13b-v1.1"

SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        #      name      source       parts  describer   fuser      recipe
        Scale("sample", OPENCLIPART, 4, "concepts", "smollm2", "sample"),
        Scale("3m", VECAP300M, 3, LLAVA, VICUNA, "3m"),
        Scale("12m", VECAP300M, 12, LLAVA, VICUNA, "12m"),
        Scale("100m", VECAP300M, 100, LLAVA, VICUNA, "100m"),
        Scale("200m", VECAP300M, 200, LLAVA, VICUNA, "200m"),
        Scale("300m", VECAP300M, 300, LLAVA, VICUNA, "300m"),
    )
}


def scale_named(name: str) -> Scale:
    """Raises ValueError that lists the scales."""
    if name not in SCALES:
        raise ValueError(f"there is no scale {name!r}; there are {', '.join(SCALES)}")
    return SCALES[name]
