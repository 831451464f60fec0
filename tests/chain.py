"""The real data stages on a small list, cut into two shards; run as a program so that tests can kill it and start it again."""

import sys

from veclip_core.pipeline.captions import make_captions
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.manifests import make_manifest
from veclip_core.scales import Scale, Source
from veclip_core.settings import Settings

TINY = Scale(
    "tiny",
    Source("tiny", rows_per_part=12, rows_per_shard=12, max_pixels=16_000_000, description="a few rows"),
    parts=2,
    captioner="sample",
    recipe="sample",
)


def run(settings: Settings) -> None:
    chain = Chain(settings, TINY)
    chain.raw_urls()
    chain.shards()
    make_captions(chain)
    make_manifest(chain)


if __name__ == "__main__":
    run(Settings.from_environment())
    sys.exit(0)
