"""Several models and seeds at once, on tiny models in a copy of the checkout."""

import json
import os
import signal

import pandas as pd
import pytest
from shared.checkout import Checkout, save_model

from helpers import InputError, models
from workflow import book, chapters, grid

pytestmark = pytest.mark.slow


def test_every_combination_is_a_cell_of_its_own():
    cells = grid.list_cells("ci", ["gpt2-small", models.DEFAULT_MODEL], ["IOI_notebook", "day3-4_first_probes"], [0, 2])
    assert len(cells) == len({cell.record for cell in cells}) == 8
    for cell in cells:
        parameters = chapters.run_parameters(cell.run, cell.chapter)
        assert (parameters["model_name"], parameters["seed"]) == (cell.model, cell.seed)
        sizes = {name: size for name, size in chapters.profile_parameters("ci", cell.chapter).items() if name != "seed"}
        assert sizes and parameters.items() >= sizes.items()
    assert len(grid.list_cells("ci", ["gpt2-small", "gpt2-small"], [], [1, 1])) == len(chapters.all_chapters())


@pytest.mark.parametrize(
    ("profile", "names", "some", "sentence"),
    [
        ("huge", ["gpt2-small"], [], "there is no profile 'huge'"),
        ("ci", ["gpt2-smal"], [], "unknown model 'gpt2-smal': did you mean 'gpt2-small'?"),
        ("ci", ["gpt2-small"], ["IOI"], "there is no chapter 'IOI'"),
        ("ci@foo", ["gpt2-small"], [], "there is no profile 'ci@foo'"),
        ("ci+1", ["gpt2-small"], [], "there is no profile 'ci+1'"),
    ],
)
def test_a_grid_that_can_not_be_is_refused(profile, names, some, sentence):
    with pytest.raises(InputError) as caught:
        grid.list_cells(profile, names, some, [0])
    assert str(caught.value).startswith(sentence)


def test_a_cell_is_done_by_what_its_last_run_said(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "RUNS", tmp_path)
    (cell,) = grid.list_cells("ci", ["gpt2-small"], ["IOI_notebook"], [0])
    log = cell.record.with_suffix(".log")
    assert cell.state() == "to do"
    book.write(log, f"{cell.chapter}: Summary (cell 3 of 4)\n")
    assert cell.state() == "running, or stopped"
    book.write(log, f"generate: 10 %\rgenerate: 100 %\r{cell.chapter}: done in 20 s\n")
    assert cell.state() == "running, or stopped", "without a record"
    book.write(cell.record, "{}")
    assert cell.state() == "done"
    book.write(log, "error: chapter x: KeyError\n")
    assert cell.state() == "failed: chapter x: KeyError", "the record is that of an earlier run"
    assert len(grid.gather_claims([cell])) == 0


def test_memory_is_what_was_measured_or_grows_with_the_weights(tmp_path, monkeypatch):
    chapter = chapters.find_chapter("IOI_notebook")
    (tmp_path / "_build" / "runs" / "ci" / chapter).parent.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(chapters, "run_parameters", lambda run, chapter: {"model_name": run.partition("@")[2]})
        patch.setattr(chapters, "ROOT", tmp_path)
        small, large = (
            chapters.estimate_memory(chapter, f"ci@{name}") for name in ("gpt2-small", "qwen2.5-0.5b-instruct")
        )
        record = '{"model": {"name": "gpt2-small"}, "provenance": {"memory_gb": 1.5}}'
        book.write(tmp_path / "_build" / "runs" / "ci" / f"{chapter}.json", record)
        assert chapters.estimate_memory(chapter, "ci@gpt2-small") == 1800
        assert chapters.estimate_memory(chapter, "ci@qwen2.5-0.5b-instruct") == 1800 + int(
            1.2 * 4 * (494.032768 - 124.439808)
        )
        assert chapters.estimate_memory(chapter, "ci@org/some-7b") > 10_000, "of which nothing is known"
    assert 1000 < small <= large


def test_another_draw_is_kept_beside_the_record_without_what_it_made(tmp_path, monkeypatch):
    chapter = chapters.find_chapter("IOI_notebook")
    monkeypatch.setattr(book, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(book.runs, "locate_results", lambda name: tmp_path / "results" / name)
    for run in ("record", "record+2@a-model"):
        folder = tmp_path / "runs" / run
        book.write(folder / f"{chapter}.json", json.dumps({"model": {"name": "a-model"}, "run": run}))
        book.write(folder / chapter / f"{run[:7]}.parquet", b"rows")
        monkeypatch.setattr(chapters, "name_folder", lambda run: run)
        book.publish(chapter, run)
    kept = {str(path.relative_to(tmp_path / "results" / "a-model")) for path in (tmp_path / "results").rglob("*.*")}
    kept = {path for path in kept if path.endswith((".json", ".parquet"))}
    assert kept == {f"record/{chapter}.json", f"record+2/{chapter}.json", "datasets/record.parquet"}


@pytest.mark.rare
def test_a_failure_stops_no_other_and_a_killed_grid_goes_on(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    good, other = save_model(folder / "good"), save_model(folder / "other", n_layers=3)
    broken = folder / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    checkout = Checkout(folder / "a check out", good)
    names = [str(path) for path in (good, other, broken)]
    command = ("ci", "--models", *names, "--chapters", "first", "--seeds", "0", "1")
    process = checkout.start(*command, module="workflow.grid")
    n_done = 0
    for line in process.stderr:
        n_done += "first: done" in line
        if n_done == 3:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shown = checkout.run(*command, "--status", module="workflow.grid")
    assert " of 6 done" in shown.stdout and "6 of 6 done" not in shown.stdout and shown.returncode == 1
    result = checkout.run(*command, module="workflow.grid")
    assert result.returncode == 1 and "4 of 6 done" in result.stdout
    assert result.stdout.count("failed: ") == 2 and "names no model_type" in result.stdout
    assert 1 <= result.stderr.count("first: done") < 4, "what was done before the kill is not run again"
    table = pd.read_parquet(checkout.folder / "_build" / "grid" / "claims.parquet")
    assert set(zip(table["model"], table["seed"], strict=True)) == {
        (name, seed) for name in names[:2] for seed in (0, 1)
    }
    assert set(table["id"]) == {"is-more"} and table.groupby(["model", "seed"])["value"].first().nunique() == 2
    again = checkout.run(*command, module="workflow.grid")
    assert "first: done" not in again.stderr
