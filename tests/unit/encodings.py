"""Our way of encoding texts beside open_clip's."""

from typing import Any

import numpy as np
import torch

from veclip_core.training.model import encode_texts


def assert_encoded_as_open_clip_does(model: Any, tokens_BL: torch.Tensor, random: np.random.Generator) -> None:
    """Embeddings of 192 numbers, and the gradients that a random direction of them gives."""
    direction_BD = torch.from_numpy(random.normal(size=(len(tokens_BL), 192)))
    found = []
    for encode in (
        lambda: encode_texts(model, tokens_BL, torch.device("cpu")),
        lambda: model.encode_text(tokens_BL, True),
    ):
        model.zero_grad()
        texts_BD = encode()
        (texts_BD * direction_BD).sum().backward()
        found.append([texts_BD.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 20
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
