"""Whether the control's captions belong beside the others: their ids would match in any case."""

from typing import Any

from veclip_core import storage
from veclip_core.shards import Current, NotMadeYet


def require_same_captions(root: str, source: str, captions: Current, control: Current, manifest: Current) -> None:
    """Raises NotMadeYet where the control, or the manifest that it is to stand beside, is made from other captions."""
    s = captions.scale
    if any(manifest.inputs[stage] != identity for stage, identity in captions.inputs.items()):
        raise NotMadeYet(
            f"manifest_{s} is made from other captions than the current vecap_{s}. Run `dagster asset materialize --select"
            f" manifest_{s}` (or `veclip run manifest --scale {s}`) first."
        )

    def config_of(made: Current, stage: str) -> Any:
        shards = made.input(root, source, stage)
        return storage.read_json(storage.join(shards.uri, "config.json"))["config"]

    same_pictures = all(
        control.inputs[stage] == captions.inputs[stage] for stage in ("list_urls", "download", "describe")
    )
    same_settings = all(
        config_of(control, stage) == config_of(captions, stage) for stage in ("check", "fuse", "select")
    )
    if not (same_pictures and same_settings and control.parts == captions.parts):
        what = "other descriptions" if same_settings else "other settings"
        raise NotMadeYet(
            f"vecap_control_{s} is made with {what} than the current vecap_{s}. Run `dagster asset materialize --select"
            f" vecap_control_{s}` (or `veclip run vecap_control --scale {s}`) with the same models first."
        )
