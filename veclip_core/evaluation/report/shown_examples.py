"""Hits and misses as the template `found.html` shows them."""

import logging
from collections.abc import Mapping
from typing import Any

from veclip_core.evaluation.opening import Unreadable
from veclip_core.evaluation.report.rendering import data_uri
from veclip_core.evaluation.report.retrieved import RetrievalExample, RetrievalExamples
from veclip_core.evaluation.sets import EvaluationSet

logger = logging.getLogger(__name__)

GALLERY_PIXELS = 112
TITLES = {
    "t2i": "Text to image",
    "i2t": "Image to text",
    "class": "Classes",
    "choice": "The right one of a picture\u2019s captions",
}
DONE = {"t2i": "found", "i2t": "found", "class": "named right", "choice": "chosen right"}
OUTCOMES = {
    "both": "{done} by both",
    "only_ours": "{done} by {ours}, not by {baseline}",
    "only_baseline": "{done} by {baseline}, not by {ours}",
    "neither": "{done} by neither",
    "hit": "{done}",
    "miss": "not {done}",
}


def directions(found: RetrievalExamples, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """By direction: a heading, counts, and the examples with their pictures."""
    evaluation_set, pictures = found.evaluation_set, dict[int, str]()

    def picture(row: int) -> str:
        if row not in pictures:
            pictures[row] = _seen(evaluation_set, row)
        return pictures[row]

    def outcome(name: str, direction: str) -> str:
        base = found.baseline or ""
        return OUTCOMES[name].format(
            done=DONE[direction], ours=labels.get(found.ours, found.ours), baseline=labels.get(base, base)
        )

    def shown(example: RetrievalExample) -> dict[str, Any]:
        by_text = example.direction == "t2i"
        texts = (
            evaluation_set.labels[found.labelling].classes
            if example.direction == "class" and found.labelling
            else evaluation_set.captions
        )
        return {
            "outcome": outcome(example.outcome, example.direction),
            "text": _asked(found, example),
            "picture": None if by_text else picture(example.query),
            "answers": [
                {
                    "model": labels.get(answer.model, answer.model),
                    "rank": f"{answer.rank:,.0f}",
                    "first": [
                        {
                            "picture": picture(row) if by_text else None,
                            "text": "" if by_text else texts[row],
                            "right": right,
                        }
                        for row, right in zip(answer.rows, answer.right, strict=True)
                    ],
                }
                for answer in example.answers
            ],
        }

    return [
        {
            "title": TITLES[direction],
            "gallery": _gallery(found, direction),
            "hit_within": found.hit_within if direction in ("t2i", "i2t") else 1,
            "seed": found.seed,
            "counts": {outcome(name, direction): n for name, n in counts.items()},
            "examples": [shown(example) for example in found.examples if example.direction == direction],
        }
        for direction, counts in found.counts.items()
    ]


def _seen(evaluation_set: EvaluationSet, row: int) -> str:
    """The picture; a grey square for one that can't be read, which is counted as a miss and may stand among the examples."""
    from PIL import Image

    try:
        picture = evaluation_set.open_picture(row)
    except Unreadable as reason:
        logger.warning(
            "%s: picture %s is %s: shown as a grey square", evaluation_set.name, evaluation_set.ids[row], reason
        )
        picture = Image.new("RGB", (16, 16), "#bbbbbb")
    return data_uri(picture, GALLERY_PIXELS)


def _asked(found: RetrievalExamples, example: RetrievalExample) -> str:
    """The text beside the query: the caption itself, or what is right of the picture."""
    evaluation_set, query = found.evaluation_set, example.query
    if example.direction == "t2i":
        return evaluation_set.captions[query]
    if example.direction == "class" and found.labelling:
        labelling = evaluation_set.labels[found.labelling]
        return labelling.classes[int(labelling.target_N[query])]
    if evaluation_set.right_M is None:
        return " / ".join(evaluation_set.captions_of[query])
    own = zip(evaluation_set.captions, evaluation_set.caption_picture_M, evaluation_set.right_M, strict=True)
    return " / ".join(caption for caption, row, right in own if row == query and right)


def _gallery(found: RetrievalExamples, direction: str) -> int | None:
    """How many there were to rank; None where that differs from query to query."""
    if direction == "t2i":
        return len(found.evaluation_set)
    if direction == "i2t":
        return len(found.evaluation_set.captions)
    return len(found.evaluation_set.labels[found.labelling].classes) if found.labelling else None
