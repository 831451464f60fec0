"""Assets of what others have released: Apple's captions, and Apple's checkpoints beside the scores published for them."""

import time

import dagster as dg

from veclip_core.config import digest_of
from veclip_core.evaluation.paper import COLUMNS, TOLERANCE, PaperVerdict
from veclip_core.pipeline import reproduction
from veclip_core.pipeline.released import fetch_captions, url_list_of
from veclip_core.settings import SettingsError
from veclip_dagster.failures import clear_failures
from veclip_dagster.links import mlflow_links
from veclip_dagster.model_assets import scores_table
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


@dg.asset(
    group_name="released",
    kinds={"pytorch", "huggingface"},
    owners=["team:research"],
    description="Apple's released checkpoints, those that VECLIP_RELEASED_CHECKPOINTS names or that lie in released/checkpoints:"
    " fetched where it names addresses, unpacked, checked and pinned by a digest of their weights and tokenizer.",
)
def released_checkpoints(veclip: VeclipResource) -> dg.MaterializeResult:
    with clear_failures():
        settings = veclip.settings()
        found = reproduction.given(settings)
        if not found.checkpoints:
            raise SettingsError(
                "no released checkpoint is given. These commands get them:\n"
                + "\n".join(one.command for one in found.missing if one.kind == "checkpoint")
            )
        models = reproduction.models_of(found, settings)
    pinned = [
        {
            "checkpoint": model.candidate.name,
            "from": model.told,
            "revision": model.candidate.network.revision or "",
            "folder": model.candidate.network.folder or "",
        }
        for model in models
    ]
    return dg.MaterializeResult(
        metadata={
            "checkpoints": dg.MetadataValue.table([dg.TableRecord(row) for row in pinned]),
            **_missing(found),
        },
        data_version=dg.DataVersion(digest_of([[row["checkpoint"], row["revision"]] for row in pinned])),
    )


@dg.asset(
    deps=[released_checkpoints],
    group_name="released",
    kinds={"pytorch", "mlflow"},
    owners=["team:research"],
    pool="gpu",
    description="The released checkpoints on the paper's sets, as far as both are given: each score beside the published one, with"
    f" a verdict at {TOLERANCE} points.",
)
def released_report(veclip: VeclipResource) -> dg.MaterializeResult:
    with clear_failures():
        settings = veclip.settings()
        found = reproduction.given(settings)
        made = reproduction.reproduce(found, settings)
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.path(made.report_uri),
            "results": dg.MetadataValue.path(made.results_uri),
            "scores": scores_table(made.results),
            "verdicts": dg.MetadataValue.table([_verdict_row(one) for one in made.verdicts]),
            "hold": sum(one.holds is True for one in made.verdicts),
            "do_not_hold": sum(one.holds is False for one in made.verdicts),
            **_missing(found),
            **mlflow_links(settings, made.run_ids),
        },
        data_version=dg.DataVersion(made.results["identity"]),
    )


def _verdict_row(one: PaperVerdict) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "checkpoint": one.model,
            "score": COLUMNS[one.column],
            "measured": round(one.measured, 2),
            "published": one.published,
            "difference": round(one.difference, 2),
            "verdict": one.word,
            "note": "; ".join(filter(None, (one.note, one.misprint))),
        }
    )


def _missing(found: reproduction.Given) -> dict[str, dg.MetadataValue]:
    """What was not given, with the command that gets it."""
    if not found.missing:
        return {}
    rows = [
        dg.TableRecord({"missing": one.name, "command": one.command, "listed": one.listed}) for one in found.missing
    ]
    return {"missing": dg.MetadataValue.table(rows)}
