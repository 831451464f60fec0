"""The base of every configuration: frozen, validated, and hashable into an identity.

A `Config` holds what changes the *content* of what is made (model, revision, prompt, thresholds, mix). What only changes how
fast it is made (batch size, workers, caches) is kept out of it, so that a faster machine finds the slower one's work.
"""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


def digest_of(value: Any) -> str:
    """SHA-256 in hex of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class Config(BaseModel):
    """Frozen settings that decide content. Unknown fields are refused, so that a misspelling is an error and not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def identity(self) -> str:
        """A digest of the class and of every field; equal exactly when the content would be equal."""
        return digest_of({"config": type(self).__name__, "fields": self.model_dump(mode="json")})
