"""What the stages after `screen` read of it: which good pictures may be taken, and why the others may not."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from veclip_core.samples import NOT_SCREENED
from veclip_core.stage import ShardTask

SCREEN = "screen"


def admitted(task: ShardTask, columns: list[str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of `download` whose picture is good and may be taken, and the reasons of the good ones that may not, by url_id."""
    columns = list(dict.fromkeys(["url_id", "status", *columns]))
    good = [row for row in task.read("download", columns).to_pylist() if row["status"] == "ok"]
    reasons = reasons_of(task, pa.chunked_array([[row["url_id"] for row in good]], pa.string())).to_pylist()
    refused = {row["url_id"]: reason for row, reason in zip(good, reasons, strict=True) if reason}
    return [row for row in good if row["url_id"] not in refused], refused


def reasons_of(task: ShardTask, url_ids: pa.ChunkedArray) -> pa.Array:
    """For each picture why it may not be taken, or null; all null where nothing is screened.

    A picture without a verdict may not be taken.
    """
    if SCREEN not in task.inputs:
        return pa.nulls(len(url_ids), pa.string())
    verdicts = task.read(SCREEN, ["url_id", "status", "error"])
    place = pc.index_in(url_ids.combine_chunks(), value_set=verdicts["url_id"].combine_chunks())
    reason = pc.if_else(pc.equal(verdicts["status"], "ok"), None, verdicts["error"]).combine_chunks().take(place)
    return pc.if_else(pc.is_null(place), NOT_SCREENED, reason)
