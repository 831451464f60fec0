"""The results that the VeCLIP release publishes: what full scale gives, to stand beside one's own.

R@1 of zero-shot retrieval (I->T and T->I) and zero-shot accuracy, percent. Source: README of apple/ml-veclip (arXiv 2310.07699).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from veclip_core.evaluation.set_catalogue import plain_name

SOURCE = "README of apple/ml-veclip (VeCLIP, arXiv 2310.07699)"
COLUMNS = {
    "coco_i2t_r1": "COCO I→T R@1",
    "coco_t2i_r1": "COCO T→I R@1",
    "flickr30k_i2t_r1": "Flickr30k I→T R@1",
    "flickr30k_t2i_r1": "Flickr30k T→I R@1",
    "imagenet": "ImageNet top-1",
    "imagenet_v2": "ImageNet V2 top-1",
}


@dataclass(frozen=True)
class PaperRow:
    data: str
    model: str
    coco_i2t_r1: float
    coco_t2i_r1: float
    flickr30k_i2t_r1: float
    flickr30k_t2i_r1: float
    imagenet: float
    imagenet_v2: float


@dataclass(frozen=True)
class Misprint:
    data: str
    model: str
    column: str
    printed: str
    mark: str
    note: str


B16, L14, H14 = "VeCap-DFN-B/16", "VeCap-DFN-L/14", "VeCap-DFN-H/14 @336"

ROWS = (
    PaperRow("3M", "CLIP-B/16", 5.46, 3.28, 12.20, 6.36, 5.46, 7.09),
    PaperRow("3M", "VeCLIP-B/16", 22.30, 13.01, 40.60, 27.58, 15.98, 13.51),
    PaperRow("12M", "CLIP-B/16", 24.52, 14.28, 44.70, 29.06, 31.60, 27.03),
    PaperRow("12M", "VeCLIP-B/16", 47.78, 31.62, 73.90, 55.68, 38.11, 32.53),
    PaperRow("100M", "CLIP-B/16", 47.24, 30.61, 74.40, 57.16, 58.64, 50.96),
    PaperRow("100M", "VeCLIP-B/16", 64.82, 46.12, 89.30, 73.10, 60.77, 54.17),
    PaperRow("200M", "CLIP-B/16", 52.20, 34.97, 80.90, 63.26, 63.72, 56.84),
    PaperRow("200M", "VeCLIP-B/16", 67.20, 48.40, 91.10, 76.32, 64.64, 57.67),
    PaperRow("DFN", B16, 62.96, 43.20, 87.10, 70.44, 76.15, 68.19),
    PaperRow("VeCap 300M", B16, 64.74, 44.58, 90.10, 73.14, 46.43, 41.15),
    PaperRow("DFN + VeCap 300M", B16, 66.28, 45.12, 88.80, 73.56, 76.19, 69.58),
    PaperRow("DFN + VeCap 300M", L14, 71.06, 51.13, 93.10, 80.96, 81.95, 75.48),
    PaperRow("DFN + VeCap 300M", H14, 72.78, 52.33, 93.60, 82.64, 83.07, 76.37),
)

MISPRINTS = (
    Misprint(
        "3M", "CLIP-B/16", "imagenet", "5.46", "†",
        "printed as 5.46, the value of the row's COCO column and below its ImageNet V2: a likely slip, the true value is unknown",
    ),
    Misprint("12M", "CLIP-B/16", "flickr30k_t2i_r1", "290.6", "‡", "printed as 290.6, read as 29.06"),
)  # fmt: skip


@dataclass(frozen=True)
class Release:
    """A released checkpoint: where it is, and the row that its scores are held against."""

    row: PaperRow
    address: str
    further: tuple[PaperRow, ...] = ()
    """Rows whose model links to the same file: the README does not say which of them it is."""


def _released() -> dict[str, Release]:
    rows = {(row.data, row.model): row for row in ROWS}
    linked = {
        "veclip_b16_3m": [("3M", "VeCLIP-B/16")],
        "veclip_b16_12m": [("12M", "VeCLIP-B/16")],
        "veclip_b16_100m": [("100M", "VeCLIP-B/16")],
        "veclip_b16_200m": [("200M", "VeCLIP-B/16")],
        # One link for three rows. That it is the last is our reading: the release's other two VeCap-DFN models are of that data.
        "vecapdfn_clip_b16": [("DFN + VeCap 300M", B16), ("DFN", B16), ("VeCap 300M", B16)],
        "vecapdfn_clip_l14": [("DFN + VeCap 300M", L14)],
        "vecapdfn_clip_h14_336": [("DFN + VeCap 300M", H14)],
    }
    place = "https://docs-assets.developer.apple.com/ml-research/models/veclip"
    return {
        name: Release(rows[keys[0]], f"{place}/{name}.zip", tuple(rows[key] for key in keys[1:]))
        for name, keys in linked.items()
    }


RELEASED = _released()
"""By the name of the zip."""


@dataclass(frozen=True)
class PaperSet:
    """An evaluation set of the table."""

    names: tuple[str, ...]
    """By which it is recognised, plain (`plain_name`)."""
    metrics: Mapping[str, str]
    """Column to our metric; of a classification without the name of the classes."""
    pictures: int


PAPER_SETS = {
    "coco": PaperSet(
        ("coco", "mscoco", "mscoco_captions", "coco_captions"),
        {"coco_i2t_r1": "i2t_r@1", "coco_t2i_r1": "t2i_r@1"},
        pictures=5_000,
    ),
    "flickr30k": PaperSet(
        ("flickr30k",), {"flickr30k_i2t_r1": "i2t_r@1", "flickr30k_t2i_r1": "t2i_r@1"}, pictures=1_000
    ),
    "imagenet": PaperSet(("imagenet", "imagenet1k"), {"imagenet": "zeroshot_top1"}, pictures=50_000),
    "imagenetv2": PaperSet(("imagenetv2", "imagenet_v2"), {"imagenet_v2": "zeroshot_top1"}, pictures=10_000),
}

CAPTIONS = 5
"""Of a picture, of the retrieval sets; some pictures of COCO have more."""
TOLERANCE = 0.3
"""Points between a measured and a published score that still count as the same."""


@dataclass(frozen=True)
class PaperVerdict:
    """One measured score beside the published one; percent points."""

    model: str
    set: str
    column: str
    metric: str
    measured: float
    published: float
    tolerance: float
    misprint: str | None
    """Why the published number is not to be trusted: then there is no verdict."""
    note: str | None = None
    """What else is to be known: where the set or the protocol is not as published, or the checkpoint has several rows."""
    same_size: bool = True
    """Whether the set has as many pictures as the published one: else there is no verdict."""

    @property
    def difference(self) -> float:
        return round(self.measured - self.published, 6)  # 22.6 - 22.3 is more than 0.3 otherwise

    @property
    def holds(self) -> bool | None:
        return None if self.misprint or not self.same_size else abs(self.difference) <= self.tolerance

    @property
    def word(self) -> str:
        why = "misprinted" if self.misprint else "a set of another size"
        return {True: "holds", False: "does not hold", None: f"no verdict: {why}"}[self.holds]


def paper_set(name: str) -> str | None:
    """Which of the table's sets one of that name is."""
    plain = plain_name(name)
    return next((of for of, one in PAPER_SETS.items() if plain in one.names), None)


def verdicts(
    results: Mapping[str, Any], names: Mapping[str, str], own_templates: Collection[str] = ()
) -> list[PaperVerdict]:
    """How measured scores stand beside the published ones.

    Args:
        results: what `compare` returns.
        names: model, as the results name it, to the released checkpoint that it is; others get no verdict.
        own_templates: the sets whose classes were told by other templates than open_clip's `openai`, those of ImageNet.
    """
    values = {
        (row["model"], row["set"], row["metric"]): row["value"] for row in results["summary"] if row["split"] == "all"
    }
    return [
        verdict
        for model, checkpoint in names.items()
        if checkpoint in RELEASED
        for name, of_set in results["sets"].items()
        for verdict in _of_set(model, RELEASED[checkpoint], name, of_set, values, name in own_templates)
    ]


def _of_set(
    model: str,
    release: Release,
    name: str,
    of_set: Mapping[str, Any],
    values: Mapping[tuple[str, str, str], float],
    own_templates: bool,
) -> Iterator[PaperVerdict]:
    known = paper_set(name)
    if known is None:
        return
    classes = next(iter(of_set["classes"]), "")
    for column, kind in PAPER_SETS[known].metrics.items():
        metric = f"{kind}_{classes}" if kind.startswith("zeroshot") else kind
        if (measured := values.get((model, name, metric))) is None:
            continue
        published = PAPER_SETS[known].pictures
        by = _templates_note(own_templates) if kind.startswith("zeroshot") else _captions_note(of_set)
        notes = [*_size_note(of_set["pictures"], published), *by, *_rows_note(release, column)]
        yield PaperVerdict(
            model=model,
            set=name,
            column=column,
            metric=metric,
            measured=measured,
            published=getattr(release.row, column),
            tolerance=TOLERANCE,
            misprint=_misprint(release.row, column),
            note="; ".join(notes) or None,
            same_size=of_set["pictures"] == published,
        )


def _size_note(pictures: int, published: int) -> Sequence[str]:
    return [] if pictures == published else [f"measured on {pictures:,} pictures, published on {published:,}"]


def _captions_note(of_set: Mapping[str, Any]) -> Sequence[str]:
    """Where the captions are neither the first five of each picture nor all that there are, of which none has fewer than five."""
    fewest, most = of_set["captions_per_picture"]
    left_out = of_set.get("notes", {}).get("captions_left_out", 0)
    if fewest >= CAPTIONS and (most == CAPTIONS or not left_out):
        return []
    many = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return [f"measured with {many} caption{'s' if most > 1 else ''} a picture, published with {CAPTIONS} or all"]


def _templates_note(own: bool) -> Sequence[str]:
    return ["measured with other templates of the classes than open_clip's for ImageNet"] if own else []


def _rows_note(release: Release, column: str) -> Sequence[str]:
    if not release.further:
        return []
    rows = ", ".join(f"{row.data} {getattr(row, column):.2f}" for row in (release.row, *release.further))
    return [
        f"the README links this file from {1 + len(release.further)} rows ({rows}): held against the first of these"
    ]


def _misprint(row: PaperRow, column: str) -> str | None:
    of = (row.data, row.model, column)
    return next((one.note for one in MISPRINTS if (one.data, one.model, one.column) == of), None)


def reference() -> dict[str, Any]:
    """Rows, columns and misprints as plain data, for `results.json`."""
    return {
        "source": SOURCE,
        "unit": "percent",
        "columns": dict(COLUMNS),
        "rows": [asdict(row) for row in ROWS],
        "misprints": [asdict(misprint) for misprint in MISPRINTS],
    }
