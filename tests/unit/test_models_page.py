"""The page on any models and sets: what it claims, what it shows, and that strangers' words stay text."""

import copy
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.unit.evaluation_world import HOSTILE, PlantedModel, hostile_set, openmoji
from tests.unit.test_report import Page
from veclip_core.cli import app
from veclip_core.cli_report import told_apart
from veclip_core.evaluation.evaluate import Evaluation, EvaluationConfig, compare, evaluate
from veclip_core.evaluation.merge import ResultsError, merge_results
from veclip_core.evaluation.paper import MISPRINTS, ROWS, PaperVerdict
from veclip_core.evaluation.report import Contamination, HowTo, retrieval_examples, write_models_page
from veclip_core.evaluation.report.gain_figure import OwnPoint, gain_chart, own_points
from veclip_core.evaluation.report.models_words import answer, column_name, standings
from veclip_core.evaluation.report.sweep_figures import figure_of
from veclip_core.evaluation.retrieval import selected
from veclip_core.evaluation.sets import EvaluationSet, PicturePlace
from veclip_core.training.sweeps import SWEEPS

CONFIG = EvaluationConfig(draws=200)
HOWTO = HowTo(["veclip evaluate"], {"machine": "2 cores"})
LABELS = {"clip": "CLIP", "veclip": "VeCLIP", "other": "Other"}
SIGNALS = {"clip": 0.2, "veclip": 1.5, "other": 1.4}


def evaluated(
    evaluation_set: EvaluationSet, models: dict[str, float], seeds: tuple[int, ...] = (0,)
) -> list[Evaluation]:
    return [
        evaluate(PlantedModel(evaluation_set, signal, seed + 10 * number), model, evaluation_set, seed=seed,
                 checkpoint=f"{model}{seed}", config=CONFIG)
        for number, (model, signal) in enumerate(models.items())
        for seed in seeds
    ]  # fmt: skip


def plain(results: dict[str, Any]) -> dict[str, Any]:
    """As it is read from `results.json`."""
    return dict(json.loads(json.dumps(results)))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> list[Evaluation]:
    return evaluated(hostile_set(tmp_path_factory.mktemp("coco") / "pictures"), SIGNALS)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> list[Evaluation]:
    return evaluated(openmoji(tmp_path_factory.mktemp("emoji") / "openmoji", 60), {"clip": 0.2, "veclip": 1.5})


@pytest.fixture(scope="module")
def results(coco: list[Evaluation], emoji: list[Evaluation]) -> dict[str, Any]:
    found = plain(compare([*coco, *emoji]))
    found["sets"]["coco"]["notes"] = dict(coco[0].evaluation_set.notes)
    return found


def by_classes(evaluation: Evaluation) -> Evaluation:
    """The same pictures, evaluated by their classes alone."""
    no_captions = replace(evaluation.evaluation_set, captions=(), caption_picture_M=np.array([], dtype=int))
    return replace(evaluation, evaluation_set=no_captions)


def test_a_page_on_two_sets_is_whole(
    tmp_path: Path, coco: list[Evaluation], emoji: list[Evaluation], results: dict[str, Any]
) -> None:
    path = write_models_page(
        results, tmp_path, title=HOSTILE, howto=HOWTO, labels={**LABELS, "other": HOSTILE},
        charts=[gain_chart(own=[OwnPoint(HOSTILE, False, 3.0, "coco_i2t_r1", 20, 10, 30)])],
        examples=[retrieval_examples(coco[0], coco[1]), retrieval_examples(*map(by_classes, emoji))],
        contamination=[
            Contamination("coco", 20, 0, "by their looks", left_out=7),
            Contamination("openmoji", 60, None, f"veclip run screen {HOSTILE}"),
        ],
        verdicts=[PaperVerdict("veclip", "coco", "coco_i2t_r1", "i2t_r@1", 22.5, 22.30, 0.3, None),
                  PaperVerdict("veclip", "coco", "coco_t2i_r1", "t2i_r@1", 14.0, 13.01, 0.3, None),
                  PaperVerdict("clip", "coco", "imagenet", "zeroshot_top1_kind", 9.0, 5.46, 0.3, MISPRINTS[0].note)],
    )  # fmt: skip
    text = path.read_text()
    page = Page(text)
    shown = " ".join(page.text.split())
    assert path == tmp_path / "report.html"
    for needed in (
        "3 models, 2 evaluation sets, 1 seed",
        "20 pictures, 100 captions",
        "3 pictures equal to another of the set",
        "minus CLIP",
        "named right by both",
        "7 by their looks",
        "not looked for",
        "290.6",
        "veclip evaluate",
    ):
        assert needed in shown, needed
    assert re.search(r"\+0\.20 holds", shown)
    assert re.search(r"\+0\.99 does not hold", shown)
    assert "no verdict" in shown, "nothing is held against a misprint"
    for row in ROWS:
        assert f"{row.coco_i2t_r1:.2f}" in shown
    for row in results["summary"]:
        if row["split"] == "all" and row["metric"] in ("i2t_r@1", "mean_recall", "mean_rank"):
            assert f"{row['value']:.{2 if row['value'] < 9.995 else 1}f}" in shown
    # Recall both ways, median ranks and a chart a labelling for each set, and the gain.
    assert page.tags.count("svg") == (3 + 1) + (3 + 2) + 1
    addresses = [value or "" for name, value in page.attributes if name in ("src", "href", "srcset", "xlink:href")]
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not re.search(r"@import|url\((?!#)", text)


def test_words_of_strangers_stay_text(tmp_path: Path, coco: list[Evaluation], results: dict[str, Any]) -> None:
    hostile = copy.deepcopy(results)
    hostile["sets"][HOSTILE] = hostile["sets"].pop("coco")
    for row in (*hostile["summary"], *hostile["differences"]):
        row["set"] = HOSTILE if row["set"] == "coco" else row["set"]
    labels = {model: f"{model} {HOSTILE}" for model in hostile["models"]}
    text = write_models_page(
        hostile, tmp_path, title=HOSTILE, howto=HowTo([HOSTILE], {HOSTILE: HOSTILE}), labels=labels,
        examples=[retrieval_examples(coco[0], coco[1])],
    ).read_text()  # fmt: skip
    page = Page(text)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 20
    assert "{{7*7}}" in page.text
    assert not re.search("[\x00-\x08\u202a-\u202e\u2066-\u2069]", text)


def test_equal_arguments_give_equal_bytes(tmp_path: Path, results: dict[str, Any]) -> None:
    first, second = (
        write_models_page(results, tmp_path / name, title="Same", howto=HOWTO) for name in ("a.html", "b.html")
    )
    assert first.read_bytes() == second.read_bytes()


def with_values(
    results: dict[str, Any], values: dict[str, tuple[float, float, float]], differences: dict[str, bool]
) -> dict[str, Any]:
    """The results with other main values on COCO, and other verdicts against the baseline."""
    changed = copy.deepcopy(results)
    changed["sets"] = {"coco": changed["sets"]["coco"]}
    for row in changed["summary"]:
        if (row["set"], row["metric"], row["split"]) == ("coco", "mean_recall", "all"):
            row["value"], row["low"], row["high"] = values[row["model"]]
    for row in changed["differences"]:
        if (row["set"], row["metric"], row["split"]) == ("coco", "mean_recall", "all"):
            row["value"] = values[row["model"]][0] - values["clip"][0]
            row["resolved"] = differences[row["model"]]
            row["favours"] = (row["model"] if row["value"] > 0 else "clip") if row["resolved"] else None
    return changed


@pytest.mark.parametrize(
    ("values", "resolved", "leader", "said"),
    [
        # Clear of the other model, and by a paired difference above the baseline though the intervals overlap.
        ({"clip": (39, 36, 42), "veclip": (45, 41, 48), "other": (30, 28, 33)}, {"veclip": True, "other": True},
         "veclip", "VeCLIP leads on coco."),
        # Above the baseline, but not told from the other model.
        ({"clip": (20, 18, 22), "veclip": (45, 41, 48), "other": (44, 40, 47)}, {"veclip": True, "other": True},
         None, "No single model leads on coco."),
        # The highest, and not resolved against the baseline.
        ({"clip": (44, 40, 47), "veclip": (45, 41, 48), "other": (30, 28, 33)}, {"veclip": False, "other": True},
         None, "No single model leads on coco."),
        ({"clip": (60, 58, 62), "veclip": (45, 41, 48), "other": (30, 28, 33)}, {"veclip": True, "other": True},
         "clip", "CLIP leads on coco."),
    ],
)  # fmt: skip
def test_only_what_intervals_resolve_is_said_to_lead(
    results: dict[str, Any],
    values: dict[str, tuple[float, float, float]],
    resolved: dict[str, bool],
    leader: str | None,
    said: str,
) -> None:
    changed = with_values(results, values, resolved)
    (standing,) = standings(changed)
    assert standing.leader == leader
    short, sentences, claims = answer(changed, LABELS)
    assert short == said
    assert "Paired differences were computed from CLIP alone" in claims
    better = [model for model in ("veclip", "other") if resolved[model] and values[model][0] > values["clip"][0]]
    told = [sentence for sentence in sentences if sentence.startswith("Better than CLIP")]
    assert bool(told) == bool(better)
    assert all(LABELS[model] in told[0] for model in better)
    assert ("not resolved" in " ".join(sentences)) == (not resolved["veclip"])


def test_without_a_baseline_nothing_paired_is_claimed(tmp_path: Path, coco: list[Evaluation]) -> None:
    found = plain(compare(coco[1:]))
    short, sentences, claims = answer(found, LABELS)
    assert short == "No single model leads on coco."
    assert "not resolved" in sentences[0]
    assert "no one baseline" in claims
    assert "Better than" not in write_models_page(found, tmp_path, title="Two", howto=HOWTO).read_text()


def test_one_model_alone(tmp_path: Path, coco: list[Evaluation]) -> None:
    alone = retrieval_examples(coco[1], each=1)
    assert alone.baseline is None
    assert {example.outcome for example in alone.examples} <= {"hit", "miss"}
    assert all(len(example.answers) == 1 for example in alone.examples)
    assert all(sum(counts.values()) in (20, 100) for counts in alone.counts.values())
    text = write_models_page(
        plain(compare(coco[1:2])), tmp_path, title="One", howto=HOWTO, labels=LABELS, examples=[alone]
    ).read_text()
    assert "VeCLIP alone: there is nothing to compare it with." in text
    assert "leads on" not in text


def test_classes_are_shown_right_and_wrong(emoji: list[Evaluation]) -> None:
    picked = retrieval_examples(*map(by_classes, emoji), each=2)
    assert picked.labelling == "subgroup"
    assert sum(picked.counts["class"].values()) == 60
    target_N = emoji[0].evaluation_set.labels["subgroup"].target_N
    for example in picked.examples:
        for answer_, evaluation in zip(example.answers, emoji, strict=True):
            assert len(answer_.rows) == 5
            assert answer_.rank == evaluation.ranks.classes["subgroup"].rank_Q[example.query]
            assert (answer_.rows[0] == target_N[example.query]) == answer_.right[0] == (answer_.rank == 1)


def test_choices_are_shown_right_and_wrong(coco: list[Evaluation]) -> None:
    evaluation_set = coco[1].evaluation_set
    right_M = np.arange(len(evaluation_set.captions)) % 5 == 0
    found = selected(coco[1].pictures_ND, coco[1].captions_MD, evaluation_set.caption_picture_M, right_M)
    ranks = replace(coco[1].ranks, selected=found)
    choices = replace(coco[1], evaluation_set=replace(evaluation_set, right_M=right_M), ranks=ranks)
    picked = retrieval_examples(choices, each=3)
    assert set(picked.counts) == {"choice"}
    for example in picked.examples:
        (found,) = example.answers
        assert {evaluation_set.caption_picture_M[row] for row in found.rows} == {example.query}
        assert found.right[0] == (example.outcome == "hit") == (found.rank == 1)
        assert found.right.count(True) == 1


def test_a_picture_that_cannot_be_read_does_not_cost_the_page(tmp_path: Path, emoji: list[Evaluation]) -> None:
    nothing = tmp_path / "nothing.png"
    nothing.write_bytes(b"no picture")
    evaluation_set = emoji[0].evaluation_set
    places = (PicturePlace(str(nothing)), PicturePlace(str(tmp_path / "absent.png"))) * (len(evaluation_set) // 2)
    unread = [replace(one, evaluation_set=replace(evaluation_set, pictures=places)) for one in emoji]
    text = write_models_page(
        plain(compare(emoji)), tmp_path, title="Unread", howto=HOWTO, examples=[retrieval_examples(*unread)]
    ).read_text()
    assert text.count("data:image/webp") > 10


def test_many_models_and_sets_are_all_there(tmp_path: Path, results: dict[str, Any]) -> None:
    many = copy.deepcopy(results)
    coco, models = many["sets"]["coco"], [f"model_{number}" for number in range(9)]
    rows, differences = many["summary"], many["differences"]
    many["sets"] = {f"set {number}": coco for number in range(12)}
    many["models"] = ["clip", *models]
    many["summary"] = [
        {**row, "set": name, "model": model}
        for name in many["sets"] for model in many["models"] for row in rows if (row["set"], row["model"]) == ("coco", "clip")
    ]  # fmt: skip
    many["differences"] = [
        {**row, "set": name, "model": model}
        for name in many["sets"] for model in models for row in differences if (row["set"], row["model"]) == ("coco", "veclip")
    ]  # fmt: skip
    text = write_models_page(many, tmp_path, title="Many", howto=HOWTO).read_text()
    assert all(text.count(f'id="set-{number}"') == text.count(f'href="#set-{number}"') == 1 for number in range(1, 13))
    assert "set 11" in text
    assert "No single model leads on any of 12 sets." in text
    assert len(text) < 3_000_000


def test_the_gain_leaves_out_what_is_misprinted(results: dict[str, Any]) -> None:
    chart = gain_chart()
    assert "ImageNet top-1, CLIP-B/16: 12M 31.60, 100M" in chart.svg
    assert "Flickr30k T→I R@1, CLIP-B/16: 3M 6.36, 12M 29.06" in chart.svg
    assert "† left out" in chart.svg
    assert "‡" in chart.svg
    assert "here" not in chart.svg
    assert chart.svg.count("+16.8") == 1, "what VeCLIP gains on COCO at 3M"
    base, *others = results["models"]
    own = own_points(results, dict.fromkeys(results["models"], 12.0), {base})
    assert {(point.name, point.column) for point in own} == {
        (name, column) for name in results["models"] for column in ("coco_i2t_r1", "coco_t2i_r1")
    }
    assert {point.name for point in own if point.baseline} == {base}
    assert all(f"{name}, here" in gain_chart(own=own).svg for name in results["models"])
    assert {point.name for point in own_points(results, {others[0]: 3.0}, ())} == {others[0]}


def test_names_of_columns() -> None:
    names = [column_name(metric, 1) for metric in ("i2t_r@1", "t2i_median_rank", "zeroshot_top5_x_y", "mean_recall")]
    assert names == ["I→T R@1", "T→I median rank", "top-5", "Mean recall"]
    assert column_name("zeroshot_per_class_x_y", 2) == "mean per class, x_y"


def test_results_of_several_reports_become_one(emoji: list[Evaluation], coco: list[Evaluation]) -> None:
    one, other = plain(compare(emoji)), plain(compare(coco))
    assert merge_results({"a": one}) == one
    assert merge_results({"a": one, "b": one})["summary"] == one["summary"]
    both = merge_results({"a": one, "b": other})
    assert both["models"] == ["clip", "veclip", "other"]
    assert list(both["sets"]) == ["openmoji", "coco"]
    assert both["baseline"] == "clip"
    assert both["comparisons"]["made"] == len(one["differences"]) + len(other["differences"])


def test_models_that_differ_are_told_apart(emoji: list[Evaluation], tmp_path: Path) -> None:
    evaluation_set = emoji[0].evaluation_set
    more = plain(compare(evaluated(evaluation_set, {"clip": 0.2, "veclip": 1.5}, seeds=(1, 2))))
    by_seed = merge_results({"first": plain(compare(emoji)), "second": more})
    assert by_seed["models"] == ["clip (seed 0)", "veclip (seed 0)", "clip (seeds 1, 2)", "veclip (seeds 1, 2)"]
    assert by_seed["seeds"] == [0, 1, 2]
    assert by_seed["baseline"] is None
    assert {(row["model"], row["baseline"]) for row in by_seed["differences"]} == {
        ("veclip (seed 0)", "clip (seed 0)"),
        ("veclip (seeds 1, 2)", "clip (seeds 1, 2)"),
    }
    again = plain(compare(evaluated(evaluation_set, {"clip": 0.2, "veclip": 0.9})))
    by_name = merge_results({"first": plain(compare(emoji)), "second": again})
    assert by_name["models"] == ["clip", "veclip (first)", "veclip (second)"]
    assert by_name["baseline"] == "clip"
    write_models_page(by_seed, tmp_path, title="Seeds", howto=HOWTO)


def with_templates(results: dict[str, Any], templates: list[str]) -> dict[str, Any]:
    """As if evaluated by other templates in the configuration; each set took them."""
    results["config"]["templates"] = templates
    for of_set in results["sets"].values():
        of_set["templates"] = dict.fromkeys(of_set["templates"], templates)
    return results


def test_templates_are_told_and_compared_where_a_set_took_them(tmp_path: Path, emoji: list[Evaluation]) -> None:
    """ImageNet has 80 of its own: those of the configuration are nothing to it."""
    evaluation_set = emoji[0].evaluation_set
    own = ("a rare {}.", "one of many {}")
    labels = {
        "group": replace(evaluation_set.labels["group"], templates=own),
        "subgroup": evaluation_set.labels["subgroup"],
    }
    mixed = plain(compare(evaluated(replace(evaluation_set, name="mixed", labels=labels), {"clip": 0.2})))
    assert mixed["sets"]["mixed"]["templates"] == {"group": list(own), "subgroup": list(CONFIG.templates)}
    text = write_models_page(mixed, tmp_path, title="Templates", howto=HOWTO).read_text()
    assert "<bdi>group</bdi> (2): a rare {}. | one of many {}" in text
    assert "<bdi>subgroup</bdi> (6): {} | a drawing of a {}" in text

    labels = {"group": labels["group"]}
    alone = plain(compare(evaluated(replace(evaluation_set, name="own", labels=labels), {"clip": 0.2})))
    alone["config"]["templates"] = ["an unused {}"]
    both = merge_results({"a": alone, "b": mixed})
    assert list(both["sets"]) == ["own", "mixed"]
    assert both["config"]["templates"] == mixed["config"]["templates"]
    other = with_templates(copy.deepcopy(mixed), ["another {}"])
    other["sets"] = {"other": other["sets"]["mixed"]}
    with pytest.raises(ResultsError, match="scored in different ways, by templates"):
        merge_results({"a": alone, "b": mixed, "c": other})


def test_a_model_is_one_by_its_weights(emoji: list[Evaluation], coco: list[Evaluation]) -> None:
    def seen(of: list[Evaluation], listed: str, **row: str) -> dict[str, Any]:
        rows = [{"model": "veclip", "seed": 0, **row}]
        return {**plain(compare([one for one in of if one.model == "veclip"])), listed: rows}

    kept = seen(emoji, "trainings", checkpoint="/root/train/step-9", revision="ab12")
    for of in (emoji, coco):
        again = seen(of, "evaluated", weights="veclip_sample", revision="ab12")
        assert merge_results({"sample": kept, "mine": again})["models"] == ["veclip"]
    other = seen(coco, "evaluated", weights="veclip_sample", revision="cd34")
    assert merge_results({"sample": kept, "mine": other})["models"] == ["veclip (sample)", "veclip (mine)"]
    first, second = (seen(of, "evaluated", weights="ours", revision=one) for of, one in ((emoji, "1"), (coco, "2")))
    assert merge_results({"a": first, "b": second})["models"] == ["veclip (a)", "veclip (b)"], "of one folder's name"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: with_templates(r, ["{}"])["config"].update(draws=17), "scored in different ways, by draws, templates"),
        (
            lambda r: r["sets"]["openmoji"]["templates"].update(group=["an old {}"]),
            "the classes of openmoji were embedded by other templates in b than in a",
        ),
        (lambda r: r["sets"]["openmoji"].pop("templates"), "an older version: it lacks the templates of openmoji"),
        (lambda r: r["sets"]["openmoji"].update(content="else"), "the set openmoji of a has another content"),
        (lambda r: r.pop("headline"), "b is not the results of an evaluation, or those of an older version: it lacks headline"),
    ],
)  # fmt: skip
def test_results_that_do_not_fit_are_refused(emoji: list[Evaluation], change: Any, said: str) -> None:
    one = plain(compare(emoji))
    other = copy.deepcopy(one)
    change(other)
    with pytest.raises(ResultsError, match=said):
        merge_results({"a": one, "b": other})


def test_the_command_draws_the_papers_scales_and_sweeps(
    results: dict[str, Any], emoji: list[Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECLIP_ROOT", str(tmp_path))
    (tmp_path / "reports").mkdir()
    rows = [
        {"model": name, "seed": 0, "millions": millions, "alt_text_only": name == "clip"}
        for name, millions in (("clip", 12.0), ("veclip", 12.0), ("other", None))
    ]
    compared = SWEEPS["mix"].comparison
    swept = compare(
        [one for one in emoji if one.model in ("clip", "veclip")],
        headline=compared.contrasts[:1], headline_metrics=compared.metrics, headline_splits=compared.splits,
    )  # fmt: skip
    files = {"paper": {**results, "evaluated": rows}, "swept": {**plain(swept), "sweep": "mix"}, "plain": results}
    for name, one in files.items():
        (tmp_path / "reports" / f"{name}.json").write_text(json.dumps(one))

    def page(*names: str) -> str:
        assert CliRunner().invoke(app, ["report", *names], catch_exceptions=False).exit_code == 0
        return (tmp_path / "reports" / "models.html").read_text()

    text = page("paper", "swept")
    assert "Gain against scale" in text
    assert "veclip, here" in text
    assert "other, here" not in text
    assert "How much VeCap in the mix (swept)" in text
    assert figure_of(swept, SWEEPS["mix"]).chart().svg in text
    assert "Further figures" not in page("plain")


def test_results_of_one_name_are_told_apart() -> None:
    assert told_apart(["sample", "/a/mine.json", "/b/run/results.json"]) == {
        "sample": "sample", "/a/mine.json": "mine", "/b/run/results.json": "run",
    }  # fmt: skip
    of_one_name = ["/a/mine.json", "/b/mine.json", "mine", "/a/run/results.json", "/b/run/results.json", "sample"]
    assert told_apart(of_one_name) == {name: name for name in of_one_name}
    address = "https://me:secret@a.example/run/results.json"
    assert told_apart([f"{address}?key=1"]) == {f"{address}?key=1": "run"}
    with pytest.raises(ResultsError, match=r"two results are called 'https://a[.]example/run/results[.]json': copy"):
        told_apart([f"{address}?key=1", f"{address}?key=2"])


def test_the_command_makes_a_page_of_reports(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECLIP_ROOT", str(tmp_path / "root"))
    reports = tmp_path / "root" / "reports"
    reports.mkdir(parents=True)
    kept = {
        **results,
        "contamination": [{"set": "coco", "pictures": 20, "copies": 0, "looked": "looked well", "left_out": 3}],
    }
    (reports / "sample.json").write_text(json.dumps(kept))
    elsewhere = tmp_path / "found" / "results.json"
    elsewhere.parent.mkdir()
    elsewhere.write_text(json.dumps(results))
    run = CliRunner().invoke(app, ["report", "sample", str(elsewhere), "--title", "Both"], catch_exceptions=False)
    assert run.stdout.strip() == str(reports / "models.html")
    text = (reports / "models.html").read_text()
    assert "<h1>Both</h1>" in text
    assert "looked well" in text
    assert "AltText only" in text
    assert html.escape(f"veclip report sample {elsewhere} --title Both") in text
    out = tmp_path / "a page.html"
    assert CliRunner().invoke(app, ["report", "sample", "--out", str(out)], catch_exceptions=False).exit_code == 0
    assert "Models beside each other" in out.read_text()
    assert html.escape(f"veclip report sample --out '{out}'") in html.escape(html.unescape(out.read_text()))

    (reports / "broken.json").write_text("{")
    (reports / "list.json").write_text("[]")
    for name, said in {
        "nothing": "there are broken, list, sample",
        "broken": "is not JSON",
        "list": "is not the results",
        str(tmp_path / "no.json"): "there are no results",
    }.items():
        with pytest.raises(ResultsError, match=said):
            CliRunner().invoke(app, ["report", name], catch_exceptions=False)
