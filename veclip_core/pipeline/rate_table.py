"""Tables of measured rates at a root: a row a measurement, the newest last."""

from collections.abc import Mapping
from typing import Any

from veclip_core import storage
from veclip_core.leases import Lease
from veclip_core.settings import Settings
from veclip_core.training.devices import name_of
from veclip_core.training.world import World


def read(settings: Settings, table: str) -> list[dict[str, Any]]:
    """The rows of a table, such as `benchmarks/captioning.json`; none where nothing was measured."""
    try:
        return list(storage.read_json(storage.join(settings.root, table)))
    except FileNotFoundError:
        return []


def add(settings: Settings, table: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table with one row more. Two that add at the same time do so one after the other."""
    folder, _, name = table.rpartition("/")
    with Lease.wait_for(storage.join(settings.root, folder, "leases"), name):
        rows = [*read(settings, table), dict(row)]
        storage.write_json(storage.join(settings.root, table), rows)
    return rows


def as_text(rows: list[dict[str, Any]]) -> str:
    names = list(rows[-1])
    cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def device_name() -> str:
    """This machine's GPU, or its processor where there is none."""
    return name_of(World.alone().device)
