"""The models at the paper's sizes, T5's tokens, and the losses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.released_clip import WORDS, write_t5
from tests.unit.encodings import assert_encoded_as_open_clip_does
from tests.unit.training_world import TINY
from veclip_core.training.losses import contrastive_loss
from veclip_core.training.model import architecture, build_model
from veclip_core.training.recipe import RECIPES, Recipe
from veclip_core.training.texts import PAD, T5_END, T5Tokenizer, TokenizerMissing, tokenizer_from_json
from veclip_core.training.transformers_clip import NotInTransformers, config_of, differences, parameters_of

T5_VOCABULARY = 32_128
"""T5's own embedding has so many rows."""


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> T5Tokenizer:
    return T5Tokenizer.load(TINY.context_length, str(write_t5(tmp_path_factory.mktemp("t5"))))


@pytest.mark.parametrize(
    ("model", "image_size", "parameters", "vision_width", "positions", "text_width"),
    [
        ("ViT-B-16", 224, 149_620_737, 768, 197, 512),
        ("ViT-L-14", 224, 427_616_513, 1024, 257, 768),
        ("ViT-H-14", 336, 986_109_441 + (577 - 257) * 1280, 1280, 577, 1024),
    ],
)
def test_the_papers_models_have_their_sizes(
    model: str, image_size: int, parameters: int, vision_width: int, positions: int, text_width: int
) -> None:
    """Whole, on the meta device. The counts are open_clip's published ones with CLIP's vocabulary; T5's is smaller."""
    recipe = RECIPES["300m"].model_copy(update={"model": model, "image_size": image_size, "cache_size": image_size})
    described = {
        tokenizer: architecture(recipe.model_copy(update={"tokenizer": tokenizer}), size)
        for tokenizer, size in (("bpe", 49_408), ("t5", T5_VOCABULARY))
    }
    with torch.device("meta"):
        built = {tokenizer: build_model(description) for tokenizer, description in described.items()}
    counts = {name: sum(one.numel() for one in clip.parameters()) for name, clip in built.items()}
    assert counts == {"bpe": parameters, "t5": parameters - (49_408 - T5_VOCABULARY) * text_width}
    for name, clip in built.items():
        assert clip.visual.positional_embedding.shape == (positions, vision_width)
        assert clip.visual.conv1.bias is None
        assert clip.visual.pool_type == "tok"
        assert clip.visual.ln_pre.eps == clip.ln_final.eps == 1e-5
        assert isinstance(clip.transformer.resblocks[0].mlp.gelu, torch.nn.GELU)
        assert isinstance(clip.text_projection, torch.nn.Parameter)  # no bias
        assert clip.attn_mask is not None  # causal
        config = config_of(described[name])
        assert parameters_of(config) == counts[name]
        assert differences(config, described[name]) == []
    assert (built["t5"].text_pool_type, built["t5"].text_eos_id) == ("eos", T5_END)


def test_a_configuration_that_differs_is_told_apart() -> None:
    description = architecture(TINY.model_copy(update={"model": "ViT-B-16", "tokenizer": "t5"}), 100)
    config = config_of(description)
    config.vision_config.hidden_act = "quick_gelu"
    config.text_config.eos_token_id = 2
    config.text_config.num_hidden_layers = 11
    assert differences(config, description) == [
        "text_config.num_hidden_layers: 11, described 12",
        "text_config.eos_token_id: 2, described 1",
        "vision_config.hidden_act: quick_gelu, described gelu",
    ]
    with pytest.raises(NotInTransformers, match=r"has no a ModifiedResNet.*export_open_clip"):
        config_of(architecture(TINY, 100))


def test_t5s_tokens_end_where_the_text_does(t5: T5Tokenizer) -> None:
    """Padding 0, end 1, lower-cased; marks that a text spells out are no end; a long text is cut, and ends."""
    texts = [*WORDS, "A Photo", "", "cat </s> dog", "cat </S>dog<pad>", "a " * 40]
    tokens_BL = t5(texts)
    assert tokens_BL.shape == (len(texts), TINY.context_length)
    assert tokens_BL.dtype == torch.int64
    assert ((tokens_BL == T5_END).sum(dim=1) == 1).all()
    for row in tokens_BL:
        end = int((row == T5_END).nonzero()[0])
        assert (row[end + 1 :] == PAD).all()
        assert (row[:end] != PAD).all()
    assert tokens_BL[texts.index("")].tolist() == [T5_END] + [PAD] * (TINY.context_length - 1)
    assert torch.equal(t5(["A PHOTO"]), t5(["a photo"]))
    assert torch.equal(t5(["cat </s> dog"]), t5(["cat dog"]))
    assert tokenizer_from_json(t5.to_json()) == t5
    assert torch.equal(tokenizer_from_json(t5.to_json())(texts), tokens_BL)


def test_no_tokenizer_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerMissing, match=r"holds no tokenizer that can be read .*VECLIP_T5_TOKENIZER"):
        T5Tokenizer.load(16, str(tmp_path))


@pytest.mark.parametrize("count", [1, 3, 50])
def test_t5s_texts_encoded_by_length_are_open_clips(t5: T5Tokenizer, count: int) -> None:
    """Values and gradients, pooled at the end of the text: its id is the smallest but one, not the largest."""
    recipe = TINY.model_copy(update={"tokenizer": "t5"})
    model = build_model(architecture(recipe, t5.vocab_size), seed=1).double()
    random = np.random.default_rng(count)
    tokens_BL = t5(
        [" ".join(random.choice(["cat", "red", "house", "7"], int(n))) for n in random.integers(0, 9, count)]
    )
    assert_encoded_as_open_clip_does(model, tokens_BL, random)


def rows(count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 8, generator=random, dtype=torch.float64), dim=-1)


def test_the_losses_are_their_formulas() -> None:
    images_BD, texts_BD, scale, bias = rows(5, 1), rows(5, 2), torch.tensor(7.0), torch.tensor(-3.0)
    logits_BB = 7.0 * images_BD @ texts_BD.T
    softmax = -(logits_BB.log_softmax(0).diagonal().mean() + logits_BB.log_softmax(1).diagonal().mean()) / 2
    assert contrastive_loss("clip", 0, 1)(images_BD, texts_BD, scale, None).item() == pytest.approx(softmax.item())
    signs_BB = 2 * torch.eye(5) - 1
    sigmoid = -(torch.sigmoid(signs_BB * (logits_BB - 3.0))).log().sum() / 5
    assert contrastive_loss("siglip", 0, 1)(images_BD, texts_BD, scale, bias).item() == pytest.approx(sigmoid.item())


def _share(rank: int, ranks: int, kind: str, where: str) -> None:
    """A process: its share of eight pairs, the loss, and the gradient of what it gave to it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{where}/meet", rank=rank, world_size=ranks)
    share = slice(8 * rank // ranks, 8 * (rank + 1) // ranks)
    images_BD, texts_BD = (rows(8, seed)[share].requires_grad_() for seed in (1, 2))
    bias = torch.tensor(-3.0) if kind == "siglip" else None
    loss = contrastive_loss(kind, rank, ranks)(images_BD, texts_BD, torch.tensor(7.0), bias)  # type: ignore[arg-type]
    (loss / ranks).backward()
    torch.save((loss.detach(), images_BD.grad, texts_BD.grad), f"{where}/{kind}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_ranks_together_have_the_loss_and_gradients_of_one(kind: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_share, (2, kind, str(tmp_path)), nprocs=2)
    shares = [torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True) for rank in range(2)]
    images_BD, texts_BD = (rows(8, seed).requires_grad_() for seed in (1, 2))
    bias = torch.tensor(-3.0) if kind == "siglip" else None
    whole = contrastive_loss(kind, 0, 1)(images_BD, texts_BD, torch.tensor(7.0), bias)  # type: ignore[arg-type]
    whole.backward()
    assert torch.stack([loss for loss, *_ in shares]).mean().item() == pytest.approx(whole.item(), abs=1e-12)
    for place, one in ((1, images_BD), (2, texts_BD)):
        torch.testing.assert_close(torch.cat([share[place] for share in shares]), one.grad)


def test_siglip_starts_with_its_scale_and_bias() -> None:
    description = architecture(Recipe(loss="siglip"), 50)
    model = build_model(description)
    assert model.logit_scale.exp().item() == pytest.approx(10)
    assert model.logit_bias is not None
    assert model.logit_bias.item() == -10
    assert build_model(architecture(Recipe(), 50)).logit_bias is None
