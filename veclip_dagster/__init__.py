"""The Dagster project: assets, checks, resources. The work itself is in `veclip_core`."""
