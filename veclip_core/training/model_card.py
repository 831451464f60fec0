"""The README of an exported checkpoint: what it is, what it was trained on, and what is not known of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from veclip_core.training.recipe import SAMPLE_MODEL
from veclip_core.training.texts import Tokenizer

LOADED_BY = {
    "transformers": 'model = transformers.CLIPModel.from_pretrained("PATH OF THIS FOLDER")',
    "open_clip": 'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH OF THIS FOLDER")',
}


def model_card(
    state: Mapping[str, Any],
    tokenizer: Tokenizer,
    library: str,
    results: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> str:
    """Markdown for `README.md`.

    Args:
        state: a checkpoint's.
        library: a key of `LOADED_BY`.
        results: rows of `results_of`.
        notes: further sentences, such as which stand-ins made the captions.
    """
    recipe, done = state["recipe"], state["done"]
    drawn = ", ".join(f"{source} {count:,}" for source, count in done["choices"].items())
    if recipe["model"] == SAMPLE_MODEL:
        notes = (f"`{SAMPLE_MODEL}` is a small stand-in for the paper's ViTs, made to be trained on a laptop.", *notes)
    facts = {
        "model": f"{recipe['model']}, {state['parameters']:,} parameters, pictures of {recipe['image_size']} px",
        "tokenizer": _tokenizer_in_words(tokenizer),
        "trained": f"{done['step']:,} of {recipe['steps']:,} steps of {state['batch_size']:,} pairs, {done['samples']:,} in all",
        "texts drawn": drawn or "none",
        "precision": f"{state['precision']} on {state['device']}, torch {state['torch']}",
        "training": f"`{state['identity']}` (recipe and data together)",
        "data": f"manifest `{state['manifest_digest']}`",
    }
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: zero-shot-image-classification",
        "tags: [clip, veclip]",
        "---",
        "",
        f"# {recipe['model']} trained on pictures and captions",
        "",
        "A CLIP model trained by veclip-dagster, which rebuilds the pipeline of the paper VeCLIP (arXiv 2310.07699). It is not one"
        " of the paper's own checkpoints.",
        "",
        "```python",
        f"import {library}",
        LOADED_BY[library],
        "```",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        *(line for note in notes for line in (note, "")),
        "## Recipe",
        "",
        "| field | value |",
        "|---|---|",
        *(f"| {name} | `{value}` |" for name, value in recipe.items()),
        "",
        "## Pictures and texts",
        "",
        f"Trained on pictures made square by `{recipe['fit']}` at {recipe['cache_size']} px, of which the model saw"
        f" {recipe['image_size']} px: a random crop in training, the middle in the project's own evaluation. Mean and deviation are"
        f" OpenAI's. {_texts_in_words(tokenizer, library)}",
        "",
        "## Results",
        "",
        *(_results_table(results) if results else ["None were given when this was exported."]),
        "",
        "## Licence",
        "",
        "None is stated. Pictures and texts on the web belong to others; who publishes these weights must say under which terms.",
        "",
    ]
    return "\n".join(lines)


def results_of(report: Mapping[str, Any], checkpoint: str) -> list[Mapping[str, Any]]:
    """The rows of an evaluation report (`results.json`) about the model that a checkpoint belongs to.

    Raises:
        ValueError: when the report is about others.
    """
    models = {one["model"] for one in report["trainings"] if one["checkpoint"].rstrip("/") == checkpoint.rstrip("/")}
    if not models:
        evaluated = ", ".join(sorted(one["checkpoint"] for one in report["trainings"]))
        raise ValueError(f"the report is not about {checkpoint}, but about {evaluated}")
    return [row for row in report["summary"] if row["model"] in models and row["split"] == "all"]


def _results_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "Means over the seeds of the report, with 95 % intervals.",
        "",
        "| metric | value | interval | chance |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['metric']} | {row['value']:.2f} | {row['low']:.2f} to {row['high']:.2f} | {row['chance']:.2f} |"
        for row in results
    ]
    return lines


def _tokenizer_in_words(tokenizer: Tokenizer) -> str:
    kind = tokenizer.to_json()["kind"]
    named = {
        "bpe": "CLIP's byte pairs",
        "bpe-in-use": f"CLIP's byte pairs, of which training used {tokenizer.vocab_size - 3:,}; the others' embeddings are zero",
        "t5": "T5's pieces, lower-cased",
    }[kind]
    return f"{named}; {tokenizer.context_length} tokens at most"


def _texts_in_words(tokenizer: Tokenizer, library: str) -> str:
    if tokenizer.to_json()["kind"] != "t5":
        return "Texts are lower-cased byte pairs; HTML escapes were undone in training."
    also = " open_clip mends encodings and HTML escapes before it." if library == "open_clip" else ""
    return f"The tokenizer in this folder lower-cases by itself.{also}"
