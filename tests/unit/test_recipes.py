"""The recipes as a table: values with their standing, and identities that must stay."""

import pytest
from typer.testing import CliRunner

from veclip_core.cli import app
from veclip_core.cli_training import what_differs, what_is_common
from veclip_core.training.recipe import LARGE, MIX, RECIPES

IDENTITIES = {
    "sample": "3bf4dfa50488c15b",
    "3m": "d4f424bd6a86c276",
    "12m": "920fbc218bc80711",
    "100m": "89fcbd5bbc2766eb",
    "200m": "f0ab6cb2860504a5",
    "300m": "2eb6907d29bb390c",
    "300m-l14": "fe674ae688e273eb",
    "300m-h14-336": "8013e446c3bbe5b8",
}
"""Trainings lie in folders that are named by them: another identity is another training."""

PUBLISHED = {
    "learning_rate": 5e-4, "warmup_steps": 2_000, "weight_decay": 0.2, "betas": (0.9, 0.98), "context_length": 77,
}  # fmt: skip
OF_RECIPE = {
    "3m": {"model": "ViT-B-16", "image_size": 224},
    "12m": {"model": "ViT-B-16", "image_size": 224},
    "100m": {"model": "ViT-B-16", "image_size": 224, "batch_size": 32_768},
    "200m": {"model": "ViT-B-16", "image_size": 224, "batch_size": 32_768},
    "300m": {"model": "ViT-B-16", "image_size": 224, "batch_size": 32_768, "steps": 439_087},
    "300m-l14": {"model": "ViT-L-14", "image_size": 224, "batch_size": 32_768},
    "300m-h14-336": {"model": "ViT-H-14", "image_size": 336, "batch_size": 32_768},
}
"""What public sources say, written down once more: whatever else is called read must not be."""


def test_recipes_keep_their_identity() -> None:
    assert {name: recipe.identity()[:16] for name, recipe in RECIPES.items()} == IDENTITIES


@pytest.mark.parametrize("name", LARGE)
def test_what_is_called_read_is_what_the_sources_say(name: str) -> None:
    called_read = {field: one.value for field, one in LARGE[name].items() if one.standing == "S"}
    assert called_read == PUBLISHED | OF_RECIPE[name]
    assert {field: getattr(RECIPES[name], field) for field in called_read} == called_read
    assert MIX.standing == "R"
    assert all(one.note for one in LARGE[name].values())


def test_the_tables_show_every_value_with_its_standing() -> None:
    header, rows = what_differs()
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(by_name) == list(RECIPES)
    assert by_name["12m"]["batch_size"] == "8,192 [R]"
    assert by_name["12m"]["samples seen"] == "384,000,000 [R]"
    assert (by_name["300m"]["steps"], by_name["300m"]["samples seen"]) == ("439,087 [S]", "14,388,002,816 [D]")
    assert (by_name["300m-h14-336"]["image_size"], by_name["300m-h14-336"]["steps"]) == ("336 [S]", "439,087 [R]")
    header_of_common, common = what_is_common()
    fields = {row[0]: dict(zip(header_of_common, row, strict=True)) for row in common}
    assert fields["learning_rate"]["large scales"] == "0.0005 [S]"
    assert fields["mix"]["large scales"] == "alt 0.5, vecap 0.5 [R]"
    assert fields["tokenizer"]["published"] == "T5's, lower-cased [S]"
    assert set(header) | set(fields) >= set(LARGE["12m"])


def test_the_command_prints_them() -> None:
    shown = CliRunner().invoke(app, ["recipes"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "32,768 [S]" in shown.stdout, "brackets are no markup"
    assert "reconstructed or chosen here" in shown.stdout
