"""The real data stages on a small list, cut into a few shards; run as a program so that tests can kill it and start it again.

What to do may be named, with parts where some are meant (`shards:1-1`); without names all assets are made.
`removal` takes out of them what VECLIP_REMOVED lists.
"""

import sys
from collections.abc import Sequence

from veclip_core.mixing.removals import read_removals
from veclip_core.pipeline.captions import make_captions
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.manifests import make_manifest
from veclip_core.pipeline.removal import remove
from veclip_core.samples import PartRange
from veclip_core.scales import Scale, Source
from veclip_core.settings import Settings

TINY = Scale(
    "tiny",
    Source("tiny", rows_per_part=12, rows_per_shard=12, max_pixels=16_000_000, description="a few rows"),
    parts=2,
    captioner="sample",
    recipe="sample",
)
ASSETS = ("raw_urls", "shards", "vecap", "manifest")
STEPS = {
    "raw_urls": Chain.raw_urls,
    "shards": Chain.shards,
    "vecap": make_captions,
    "manifest": make_manifest,
    "removal": lambda chain: remove(chain.root, chain.source, read_removals(chain.settings.removed)),
}


def run(settings: Settings, steps: Sequence[str] = ASSETS) -> None:
    chain = Chain(settings, TINY)
    for step in steps:
        name, _, only = step.partition(":")
        STEPS[name](chain, **({"only": PartRange.parse(only)} if only else {}))


if __name__ == "__main__":
    run(Settings.from_environment(), sys.argv[1:] or ASSETS)
    sys.exit(0)
