"""How evaluation sets are named: a catalogue, paths, and what is said of those that are not there."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.unit.evaluation_world import write_openmoji
from tests.unit.set_layouts import captions, retrieval_samples, write_karpathy, write_pictures, write_webdataset
from veclip_core.cli import app
from veclip_core.evaluation.layouts.class_names import templates_named
from veclip_core.evaluation.set_catalogue import read_catalogue
from veclip_core.evaluation.set_specs import open_set
from veclip_core.evaluation.sets import EvaluationSetError
from veclip_core.pipeline import models, models_evaluation
from veclip_core.pipeline.models_evaluation import Asked
from veclip_core.pipeline.sets import set_named
from veclip_core.settings import Settings


def catalogue(folder: Path, text: str) -> str:
    path = folder / "sets.yaml"
    path.write_text(text)
    return str(path)


def test_a_set_by_every_way_of_naming_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_openmoji(tmp_path / "cache" / "world" / "openmoji")
    folder = write_webdataset(tmp_path / "flickr", retrieval_samples(captions(12)), kind="retrieval")
    told = catalogue(tmp_path, "f30k: flickr\nsugar:\n  path: flickr\n  choice: true\n")
    settings = Settings.from_environment(
        {"VECLIP_ROOT": str(tmp_path), "VECLIP_CACHE": str(tmp_path / "cache"), "VECLIP_EVALUATION_SETS": told}
    )
    assert set_named("openmoji", settings).name == "openmoji"
    assert len(set_named("f30k", settings)) == 12
    assert set_named("sugar", settings).right_M is not None
    assert set_named(f"mine={folder}", settings).name == "mine"
    assert set_named(str(folder), settings).name == "flickr"
    monkeypatch.chdir(tmp_path)
    assert set_named("flickr", settings).name == "flickr"
    contents = {set_named(name, settings).content for name in ("f30k", "flickr", f"mine={folder}")}
    assert len(contents) == 1


@pytest.mark.parametrize("told", ["nowhere", "mine=nowhere", "/no/where", "mine=/no/where", "no/where", "mine="])
def test_a_set_that_is_not_there(tmp_path: Path, told: str) -> None:
    with pytest.raises(EvaluationSetError, match=r"there is no evaluation set .*VECLIP_EVALUATION_SETS"):
        open_set(told, tmp_path, catalogue(tmp_path, "coco: /data/coco"))


def test_the_samples_name_is_its_own(tmp_path: Path) -> None:
    """Its classes are told as drawings, which others' are not."""
    folder = write_webdataset(tmp_path / "openmoji", retrieval_samples(captions(12)), kind="retrieval")
    for told in (str(folder), f"openmoji={folder}"):
        with pytest.raises(EvaluationSetError, match=r"openmoji is the name of the sample's own set.* by NAME=PATH"):
            open_set(told, tmp_path / "cache")
    assert open_set(f"mine={folder}", tmp_path / "cache").name == "mine"


def test_the_samples_set_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(EvaluationSetError, match="veclip sample fetch"):
        open_set("openmoji", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {path: x, splits: test}", "a has the unknown keys splits. Known are path, layout, split, captions"),
        ("a: {layout: table}", "a can't be used: path: Field required"),
        ("a: {path: x, captions: 0}", "a can't be used: captions: .*greater than or equal to 1"),
        ("a: {path: x, layout: zip}", "a can't be used: layout: Input should be 'json', 'webdataset'"),
        ("a: {path: x, templates: best}", "a can't be used: templates"),
        ("openmoji: x", "a set can't be named 'openmoji'"),
        ("../a: x", "a set can't be named '../a'"),
        ("a: [x]", "a must be a path, or keys"),
        ("- a", "must hold sets by name"),
        ("a: {path: x", "is no YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is no YAML"),
    ],
)
def test_a_catalogue_that_can_not_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(EvaluationSetError, match=message):
        read_catalogue(catalogue(tmp_path, text))


def test_a_catalogue_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationSetError, match=r"there is no catalogue of evaluation sets at .*VECLIP_EVALUATION_SETS"
    ):
        open_set("coco", tmp_path, str(tmp_path / "none.yaml"))


def test_paths_are_beside_the_catalogue(tmp_path: Path) -> None:
    told = catalogue(tmp_path, "a: {path: x/y, pictures: /abs, classes: names.csv}\nb: s3://bucket/x\nc: ~/x")
    found = read_catalogue(told)
    assert (found["a"].path, found["a"].pictures) == (str(tmp_path / "x/y"), "/abs")
    assert (found["a"].classes, found["b"].path, found["c"].path) == (
        str(tmp_path / "names.csv"),
        "s3://bucket/x",
        "~/x",
    )


def test_a_layout_that_none_knows_and_one_that_several_files_have(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    known = r"in no known layout\. Known are: CLIP_benchmark's WebDataset layout .*a folder a class"
    with pytest.raises(EvaluationSetError, match=known):
        open_set(str(tmp_path / "empty"), tmp_path / "cache")
    folder = write_karpathy(tmp_path / "k", captions(12)).parent
    write_karpathy(folder, captions(12), "dataset_flickr30k.json")
    with pytest.raises(
        EvaluationSetError, match=r"must hold one json of texts, and holds dataset_coco\.json, dataset_fl"
    ):
        open_set(str(folder), tmp_path / "cache")
    with pytest.raises(EvaluationSetError, match=r"has no test/nshards\.txt"):
        open_set("a", tmp_path / "cache", catalogue(tmp_path, "a: {path: k, layout: webdataset}"))


def test_templates_and_classes_of_the_catalogue(tmp_path: Path) -> None:
    write_pictures(tmp_path / "mine", [f"{'ab'[n % 2]}/{n}.png" for n in range(12)])
    (tmp_path / "names.json").write_text('{"b": "a bee", "a": "an ant"}')
    told = catalogue(
        tmp_path,
        "own: {path: mine, classes: names.json, templates: ['a {}', '{c} {x}']}\n"
        "simple: {path: mine, templates: simple}\ndrawing: {path: mine, templates: drawing}\nplain: mine\n",
    )
    own = open_set("own", tmp_path / "cache", told).labels["class"]
    assert (own.classes, own.target_N.tolist()[::6]) == (("a bee", "an ant"), [1, 0])
    assert own.templates == ("a {}", "{} {x}")
    simple = open_set("simple", tmp_path / "cache", told).labels["class"].templates
    assert simple is not None
    assert (len(simple), simple[0]) == (7, "itap of a {}.")
    drawing = open_set("drawing", tmp_path / "cache", told).labels["class"].templates
    assert drawing is not None
    assert drawing[1] == "a drawing of a {}"
    assert open_set("plain", tmp_path / "cache", told).labels["class"].templates is None


def test_the_callers_templates_stand_before_openais_and_after_the_sets_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `veclip evaluate --template` tells them."""
    plain = write_pictures(tmp_path / "imagenet-mine", [f"{'ab'[n % 2]}/{n}.png" for n in range(12)])
    own = write_pictures(tmp_path / "imagenet-own", [f"{'ab'[n % 2]}/{n}.png" for n in range(12)])
    (own / "zeroshot_classification_templates.txt").write_text("its {c}\n")
    told = catalogue(tmp_path, "imagenet-told: {path: imagenet-mine, templates: openai}")
    for key, value in {"ROOT": str(tmp_path), "CACHE": str(tmp_path / "cache"), "EVALUATION_SETS": told}.items():
        monkeypatch.setenv(f"VECLIP_{key}", value)
    asked: list[Asked] = []
    monkeypatch.setattr(models, "models_named", lambda *_: [])

    def stop(_: Settings, one: Asked) -> None:
        asked.append(one)
        raise typer.Exit(3)

    monkeypatch.setattr(models_evaluation, "evaluate_models", stop)
    sets = [word for one in (str(plain), str(own), "imagenet-told") for word in ("--set", one)]
    for options in ([], ["--template", "a sketch of {}"]):
        result = CliRunner().invoke(app, ["evaluate", "--model", "any", *sets, *options])
        assert result.exit_code == 3, result.output
    scored = [[one.labels["class"].templates or made.config.templates for one in made.sets] for made in asked]
    openai = templates_named("openai")
    assert scored == [[openai, ("its {}",), openai], [("a sketch of {}",), ("its {}",), openai]]
