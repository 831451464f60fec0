"""Mixtures of a scale's manifests with each other and with others'."""

from veclip_core import storage
from veclip_core.mixing.mixture import MIXTURES, Mixture, mixture_of, read_mixture, write_mixture
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.manifests import address_of_manifest
from veclip_core.shards import NotMadeYet

OF_A_SCALE = ("manifest", "dfn_manifest")
"""Manifests that a mixture may name without an address."""


def make_mixture(chain: Chain) -> tuple[Mixture, str]:
    """Mix manifests by the settings' weights; the mixture and its address.

    Raises:
        NotMadeYet: when a manifest of the scale is missing.
        MixtureError: for another's that is not there, and for weights that are none.
    """
    mixture = _as_settings_say(chain)
    return mixture, write_mixture(_folder(chain), chain.scale.name, mixture)


def current_mixture(chain: Chain) -> Mixture:
    """The scale's mixture.

    Raises:
        NotMadeYet: with the command that makes it, also when manifests or weights have changed since it was made: rows that were
            removed from a manifest must not be trained on because an older one still lies there.
    """
    name = f"dfn_mixture_{chain.scale.name}"
    again = f"Run `dagster asset materialize --select {name}` (or `veclip run dfn_mixture --scale {chain.scale.name}`) first."
    found = read_mixture(_folder(chain), chain.scale.name)
    if found is None:
        raise NotMadeYet(f"{name} is not made yet at {chain.root}. {again}")
    if found.digest != _as_settings_say(chain).digest:
        raise NotMadeYet(f"{name} is of other manifests, or of other weights, than those of now. {again}")
    return found


def _as_settings_say(chain: Chain) -> Mixture:
    weights = {}
    for name, weight in chain.settings.mixture.items():
        weights[address_of_manifest(chain, name) if name in OF_A_SCALE else name] = weight
    return mixture_of(weights)


def _folder(chain: Chain) -> str:
    return storage.join(chain.root, chain.source, MIXTURES)
