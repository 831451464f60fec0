"""Template fusion: AltText and VeC one after the other, without a language model."""


def template_fusion(alt_text: str, vec: str) -> str:
    """`{AltText}, {VeC}`: what stands where no fused caption does, and an arm to compare the language model with."""
    return ", ".join(text for text in (alt_text.strip(), vec.strip()) if text)
