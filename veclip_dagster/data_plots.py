"""What to look at in a run of `shards_S` and `vecap_S`, as metadata: hosts that lost pictures, texts that were refused."""

import dagster as dg

from veclip_core.download.hosts import dead_share, hosts_of
from veclip_core.evaluation.report.caption_page import CaptionQuality
from veclip_core.pipeline.data import Chain
from veclip_core.shards import ShardSet
from veclip_core.stage_report import StageReport
from veclip_dagster import metadata

HOSTS_SHOWN = 30
HOSTS_DRAWN = 12


def of_hosts(chain: Chain, report: StageReport) -> dict[str, dg.MetadataValue]:
    """Which hosts lost pictures, and how many links are dead."""
    found = {"download/dead_links": metadata.number(dead_share(report.errors, report.rows_in))}
    downloads = ShardSet(chain.root, chain.source, report.stage, report.identity)
    done = downloads.markers(chain.current("list_urls", "raw_urls").shard_keys())
    lossy = [host for host in hosts_of(downloads, sorted(done)) if host.reasons][:HOSTS_SHOWN]
    if not lossy:
        return found
    rows = [
        dg.TableRecord(
            {
                "host": host.name,
                "urls": host.urls,
                "ok": round(host.ok_share, 3),
                "commonest reason": host.commonest_reason,
            }
        )
        for host in lossy
    ]
    lost = {host.name: float(host.reasons.total()) for host in lossy[:HOSTS_DRAWN]}
    return found | {
        "download/hosts": dg.MetadataValue.table(rows),
        "download/hosts_plot": metadata.bars(lost, "URLs without a picture, by host"),
    }


def of_quality(found: CaptionQuality) -> dict[str, dg.MetadataValue]:
    """Why answers and texts were refused, and what texts are like, to look at in the run."""
    plots = {}
    if rejections := found.rejections():
        plots["answers_refused"] = metadata.bars(rejections, "answers refused by the check, by reason")
    if refusals := found.refusals():
        plots["texts_refused"] = metadata.bars(refusals, "texts refused before fusion")
    names = {"alt_text": "AltText", "vec": "VeC", "vecap": "VeCap"}
    lengths = {
        names[text]: [(float(length), float(count)) for length, count in of.lengths.items()]
        for text, of in found.statistics.by_text.items()
        if of.texts
    }
    return plots | {"lengths": metadata.curve(lengths, "words of a text", "texts", x="words")}
