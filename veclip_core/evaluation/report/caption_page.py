"""The page about a scale's captions: rates, reasons, lengths, words, and pictures with their texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from veclip_core.captioning.text_statistics import CaptionStatistics
from veclip_core.evaluation.report import figures
from veclip_core.evaluation.report.inputs import CaptionExample
from veclip_core.evaluation.report.page import CAPTION_PIXELS, with_thumbnails
from veclip_core.evaluation.report.rendering import HERE, environment
from veclip_core.shards import Totals

TEXT_NAMES = {"alt_text": "AltText", "vec": "VeC", "vecap": "VeCap"}
KEPT_NAMES = {"alt": "words of the AltText", "names": "names and numbers of the AltText", "vec": "words of the VeC"}
STATUS_NOTES = {
    "fused": "the language model's own sentence, which passed the check",
    "concatenated": "AltText and VeC one after the other, because no sentence passed",
    "vec": "the VeC alone: there is no AltText, or it was refused, or both together were too long for the style",
    "alt": "the AltText alone: there is no VeC, or it was refused, or it was too long for the style",
}


@dataclass(frozen=True)
class CaptionQuality:
    """What is known of a scale's captions."""

    scale: str
    captioner: str
    stand_in: bool
    totals: Mapping[str, Totals]
    """Stage to the sums over its shards."""
    statistics: CaptionStatistics
    """Over a random lot of rows."""
    random: Sequence[CaptionExample] = ()
    by_reason: Mapping[str, Sequence[CaptionExample]] = field(default_factory=dict)
    partial: bool = False
    style: str = ""
    """Of which of the further captions; empty for the scale's own."""
    similarity: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """AltText, VeC and VeCap -> cosines of picture and text under a CLIP model, where one scored them."""
    scorer: str = ""
    verdict: str = ""
    """Of a canary: go or no-go, and why."""
    costs: Sequence[Mapping[str, Any]] = ()
    """Of a canary: what each stage of the whole scale will take."""

    def shares(self) -> dict[str, float]:
        """Status -> its share of all samples with a text."""
        select = self.totals["select"]
        return {name: count / select.rows_ok for name, count in self.statuses().items()} if select.rows_ok else {}

    def statuses(self) -> dict[str, int]:
        """Status -> samples, the most frequent first."""
        found = self.totals["select"].extra
        named = {name.removeprefix("status_"): int(n) for name, n in found.items() if name.startswith("status_")}
        return dict(sorted(named.items(), key=lambda item: -item[1]))

    def rejections(self) -> dict[str, int]:
        """Reason -> candidates of the fusing model that the check refused, the most frequent first."""
        found = self.totals["fuse"].extra
        named = {name.removeprefix("rejected_"): int(n) for name, n in found.items() if name.startswith("rejected_")}
        return dict(sorted(named.items(), key=lambda item: -item[1]))

    def refusals(self) -> dict[str, int]:
        """Text and reason -> samples whose text was refused before fusion."""
        found = self.totals["check"].extra
        named = {name.replace("_refused_", ": ").replace("_", " "): int(n) for name, n in found.items()}
        return dict(sorted(named.items(), key=lambda item: -item[1]))


def render(found: CaptionQuality) -> str:
    """The page as text; deterministic."""
    rates = [
        {
            "stage": name,
            "rows": total.rows_in,
            "ok": total.rows_ok,
            "fallbacks": total.fallbacks,
            "errors": dict(total.errors),
            "per_second": total.rows_in / total.worker_seconds if total.worker_seconds else 0.0,
        }
        for name, total in found.totals.items()
    ]
    statistics = found.statistics
    charts = [
        (
            "Words of a text",
            figures.lengths_figure({TEXT_NAMES[name]: of.lengths for name, of in statistics.by_text.items()}),
        )
    ]
    if any(statistics.kept.values()):
        kept = {KEPT_NAMES[name]: shares for name, shares in statistics.kept.items()}
        charts.append(("What a fused caption keeps", figures.shares_figure(kept, "share kept")))
    if found.similarity:
        charts.append(("Similarity of picture and text", figures.shares_figure(found.similarity, "cosine")))
    context: dict[str, Any] = {
        "found": found,
        "rates": rates,
        "shares": found.shares(),
        "status_notes": STATUS_NOTES,
        "text_names": TEXT_NAMES,
        "charts": charts,
        "random_rows": with_thumbnails(found.random, 96),
        "refused": {reason: with_thumbnails(rows, CAPTION_PIXELS) for reason, rows in found.by_reason.items()},
        "css": (HERE / "style.css").read_text(),
    }
    return environment().get_template("captions.html").render(**context)
