"""Pictures with AltTexts that a filtering network puts at the bottom, at the line between left out and kept, and at the top."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veclip_core.captioning.preview import escaped, lot, picture_cell, thumbnails
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.filtering import kept_by, scores_of
from veclip_core.samples import ShardKey

EACH = 6
SHARDS_READ = 5
"""Of a large scale not all are read."""


@dataclass(frozen=True)
class ScoredPair:
    """One sample, to look at."""

    picture: bytes
    """A small JPEG."""
    alt_text: str
    score: float


def pairs_at(chain: Chain) -> Mapping[str, Sequence[ScoredPair]]:
    """`lowest`, `at_the_line` and `highest` of some shards, drawn by a hash."""
    current, scores = scores_of(chain)
    least = kept_by(scores, chain.settings).least
    shards = current.shard_set(chain.root, chain.source)
    keys = sorted(shards.markers(current.shard_keys()), key=lambda key: lot(str(key)))[:SHARDS_READ]
    rows: list[tuple[float, str, str, ShardKey]] = []
    for key in keys:
        table = shards.read_table(key, ["score", "sample_id", "url_id"]).to_pylist()
        rows += [(row["score"], row["sample_id"], row["url_id"], key) for row in table if row["score"] is not None]
    rows.sort()
    above = sum(score < (least or 0) for score, *_ in rows)
    places = {
        "lowest": rows[:EACH],
        "at_the_line": rows[max(0, above - EACH // 2) :][:EACH],
        "highest": rows[-EACH:],
    }
    return {name: _pairs(chain, of) for name, of in places.items()}


def _pairs(chain: Chain, rows: Sequence[tuple[float, str, str, ShardKey]]) -> list[ScoredPair]:
    current = chain.current("score", "dfn_scores")
    listed = current.input(chain.root, chain.source, "list_urls")
    downloads = current.input(chain.root, chain.source, "download")
    pictures: dict[str, bytes] = {}
    texts: dict[str, str] = {}
    for key in {key for *_, key in rows}:
        of_urls = [of_url for _, _, of_url, place in rows if place == key]
        pictures |= thumbnails(downloads, key, of_urls)
        wanted = {sample for _, sample, _, place in rows if place == key}
        for row in listed.read_table(key, ["sample_id", "alt_text"]).to_pylist():
            if row["sample_id"] in wanted:
                texts[row["sample_id"]] = row["alt_text"]
    return [ScoredPair(pictures[of_url], texts[sample], score) for score, sample, of_url, _ in rows]


def markdown_of_pairs(pairs: Sequence[ScoredPair]) -> str:
    """A table for Dagster's markdown."""
    lines = ["| picture | AltText | score |", "|---|---|---|"]
    lines += [f"| {picture_cell(pair.picture)} | {escaped(pair.alt_text)} | {pair.score:.3f} |" for pair in pairs]
    return "\n".join(lines)
