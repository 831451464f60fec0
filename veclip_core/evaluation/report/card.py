"""The data card as text: it lies beside the manifest it tells of, and Dagster shows it."""

from veclip_core.evaluation.report.inputs import DataCard

_AS_ENTITIES = {ord(char): f"&#{ord(char)};" for char in "&<>`*[]|"}
"""What a renderer would read as more than text; the card is also read as it is."""


def as_markdown(card: DataCard, title: str) -> str:
    """Sources and licences, what each stage lost and why, how the captions came to be, stand-ins, remarks."""
    lines = [
        f"# {_escaped(title)}",
        "",
        "## Sources",
        "",
        "| source | use | terms | items | remark |",
        "|---|---|---|---:|---|",
    ]
    for source in card.sources:
        items = "" if source.items is None else f"{source.items:,}"
        cells = (source.name, source.use, source.licence, items, source.note or "")
        lines.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    lines += [
        "",
        "## What each stage made of its rows",
        "",
        "| stage | in | ok | lost, by reason |",
        "|---|---:|---:|---|",
    ]
    for stage in card.stages:
        lost = ", ".join(f"{reason} {count:,}" for reason, count in stage.errors.items())
        lines.append(f"| {stage.stage} | {stage.rows_in:,} | {stage.rows_ok:,} | {_escaped(lost)} |")
    if card.caption_statuses:
        lines += ["", "## How the captions came to be", ""]
        lines += [f"- {_escaped(status)}: {count:,}" for status, count in card.caption_statuses.items()]
    if card.stand_ins:
        lines += ["", "## Stand-ins", ""]
        for one in card.stand_ins:
            lines.append(f"- {one.part}: {one.stand_in}, in place of {one.stands_for}. {one.note or ''}".rstrip())
    lines += ["", "## Remarks", "", *(f"- {_escaped(note)}" for note in card.notes)]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_AS_ENTITIES)
