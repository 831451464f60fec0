"""A language model of random weights: what it says is noise, but prompts go all the way through it."""

from pathlib import Path

from veclip_core.captioning.engines.weights import converted_smollm2


def save_tiny_llm(folder: Path, weights_dir: Path) -> Path:
    """Save model and tokenizer in `folder`; the tokenizer and its chat template are SmolLM2's."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(converted_smollm2(weights_dir))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer),
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
