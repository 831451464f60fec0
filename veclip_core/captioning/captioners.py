"""Pairs of models that make captions, by name: VECLIP_CAPTIONER chooses one for any scale.

None but `sample` has been run here: the others need weights from the hub and a GPU.
"""

from dataclasses import dataclass

STAND_IN = "concepts"
RELEASED = "released"
SMALL_FUSER = "smollm2"
LLAVA = "llava-hf/llava-1.5-7b-hf"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.3"
VICUNA = "lmsys/vicuna-13b-v1.1"
QWEN_VL = "Qwen/Qwen3-VL-8B-Instruct"
QWEN = "Qwen/Qwen3-4B-Instruct-2507"


@dataclass(frozen=True)
class Captioner:
    """Who describes and who fuses."""

    name: str
    describer: str
    """Model id or path of a vision-language model; `concepts`, the stand-in; `released` where captions came with the list."""
    fuser: str
    """Model id or path of an instruction model, or `smollm2`. Empty: the describer sees picture and AltText and rewrites it in one
    pass."""
    note: str
    quantization: str = ""
    """vLLM's name of one, such as `fp8`, for both models; empty for the weights as they are."""
    candidates: int = 1
    """Fused captions per sample, of which `select` takes the best."""

    @property
    def one_pass(self) -> bool:
        return not self.fuser


CAPTIONERS: dict[str, Captioner] = {
    captioner.name: captioner
    for captioner in (
        Captioner("sample", STAND_IN, SMALL_FUSER, "runs on a laptop; the describer is a stand-in"),
        Captioner("default", LLAVA, MISTRAL, "a LLaVA describer and an instruction model of 7 billion parameters each"),
        Captioner(
            "paper", LLAVA, VICUNA, "the paper's pair: LLaVA and Vicuna 1.1, with Vicuna's conversation template"
        ),
        Captioner("modern", QWEN_VL, QWEN, "a newer pair; the fuser is half the size"),
        Captioner(
            "one-pass", QWEN_VL, "", "one model rewrites the AltText while it sees the picture, as Altogether does"
        ),
        Captioner(
            "released", RELEASED, "", "no model: captions that came with the URL list, such as Apple's released VeCap"
        ),
    )
}


def captioner_named(name: str) -> Captioner:
    """Raises ValueError that lists the presets."""
    if name not in CAPTIONERS:
        raise ValueError(f"there is no captioner {name!r}; there are {', '.join(CAPTIONERS)}")
    return CAPTIONERS[name]
