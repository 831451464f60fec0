"""CLIP models by name, with what settings say of where their files are."""

from veclip_core.networks import NetworkConfig, ReleasedFiles, network_config
from veclip_core.settings import Settings
from veclip_core.training.texts import T5_HUB


def network_named(name: str, settings: Settings) -> NetworkConfig:
    """See `networks.network_config`."""
    return network_config(name, settings.root, released_files(settings))


def released_files(settings: Settings) -> ReleasedFiles:
    return ReleasedFiles(
        cache=settings.cache_folder / "released_checkpoints",
        tokenizer=settings.t5_tokenizer or T5_HUB,
        allowed_hosts=frozenset(settings.allow_hosts),
    )
