"""Assets of what others have released."""

import time

import dagster as dg

from veclip_core.config import digest_of
from veclip_core.pipeline.released import fetch_captions, url_list_of
from veclip_dagster.failures import clear_failures
from veclip_dagster.resources import VeclipResource

TELL_EVERY_S = 30.0


@dg.asset(
    group_name="released",
    kinds={"json"},
    owners=["team:data"],
    description="Apple's released captions of VeCap-300M: ten files of {url: caption}, fetched by their list"
    " (VECLIP_RELEASED_CAPTIONS), gone on with where they were cut off. VECLIP_URLS and VECLIP_CAPTIONER=released use them.",
)
def released_captions_300m(context: dg.AssetExecutionContext, veclip: VeclipResource) -> dg.MaterializeResult:
    told = time.monotonic()

    def tell(name: str, done: int, whole: int | None) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            context.log.info(f"{name}: {done / 1e6:,.0f} MB{f' of {whole / 1e6:,.0f}' if whole else ''}")

    with clear_failures():
        settings = veclip.settings()
        fetched = fetch_captions(settings, tell)
    rows = [
        dg.TableRecord({"file": one.name, "bytes": one.bytes, "sha256": one.sha256, "from": one.url}) for one in fetched
    ]
    return dg.MaterializeResult(
        metadata={
            "files": dg.MetadataValue.table(rows),
            "bytes": sum(one.bytes for one in fetched),
            "VECLIP_URLS": dg.MetadataValue.text(url_list_of(settings)),
        },
        data_version=dg.DataVersion(digest_of([[one.name, one.sha256] for one in fetched])),
    )
