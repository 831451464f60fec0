"""File names of reports."""

import re

from veclip_core.config import digest_of

LONGEST_NAME = 100
"""Bytes; file systems take 255 with the ending, and a person wants to read it."""


def as_file_name(name: str) -> str:
    """Letters, digits and few signs; where it is too long, its beginning and a digest of the whole, so that two stay two."""
    plain = re.sub(r"[^\w.+-]+", "_", name).strip("._") or "evaluation"
    if len(plain.encode()) <= LONGEST_NAME:
        return plain
    digest = digest_of(name)[:8]
    return f"{plain.encode()[: LONGEST_NAME - 1 - len(digest)].decode(errors='ignore')}_{digest}"
