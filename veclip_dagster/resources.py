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

    def settings(self) -> Settings:
        given = {name: value for name in ("root", "urls", "describer", "fuser") if (value := getattr(self, name))}
        return Settings.from_environment().model_copy(update=given)
