"""The notebook runs from top to bottom, on the stand-in and on a checkpoint that is given."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.released_clip import write_folder, write_t5, write_zip
from veclip_core.released_clip import prepared
from veclip_core.training.texts import T5Tokenizer

NOTEBOOK = Path(__file__).parents[2] / "examples" / "released_checkpoint.ipynb"


def run(parameters: str | None = None) -> dict[str, Any]:
    """The names that the cells leave behind; the cell tagged `parameters` may be replaced, as papermill would."""
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"], "stored without what a run printed"
        source = "".join(cell["source"])
        if parameters is not None and "parameters" in cell["metadata"].get("tags", ()):
            source += parameters
        exec(compile(source, f"{NOTEBOOK.name}[{cell['id']}]", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def in_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.syspath_prepend(str(NOTEBOOK.parents[1]))


def test_it_runs_on_the_stand_in_and_says_so() -> None:
    names = run()
    assert names["stand_in"]
    assert "stand-in" in names["scores"].attrs["note"]
    assert names["pixel_values"].shape == (2, 3, 32, 32)
    assert names["scores"].sum(axis=1).to_numpy() == pytest.approx(100, abs=0.1)


def test_it_scores_as_the_releases_own_code_does(tmp_path: Path) -> None:
    """On a zip that is given: `CLIPModel`'s own softmax over the same texts."""
    from transformers import CLIPModel

    folder, t5 = write_folder(tmp_path / "model", seed=7), write_t5(tmp_path / "t5")
    picture = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    archive = write_zip(tmp_path / "vecapdfn_clip_b16.zip", folder, "vecapdfn_clip_b16")
    names = run(f"\nCHECKPOINT, T5_TOKENIZER, PICTURES = {str(archive)!r}, {str(t5)!r}, [{str(picture)!r}]")
    assert not names["stand_in"]
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = T5Tokenizer.load(32, str(t5))(names["TEXTS"])
    with torch.inference_mode():
        pixels = torch.from_numpy(prepared(Image.fromarray(noise), 32))[None]
        expected = model(input_ids=tokens, pixel_values=pixels).logits_per_image.softmax(dim=1).numpy()
    assert names["scores"].to_numpy() == pytest.approx(100 * expected, abs=0.01)
    assert names["config"].model == "vecapdfn_clip_b16"
