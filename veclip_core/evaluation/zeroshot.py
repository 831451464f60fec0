"""Zero-shot classification: a class is the normalised mean of its templates' text embeddings (as in CLIP and CLIP_benchmark)."""

from collections.abc import Callable, Sequence

import numpy as np

from veclip_core.evaluation.retrieval import Ranked, ranked

EncodeText = Callable[[list[str]], np.ndarray]

PLACE = "{}"
"""Of the class in a template."""
DRAWING_TEMPLATES = (
    "{}",
    "a drawing of a {}",
    "a drawing of {}",
    "a picture of {}",
    "an icon of {}",
    "clip art of {}",
)


def in_template(template: str, name: str) -> str:
    """Not `str.format`: a template is a stranger's text too."""
    return template.replace(PLACE, name)


def class_embeddings(encode_text: EncodeText, classes: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """One L2-normalised row per class [C, D]. `encode_text` returns L2-normalised rows."""
    texts = [in_template(template, name) for name in classes for template in templates]
    return mean_of_texts(np.repeat(np.arange(len(classes)), len(templates)), encode_text(texts))[1]


def mean_of_texts(item_T: np.ndarray, text_TD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items [M], and the normalised mean of each one's rows [M, D]; the rows of an item lie together. A single row stays as
    it is."""
    first_M = np.flatnonzero(np.r_[True, item_T[1:] != item_T[:-1]])
    if len(first_M) == len(item_T):
        return item_T, text_TD
    texts_M1 = np.diff(np.r_[first_M, len(item_T)])[:, None].astype(text_TD.dtype)
    mean_MD = np.add.reduceat(text_TD, first_M, axis=0) / texts_M1
    return item_T[first_M], mean_MD / np.linalg.norm(mean_MD, axis=1, keepdims=True)


def class_ranks(pictures_ND: np.ndarray, classes_CD: np.ndarray, target_N: np.ndarray) -> Ranked:
    """Where the right class stands for every picture: top-k accuracy is the mean of being within k."""
    return ranked(pictures_ND, classes_CD, np.asarray(target_N), np.arange(len(classes_CD)))


def readable(name: str) -> str:
    """A label as words: Unicode's `animal-mammal` becomes `animal mammal`."""
    return " ".join(name.replace("-", " ").replace("_", " ").replace("&", "and").split())
