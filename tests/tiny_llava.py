"""A LLaVA of random weights: what it says is noise, but pictures go all the way through it, in transformers and in vLLM alike."""

from pathlib import Path
from typing import Any

from veclip_core.captioning.engines.weights import converted_smollm2

CHAT_WITH_PICTURE = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% for piece in message['content'] %}"
    "{% if piece['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ piece['text'] }}{% endif %}{% endfor %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
PREFIXES = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""How transformers 5 names the weights -> how the models on the hub do, which is what vLLM reads."""


def save_tiny_llava(folder: Path, weights_dir: Path, seed: int = 0) -> Path:
    """Save model and processor in `folder`, with the weights' names as on the hub; the tokenizer is SmolLM2's."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(converted_smollm2(weights_dir))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer),
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    parts: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": image_token}
    model = LlavaForConditionalGeneration(LlavaConfig(**parts))
    # Large embeddings make the answers of random weights differ from picture to picture.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    images: Any = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT_WITH_PICTURE,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({_hub_name(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


def _hub_name(name: str) -> str:
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return f"vision_tower.vision_model.{name.removeprefix('vision_tower.')}"
    found = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
    return name if found is None else PREFIXES[found] + name.removeprefix(found)
