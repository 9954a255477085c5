"""The data set holds every label and is read as it was saved, or not at all."""

import pandas as pd
import pytest
import torch
from shared.transcripts import planted

from helpers import runs
from studies.faithfulness import causes, dataset, hints, questions


@pytest.fixture(scope="module")
def small(embedded):
    """All labels of one task; the model that answers is planted."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (hints, causes):
            patch.setattr(module, "continue_questions", planted(lambda line: ("So it is 5.", "5")))
        patch.setattr(causes, "_regenerate", lambda *arguments, **options: None)
        patch.setattr(causes, "score_answers", lambda loaded, prompts, pairs: torch.arange(len(prompts)) - 20.0)
        options = {"n_constructed": 16, "n_hinted": 8, "n_causal": 8, "seed": 0, "tasks": ["parity"]}
        found = dataset.make_dataset(embedded, **options)
    assert set(found.changes["label"]) == {"causal_given", "causal_own"}
    return found.table


def test_a_data_set_holds_every_label_in_chunks(small):
    n_rows = small.groupby("label").size()
    assert n_rows[["constructed", "constructed_implied"]].tolist() == [8 * 16] * 2
    assert n_rows[["hint_free", "hint_direct"]].tolist() == [8 * 5, 8 * 2]
    assert n_rows["causal_given"] == 8
    assert small.groupby("label")["chunk"].max()[["constructed", "hint_free"]].tolist() == [3, 1]


def test_a_data_set_is_read_as_it_was_saved_or_not_at_all(small, tmp_path, refused):
    path = tmp_path / "cot.parquet"
    digest = dataset.save_dataset(small, path, about={"model": "planted"})
    table = dataset.read_dataset(path)
    sheet = table.attrs
    assert (sheet["sha256"], sheet["model"], sheet["version"]) == (digest, "planted", dataset.VERSION)
    assert dataset.compare_tokens(small[small["chunk"] == 0], table).eq(1).all()
    changed = table.copy()
    changed.loc[0, "contradicts"] = not table.loc[0, "contradicts"]
    changed.to_parquet(path)
    with refused("cot.parquet is damaged"):
        dataset.read_dataset(path)
    with refused("no data set at none.parquet"):
        dataset.read_dataset(tmp_path / "none.parquet")
    with refused("the record has no constructed transcript"):
        dataset.compare_tokens(small, table[table["label"] != "constructed"])
    with refused("n_hinted = 7", "multiples of 4"):
        dataset.make_dataset(None, n_constructed=8, n_hinted=7, n_causal=8, seed=0)


def test_other_tokens_are_seen(small):
    other = small.copy()
    other["token_ids"] = [[*ids[:-1], 0] if row % 2 else ids for row, ids in enumerate(small["token_ids"])]
    assert dataset.compare_tokens(small, other)["constructed"] == 0.5
    assert dataset.compare_tokens(small, small.drop(columns="style")).eq(1).all(), "by what the record has"


@pytest.mark.slow
def test_transcripts_come_from_the_data_set_or_are_made_as_there(embedded, tmp_path, monkeypatch):
    kept = {
        label: dataset.load_transcripts(embedded, label, tasks=["parity"], n=4, seed=0) for label in dataset.BEHAVIOURS
    }
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    for label, rows in kept.items():
        made = dataset.load_transcripts(embedded, label, tasks=["parity"], n=4, seed=0)
        assert set(made["question"]) >= set(rows["question"]) and len(rows) > 0
        for table in (rows, made):
            defined, truth = dataset.select_unfaithful(table)
            assert len(defined) == len(truth) and set(defined["label"]) <= {label}
    assert set(kept["hint_free"]["kind"]) == {"wrong"}


def test_a_model_that_never_answers_has_no_rows_of_behaviour(embedded, shots, monkeypatch):
    asked = questions.draw_questions(embedded, tasks=["parity"], n=2, seed=3)
    for module in (hints, causes):
        monkeypatch.setattr(module, "continue_questions", planted(lambda line: ("So", None)))
    rows = causes.ask_without_chains(embedded, asked, shots=shots, own=True)
    hinted = hints.ask_with_hints(embedded, asked, shots=shots)
    assert len(rows) == 0 and not hinted["at_cue"].notna().any()
    assert [dataset.select_unfaithful(table)[1] for table in (rows, hinted)] == [[], []]


def test_a_data_set_says_which_tasks_passed(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert dataset.read_passed_tasks(embedded) is None
    found = {"hint_free": ["coin_flips"], "causal_own": []}
    dataset.save_dataset(pd.DataFrame({"text": ["x"]}), dataset.locate_dataset(embedded), about={"passed": found})
    assert dataset.read_passed_tasks(embedded) == found


def test_a_label_of_no_behaviour_is_refused(embedded, refused):
    with refused("'constructed'", "hint_free"):
        dataset.load_transcripts(embedded, "constructed", tasks=["parity"], n=4, seed=0)
