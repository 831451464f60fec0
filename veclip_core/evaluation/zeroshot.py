"""Zero-shot classification: a class is the normalised mean of its templates' text embeddings (as in CLIP and CLIP_benchmark)."""

from collections.abc import Callable, Sequence

import numpy as np

from veclip_core.evaluation.retrieval import best_ranks

EncodeText = Callable[[list[str]], np.ndarray]

DRAWING_TEMPLATES = (
    "{}",
    "a drawing of a {}",
    "a drawing of {}",
    "a picture of {}",
    "an icon of {}",
    "clip art of {}",
)


def class_embeddings(encode_text: EncodeText, classes: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """One L2-normalised row per class [C, D]. `encode_text` returns L2-normalised rows."""
    texts = [template.format(name) for name in classes for template in templates]
    encoded_CTD = encode_text(texts).reshape(len(classes), len(templates), -1)
    mean_CD = encoded_CTD.mean(1)
    return mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)


def class_ranks(pictures_ND: np.ndarray, classes_CD: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Rank of the right class for every picture, 1-based, ties in the middle: top-k accuracy is the share with rank <= k."""
    return best_ranks(pictures_ND, classes_CD, np.asarray(target_N), np.arange(len(classes_CD)), chunk=8192)


def readable(name: str) -> str:
    """A label as words: Unicode's `animal-mammal` becomes `animal mammal`."""
    return " ".join(name.replace("-", " ").replace("_", " ").replace("&", "and").split())
