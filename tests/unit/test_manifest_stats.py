"""What a manifest holds, in numbers."""

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from veclip_core.mixing.manifest import mix_schema
from veclip_core.mixing.manifest_stats import as_text, manifest_stats


@pytest.mark.parametrize("remote", [False, True])
def test_numbers_of_a_manifest(tmp_path: Path, remote: bool) -> None:
    base = "memory://stats" if remote else str(tmp_path)
    rows = [
        {"sample_id": f"s{n}", "url_id": f"u{n // 2}", "tar": f"t{n % 3}", "bytes": 10, "alt": "" if n % 4 == 0 else f"tea {n}",
         "vec": "a cup", "vecap": f"a cup of tea {n}", "vecap_status": "fused" if n else "alt", "vecap_short": " "}
        for n in range(20)
    ]  # fmt: skip
    for number in range(2):
        table = pa.Table.from_pylist(rows[number * 10 : number * 10 + 10], schema=mix_schema(["vecap_short"]))
        with fsspec.open(f"{base}/{number}.parquet", "wb") as file:
            pq.write_table(table, file)
    told = {"digest": "d1", "columns": ["alt", "vec", "vecap", "vecap_short"], "files": ["0.parquet", "1.parquet"],
            "tars_relative_to": base, "errors": {"removed": 3}}  # fmt: skip
    with fsspec.open(f"{base}/sample.manifest.json", "w") as file:
        json.dump(told, file)
    found = manifest_stats(f"{base}/sample.manifest.json")
    assert (found.rows, found.pictures, found.tars, found.picture_bytes) == (20, 10, 3, 200)
    assert {name: (column.rows, column.mean_words) for name, column in found.columns.items()} == {
        "alt": (15, 2.0), "vec": (20, 2.0), "vecap": (20, 5.0), "vecap_short": (0, 0.0),
    }  # fmt: skip
    assert found.columns["vec"].distinct == 1
    assert found.statuses == {"fused": 19, "alt": 1}
    text = as_text(found)
    assert "removed 3" in text
    assert "75.0%" in text
