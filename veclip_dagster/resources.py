"""The one resource: where data lies and which engines run. Empty fields take what the environment says."""

import dagster as dg

from veclip_core.settings import Settings


class VeclipResource(dg.ConfigurableResource):
    """Overrides for `veclip_core.settings.Settings`, from the launchpad or a deployment's configuration."""

    root: str = ""
    """Folder or `s3://bucket/prefix` of all data (VECLIP_ROOT)."""
    urls: str = ""
    """URL list of the large scales (VECLIP_URLS)."""
    describer: str = ""
    """Describing model (VECLIP_DESCRIBER)."""
    fuser: str = ""
    """Fusing model (VECLIP_FUSER)."""
    captioner: str = ""
    """Pair of models by name (VECLIP_CAPTIONER)."""
    pictures: str = ""
    """Your own pictures, for the scale `own` (VECLIP_PICTURES)."""
    alt_texts: str = ""
    """Their table of AltTexts (VECLIP_ALT_TEXTS)."""

    def settings(self) -> Settings:
        given = {
            name: value
            for name in ("root", "urls", "describer", "fuser", "captioner", "pictures", "alt_texts")
            if (value := getattr(self, name))
        }
        return Settings.from_environment().model_copy(update=given)
