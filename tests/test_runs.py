import ast
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from importlib import metadata
from types import SimpleNamespace

import nbformat
import numpy as np
import papermill
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import ROOT, InputError, claims, models, runs

EVIL = "<script>alert('&amp;')</script>\"><b>"


@pytest.fixture
def loaded():
    """Stands for a loaded model: its name and what it writes down of itself."""
    record = {
        "name": "fake",
        "title": EVIL,
        "quantisation": "4-bit",
        "weights_sha256": 64 * "a",
        "dtype": "float32",
        "device": "cpu",
        "backend": "huggingface",
    }
    return SimpleNamespace(card=SimpleNamespace(name="fake"), record=lambda: record)


@pytest.fixture
def run(loaded):
    return runs.Run("replications/a-chapter", {"seed": 3}, loaded)


def glued(shown):
    """The glued texts among all outputs, by key."""
    return {
        output.metadata["scrapbook"]["name"]: ast.literal_eval(
            output.content["application/papermill.record/text/plain"]
        )
        for output in shown
        if "scrapbook" in output.metadata
    }


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, _):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data.strip())


# Parameters


OF = {"of": "sequences", "bracket": "95 % interval", "reach": None}


def test_legal_parameters_come_back_as_they_were_given():
    found = runs.validate(
        seed=(0, range(100)),
        last=(99, range(100)),
        device=("cpu", ("cpu", "cuda")),
        rate=(0.5, float),
        name=("a name", str),
        verbose=(True, bool),
    )
    assert found == {"seed": 0, "last": 99, "device": "cpu", "rate": 0.5, "name": "a name", "verbose": True}


@pytest.mark.parametrize(
    ("value", "legal", "parts"),
    [
        (100, range(100), ["100", "0 to 99"]),
        (-1, range(100), ["-1", "0 to 99"]),
        (1, range(2, 11), ["1", "2 to 10"]),
        (True, range(100), ["whole number", "True"]),
        (1.0, range(100), ["whole number", "1.0"]),
        ("1", range(100), ["whole number", "'1'"]),
        (None, range(100), ["whole number", "None"]),
        (math.nan, range(100), ["whole number", "nan"]),
        ("gpu", ("cpu", "cuda"), ["'gpu'", "'cpu', 'cuda'"]),
        (["cpu"], ("cpu", "cuda"), ["['cpu']", "'cpu', 'cuda'"]),
        (None, ("cpu", "cuda"), ["None", "'cpu', 'cuda'"]),
        (True, (0, 1), ["True", "0, 1"]),
        (1.0, (0, 1), ["1.0", "0, 1"]),
        (1, (False, True), ["1", "False, True"]),
        (5, str, ["str", "5"]),
        (None, str, ["str", "None"]),
        ("0.5", float, ["float", "'0.5'"]),
        (True, float, ["float", "True"]),
        (1, bool, ["bool", "1"]),
        (True, int, ["int", "True"]),
    ],
)
def test_a_value_that_is_not_legal_is_refused_with_its_name_and_what_would_be(value, legal, parts, refused):
    with refused("parameter count", *parts):
        runs.validate(seed=(1, int), count=(value, legal))


@given(value=st.integers(-50, 50), start=st.integers(-20, 20), length=st.integers(1, 30))
def test_a_whole_number_is_legal_exactly_within_its_range(value, start, length):
    try:
        assert runs.validate(count=(value, range(start, start + length))) == {"count": value}
        legal = True
    except runs.InputError as error:
        assert f"{start} to {start + length - 1}" in str(error)
        legal = False
    assert legal == (start <= value < start + length)


# Values, tables and claims


def test_a_value_is_recorded_in_full_and_glued_in_short(run, shown):
    run.value("share", 0.123456)
    run.value("count", 12345)
    run.value("name", "a head")
    run.value("loss", claims.Estimate(0.91567, 0.9061, 0.9221, 16))
    assert run.values["share"] == 0.123456
    assert run.values["loss"] == {"value": 0.91567, "low": 0.9061, "high": 0.9221, "n": 16} | OF
    assert glued(shown) == {
        "share": "0.123",
        "count": "12345",
        "name": "a head",
        "loss": "0.916 (95 % interval 0.906 to 0.922, n = 16 sequences)",
    }


@pytest.mark.parametrize("number", [np.float64(0.123456), np.float32(0.123456)], ids=["float64", "float32"])
def test_a_number_of_any_precision_is_glued_in_short(number, run, shown):
    run.value("share", number)
    run.table("shares", [{"share": number}], caption="")
    assert glued(shown) == {"share": "0.123"}
    assert "0.123" in Page(shown[-1].html).texts


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_since_json_has_none(number, run, shown, refused):
    with refused("'loss'", number):
        run.value("loss", number)


def test_what_a_cell_recorded_is_replaced_when_it_is_run_again(run, shown):
    for number in (0.25, 0.75):
        run.value("share", number)
        run.table("shares", [{"share": number}], caption="")
        run.claim("large", "It is large.", rule="value > 0.5", estimate=claims.Estimate(number, number, number, 2))
    assert run.values == {"share": 0.75, "shares": [{"share": 0.75}]}
    run.finish()
    (claim,) = shown[-1].metadata[runs.RECORD]["claims"]
    assert (claim["id"], claim["verdict"]) == ("large", "holds")


def test_a_table_is_recorded_in_full_and_shown_with_every_text_escaped(run, shown):
    estimate = claims.Estimate(0.5, 0.4, 0.6, 10)
    rows = [{EVIL: EVIL, "share": 0.123456, "loss": estimate}, {EVIL: 100 * "long ", "share": 1, "loss": estimate}]
    run.table("heads", rows, caption=EVIL)
    assert [row["share"] for row in run.values["heads"]] == [0.123456, 1]
    assert run.values["heads"][0]["loss"]["low"] == 0.4
    page = Page(shown[0].html)
    assert set(page.tags) == {"div", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert page.texts.count(EVIL) == 3  # the caption, the head of the column, the cell
    for text in ("0.123", "1", "0.500 [0.400, 0.600]", (100 * "long ").strip()):
        assert text in page.texts


def test_a_claim_is_decided_for_the_model_at_hand_and_glued(run, shown, refused):
    estimate = claims.Estimate(0.5, 0.4, 0.6, 10)
    evidence = {"rule": "value > published", "estimate": estimate}
    figures = {"fake": "straddles the bound", "gpt2-small": "published for gpt2-small"}
    for model in figures:
        figure = claims.Published(0.5, model=model, protocol="theirs", citation="someone2022")
        run.claim(f"like-{model}", "The same.", published=figure, **evidence)
    run.claim("falls", "It falls.", rule="value > baseline", estimate=estimate, baseline=0.1)
    found = glued(shown)
    assert found["claim-falls"] == "holds"
    assert found["claim-like-gpt2-small"] == "not comparable published for gpt2-small"
    assert found["claim-like-fake"].startswith("depends on the sample")
    assert len(found) == 3
    with refused("'valu > 0'"):
        run.claim("wrong", "A slip.", rule="valu > 0", estimate=estimate)


def test_the_same_seed_gives_the_same_numbers_everywhere(loaded):
    def draw(seed):
        run = runs.start("chapter", {"seed": seed}, loaded)
        assert (run.parameters, run.loaded) == ({"seed": seed}, loaded)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first = draw(1)
    assert draw(1) == first
    assert all(a != b for a, b in zip(draw(2), first, strict=True))


# The record


def test_the_last_output_carries_the_record_and_shows_no_text_as_html(run, loaded, shown):
    run.value("loss", claims.Estimate(0.5, 0.4, 0.6, 10))
    run.claim("falls", EVIL, rule="value > 0", estimate=claims.Estimate(0.5, 0.4, 0.6, 10))
    run.parameters["name"] = EVIL
    run.finish()
    record = json.loads(json.dumps(shown[-1].metadata[runs.RECORD], allow_nan=False))
    assert record.keys() == {"chapter", "model", "parameters", "values", "claims", "provenance"}
    assert record["chapter"] == "replications/a-chapter"
    assert record["parameters"] == {"seed": 3, "name": EVIL}
    assert record["model"] == loaded.record()
    assert [claim["sentence"] for claim in record["claims"]] == [EVIL]
    assert record["values"]["loss"]["high"] == 0.6
    page = Page(shown[-1].html)
    assert "script" not in page.tags
    assert "b" not in page.tags
    text = "\n".join(page.texts)
    for part in (f"{EVIL}; 4-bit", f"seed = 3, name = {EVIL}", 16 * "a", "holds"):
        assert part in text
    assert glued(shown)["model"] == f"{EVIL}, 4-bit, float32"
    assert glued(shown)["threads"] == str(torch.get_num_threads())


def test_a_chapter_that_leaves_has_each_claim_on_record_as_not_run(run, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    kept = tmp_path / "results" / "some" / "record" / f"{run.chapter}.json"
    kept.parent.mkdir(parents=True)
    known = {"id": "falls", "sentence": "It falls.", "verdict": "holds", "reason": "", "estimate": {"value": 1}}
    kept.write_text(json.dumps({"claims": [known]}))
    run.value("loss", 0.5)
    with pytest.raises(runs.NotRun, match=r"^its layers are of another kind$"):
        run.leave("its layers are of another kind")
    record = shown[-1].metadata[runs.RECORD]
    assert record["claims"] == [
        known | {"verdict": "not run", "reason": "(its layers are of another kind)", "estimate": None}
    ]
    assert record["not_run"] == "its layers are of another kind" and record["values"] == {"loss": 0.5}


def test_a_notebook_without_a_record_is_refused(refused):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1"), nbformat.v4.new_markdown_cell("a")])
    with refused("no record", "run.finish"):
        runs.read_record(notebook)


def test_provenance_says_where_when_and_with_what(monkeypatch):
    monkeypatch.setenv("BOOK_PROFILE", "ci")
    monkeypatch.setattr(runs, "STARTED", time.time() - 100)
    found = runs.collect_provenance()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert runs.find_code_version()["git_commit"] == (head or None)
    assert found["profile"] == "ci"
    assert 100 <= found["seconds"] < 110
    assert 0.2 < found["memory_gb"] < 20  # torch alone takes a good deal
    started = time.strptime(found["started"], "%Y-%m-%dT%H:%M:%SZ")
    assert 95 < time.mktime(time.gmtime()) - time.mktime(started) < 115
    hardware = found["hardware"]
    assert (hardware["machine"], hardware["system"]) == (platform.machine(), platform.system())
    assert hardware["threads"] == torch.get_num_threads()
    assert 1 <= hardware["cores"] <= os.cpu_count()
    assert (hardware["gpu"] is None) == (not torch.cuda.is_available())
    assert found["packages"]["python"] == platform.python_version()
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["packages"].keys() >= {"transformers", "transformer-lens", "nnsight", "numpy", "scipy"}


def test_a_machine_without_git_gives_a_record_that_claims_no_commit(run, shown, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("BOOK_PROFILE", raising=False)
    runs.Run(run.chapter, run.parameters, run.loaded).finish()
    found = shown[-1].metadata[runs.RECORD]["provenance"]
    assert found["git_commit"] is None
    assert found["git_uncommitted_changes"] is None
    assert found["profile"] == "by hand"
    assert "unknown" in Page(shown[-1].html).texts


def test_progress_gives_every_item_and_writes_to_standard_error_alone(capsys):
    assert list(runs.show_progress(iter(range(5)), "sweep")) == [0, 1, 2, 3, 4]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sweep" in captured.err


def test_importing_what_can_work_without_torch_does_not_import_it():
    code = "import sys; from helpers import claims, models, plots, runs; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


# Where things are kept


def test_a_registered_name_is_its_folder():
    for name in models.REGISTRY:
        assert runs.locate_results(name) == ROOT / "results" / name


@pytest.mark.parametrize(
    "name",
    ["../x", "..", ".", "", "/", "/tmp/a model", "~/model", "./model", "org/name", "org/name@v1", "a\\b", "a\0b", "-a"],
)
def test_a_path_or_a_hub_id_gets_a_folder_that_does_not_leave_the_results(name):
    folder = runs.locate_results(name)
    assert folder.parent == ROOT / "results" and folder.resolve().parent == (ROOT / "results").resolve()
    assert re.fullmatch(r"[\w.-]*-[0-9a-f]{8}", folder.name) and not folder.name.startswith(".")


NAMES = st.text(max_size=300) | st.text("ab./-_~@ ", max_size=60)


@given(names=st.lists(NAMES, min_size=2, max_size=6, unique=True))
def test_no_two_names_have_one_folder(names):
    folders = [runs.locate_results(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all(folder.parent == ROOT / "results" for folder in folders)
    assert not {folder.name for folder in folders} & {"", ".", ".."}


def test_what_a_run_makes_goes_beside_its_record_or_below_the_build(monkeypatch, tmp_path):
    monkeypatch.setenv("BOOK_OUTPUT", str(tmp_path))
    assert runs.locate_output() == tmp_path
    monkeypatch.delenv("BOOK_OUTPUT")
    assert runs.locate_output().is_relative_to(ROOT / "_build")


# A notebook executed by papermill

PARAMETERS = "count: int = 2  # 1 to 9\nlabel: str = 'a'"
VALIDATE = """from helpers import claims, runs
parameters = runs.validate(count=(count, range(1, 10)), label=(label, str))"""
CELLS = [
    """from types import SimpleNamespace
model = SimpleNamespace(card=SimpleNamespace(name="fake"), record=lambda: {
    "name": "fake", "title": "Fake", "quantisation": None, "weights_sha256": 64 * "a", "dtype": "float32",
    "device": "cpu", "backend": "huggingface"})
run = runs.start("a/chapter", parameters, model)
estimate = claims.average([1.0, 2.0, 4.0], seed=0)
run.value("loss", estimate)
run.table("rows", [{"layer": 1, "loss": estimate, "token": "</td>é"}], caption="A table")
run.claim("falls", "It falls.", rule="value > baseline", estimate=estimate, baseline=0.5)""",
    """import myst_nb, numpy
run.value("share", numpy.float32(0.25))
run.value("ours", 0.75)
myst_nb.glue("ours", "0.750", display=False)""",
    "run.finish()",
]


def execute(folder, **parameters):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in [PARAMETERS, VALIDATE]])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in CELLS]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "in.ipynb")
    papermill.execute_notebook(
        folder / "in.ipynb", folder / "out.ipynb", parameters, cwd=ROOT, progress_bar=False, start_timeout=120
    )
    return nbformat.read(folder / "out.ipynb", as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return execute(tmp_path_factory.mktemp("executed"), count=7)


@pytest.mark.slow
def test_the_record_comes_back_out_of_an_executed_notebook(executed):
    record = runs.read_record(executed)
    estimate = claims.average([1.0, 2.0, 4.0], seed=0)
    claim = claims.decide("falls", "It falls.", rule="value > baseline", estimate=estimate, baseline=0.5)
    assert record["chapter"] == "a/chapter"
    assert record["parameters"] == {"count": 7, "label": "a"}
    assert record["claims"] == claims.as_record([claim])
    loss = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": 3} | OF
    rows = [{"layer": 1, "loss": loss, "token": "</td>é"}]
    assert record["values"] == {"loss": loss, "rows": rows, "share": 0.25, "ours": 0.75}
    assert record["provenance"]["packages"]["torch"] == metadata.version("torch")


@pytest.mark.slow
def test_glued_outputs_are_exactly_those_of_myst_nb(executed):
    _, ours, theirs = executed.cells[-2].outputs
    assert ours == theirs
    assert ours.metadata["scrapbook"]["name"] == "ours"


def test_an_unknown_injected_parameter_is_an_error_in_the_notebook(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        execute(tmp_path, count=3, cuont=4)
    assert caught.value.ename == "InputError"
    assert caught.value.evalue == "unknown parameter 'cuont': legal are count, label"
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    with pytest.raises(runs.InputError, match="no record"):
        runs.read_record(notebook)


LEGAL = """# %% tags=["parameters"]
model_name: str = "a"  # a name, a folder or a hub id
count: int = 2  # of each of ten tasks, 2 to 9
pairs: int = 4  # at most so many; 4 to 8 by 4
kind: str = ""  # "float32" or "bfloat16"; "" for the model's own
save: bool = False  # whether to keep it

# %%
other: int = 3  # 1 to 2
"""


def test_what_is_legal_stands_in_the_comments_of_the_parameters_cell():
    assert runs.read_legal(LEGAL) == {
        "model_name": str,
        "count": range(2, 10),
        "pairs": range(4, 9, 4),
        "kind": ("float32", "bfloat16", ""),
        "save": bool,
    }


def test_a_notebook_that_there_is_not_is_refused_by_name():
    with pytest.raises(InputError, match="0 notebooks are called 'IOI'"):
        runs.begin("IOI", {})


def test_a_chapter_begins_with_its_parameters_checked():
    names = {"model_name": "a", "n_prompts": 5, "n_patched": 10, "n_tested": 10, "n_reference": 40}
    names |= {"n_random_sets": 10, "seed": 0}
    names |= {"device": "cpu", "dtype": "", "templates_of": ""}
    with pytest.raises(InputError, match="n_prompts = 5 is out of range: legal are 20 to 2000"):
        runs.begin("IOI_notebook", names)
    del names["templates_of"]
    with pytest.raises(InputError, match="parameter templates_of is missing"):
        runs.begin("IOI_notebook", names)
