"""Addresses as others may read them."""

import pytest

from veclip_core.storage import shown


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://me:secret@host/l.csv?X-Amz-Signature=abc", "https://host/l.csv"),
        ("http://host:8080/a/b@c.json", "http://host:8080/a/b@c.json"),
        ("s3://bucket/what?.parquet", "s3://bucket/what?.parquet"),
        ("/local/folder?/list.tsv", "/local/folder?/list.tsv"),
        ("https://host?token=abc", "https://host"),
    ],
)
def test_nothing_secret_is_shown(address: str, expected: str) -> None:
    assert shown(address) == expected
