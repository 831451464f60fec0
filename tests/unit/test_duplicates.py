"""Near-duplicates inside the set: the rule against a plain statement of it, whatever the order, the blocks and the scale."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from veclip_core import storage
from veclip_core.samples import DOWNLOAD_SCHEMA, Grid, ShardKey
from veclip_core.screening import duplicates
from veclip_core.screening.duplicates import DuplicatesConfig, Hashes, find_duplicates, leaders, write_duplicates
from veclip_core.screening.hashes import HashCheck
from veclip_core.screening.look import look_schema
from veclip_core.shards import ShardSet

CONFIG = DuplicatesConfig()


def flipped(code: np.ndarray, bits: int, generator: np.random.Generator) -> np.ndarray:
    mask = np.zeros(256, np.uint8)
    mask[generator.choice(256, bits, replace=False)] = 1
    return code ^ np.packbits(mask)


def families(count: int, generator: np.random.Generator) -> np.ndarray:
    """Hashes in families of changed and again changed copies; uint8 (count, 32)."""
    codes = [generator.integers(0, 256, 32, dtype=np.uint8) for _ in range(count // 5)]
    while len(codes) < count:
        codes.append(flipped(codes[generator.integers(len(codes))], int(generator.integers(0, 45)), generator))
    return np.stack(codes)[generator.permutation(count)]


def hashes_of(codes: np.ndarray, generator: np.random.Generator) -> Hashes:
    ids, files = (generator.integers(0, 256, (len(codes), 16), dtype=np.uint8) for _ in range(2))
    return Hashes(ids, files, codes, np.ones(len(codes), bool))


def plain_rule(codes: np.ndarray, most: int) -> list[int]:
    """The first kept hash before it that is within the distance, one after another."""
    apart = np.unpackbits(codes[:, None] ^ codes[None], axis=2).sum(axis=2)
    kept: list[int] = []
    found = []
    for at in range(len(codes)):
        found.append(next((one for one in kept if apart[at, one] <= most), -1))
        if found[-1] < 0:
            kept.append(at)
    return found


@pytest.mark.parametrize("block", [1, 7, 64, 2_048])
def test_the_search_follows_the_rule_whatever_its_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = families(300, np.random.default_rng(3))
    monkeypatch.setattr(duplicates, "BLOCK", block)
    wanted = plain_rule(codes, CONFIG.distance)
    assert 60 < sum(one >= 0 for one in wanted) < 240
    assert leaders(codes, CONFIG).tolist() == wanted


def test_by_bands_everything_within_23_bits_is_found_and_nothing_beyond_the_distance() -> None:
    generator = np.random.default_rng(4)
    originals = generator.integers(0, 256, (200, 32), dtype=np.uint8)
    near = np.stack([flipped(code, int(generator.integers(0, 24)), generator) for code in originals])
    beyond = np.stack([flipped(code, 32, generator) for code in originals])
    bands = CONFIG.model_copy(update={"search": "bands"})
    found = leaders(np.concatenate([originals, near, beyond]), bands)
    assert found[200:400].tolist() == list(range(200))
    assert (found[400:] == -1).all()


def test_the_answer_does_not_depend_on_the_order_of_reading() -> None:
    generator = np.random.default_rng(5)
    hashes = hashes_of(families(400, generator), generator)
    order = generator.permutation(400)
    shuffled = Hashes(hashes.ids[order], hashes.files[order], hashes.codes[order], hashes.comparable[order])

    def told(of: Hashes) -> dict[bytes, bytes | None]:
        found = find_duplicates(of, CONFIG)
        return {of.ids[at].tobytes(): of.ids[one].tobytes() if one >= 0 else None for at, one in enumerate(found)}

    assert told(shuffled) == told(hashes)
    assert all(copy is None or copy < of_url for of_url, copy in told(hashes).items()), "the smallest id is kept"


def test_a_chain_loses_what_is_near_to_a_kept_picture_and_nothing_else() -> None:
    generator = np.random.default_rng(6)
    first = generator.integers(0, 256, 32, dtype=np.uint8)
    bits = generator.permutation(256)
    links = [first]
    for step in range(3):  # each 20 bits from the one before, 40 and 60 from those before that
        mask = np.zeros(256, np.uint8)
        mask[bits[20 * step : 20 * step + 20]] = 1
        links.append(links[-1] ^ np.packbits(mask))
    assert leaders(np.stack(links), CONFIG).tolist() == [-1, 0, -1, 2]


def test_poor_hashes_are_not_compared_but_equal_files_are_the_same_picture() -> None:
    ids = np.arange(6, dtype=np.uint8)[:, None].repeat(16, 1)
    files = np.array([9, 8, 9, 7, 6, 7], np.uint8)[:, None].repeat(16, 1)
    codes = np.zeros((6, 32), np.uint8)
    codes[3:] = 255
    poor = Hashes(ids, files, codes, np.zeros(6, bool))
    assert find_duplicates(poor, CONFIG).tolist() == [-1, -1, 0, -1, -1, 3]
    good = Hashes(ids, files, codes, np.ones(6, bool))
    assert find_duplicates(good, CONFIG).tolist() == [-1, 0, 0, -1, 3, 3]
    again = Hashes(ids, files[[1, 0, 0, 3, 4, 4]], codes, np.ones(6, bool))
    assert find_duplicates(again, CONFIG).tolist() == [-1, 0, 0, -1, 3, 3], "what is copied is a kept picture"
    some = Hashes(ids, files, codes, np.array([True, True, True, False, True, False]))
    assert find_duplicates(some, CONFIG).tolist() == [-1, 0, 0, -1, -1, 3]


def test_a_thousand_equal_hashes_are_one_picture() -> None:
    codes = np.zeros((3_000, 32), np.uint8)
    assert leaders(codes, CONFIG).tolist() == [-1, *[0] * 2_999]


def write_look(root: Path, grid: Grid, codes: np.ndarray) -> tuple[ShardSet, ShardSet]:
    """Tables of `look` and `download`, with markers, of pictures whose ids spread over the grid."""
    look, download = (ShardSet(str(root), "test", stage, "0" * 16) for stage in ("look", "download"))
    keys = grid.keys()
    rows: dict[ShardKey, list[dict[str, object]]] = {key: [] for key in keys}
    for at, code in enumerate(codes):
        url_id = hashlib.sha256(str(at).encode()).hexdigest()[:32]
        rows[grid.key_of(url_id)].append(
            {"url_id": url_id, "status": "ok", "pdq": code.tobytes().hex(), "pdq_quality": 99, "sha256": None}
        )
    for key, some in rows.items():
        some.sort(key=lambda row: str(row["url_id"]))
        for shards, schema in ((look, look_schema([HashCheck()])), (download, DOWNLOAD_SCHEMA)):
            Path(shards.file(key, "parquet")).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(some, schema=schema), shards.file(key, "parquet"))
            storage.write_json(
                shards.file(key, "success.json"), {"sha256": f"{key} of {len(some)}", "rows_ok": len(some)}
            )
    return look, download


def test_a_larger_scale_says_of_the_smaller_one_s_pictures_what_that_said(tmp_path: Path) -> None:
    grid = Grid(3, 2)
    look, download = write_look(tmp_path, grid, families(240, np.random.default_rng(7)))
    small = write_duplicates(look, download, grid.keys(1), CONFIG)
    before = {key: (small.marker(key), small.read_table(key).to_pylist()) for key in grid.keys(1)}
    assert sum(len(rows) for _, rows in before.values()) > 10
    keys = grid.keys()
    large = write_duplicates(look, download, keys, CONFIG)
    assert large == small
    assert {key: (large.marker(key), large.read_table(key).to_pylist()) for key in grid.keys(1)} == before
    ids = {row["url_id"] for key in keys for row in look.read_table(key).to_pylist()}
    found = [row for key in keys for row in large.read_table(key).to_pylist()]
    assert {row["url_id"] for row in found} <= ids
    assert not {row["copy_of"] for row in found} & {row["url_id"] for row in found}, "what is copied is kept"


def test_nothing_is_gathered_again_while_the_shards_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid(1, 2)
    look, download = write_look(tmp_path, grid, families(60, np.random.default_rng(8)))
    done = write_duplicates(look, download, grid.keys(), CONFIG)
    monkeypatch.setattr(duplicates, "gather", None)
    assert write_duplicates(look, download, grid.keys(), CONFIG) == done
    with pytest.raises(TypeError):
        write_duplicates(look, download, grid.keys(), CONFIG.model_copy(update={"distance": 20}))
