"""Planted models whose answer hangs on the chain, or does not, get the label they were built for."""

import pandas as pd
import pytest
import torch
from shared.transcripts import read_part

from studies.faithfulness import causes, questions


def test_an_answer_that_ignores_its_chain_has_no_area_over_the_curve(embedded, asked, shots, monkeypatch):
    monkeypatch.setattr(causes, "score_answers", lambda loaded, prompts, pairs: torch.full((len(prompts),), 2.0))
    monkeypatch.setattr(causes, "_regenerate", lambda *arguments, **options: None)
    changed = causes.measure_effects(causes.change_chains(embedded, asked, shots=shots, own=False))
    assert not changed["flips"].any()
    assert (changed["lost"] == 0).all()
    assert (causes.measure_areas_over_curve(changed) == 0).all()


def test_an_answer_that_needs_the_verdict_is_lost_with_it(embedded, asked, shots, monkeypatch):
    def reads_verdict(loaded, prompts, pairs):
        told = [prompt.rsplit("Reasoning:", 1)[-1] for prompt in prompts]
        return torch.tensor(
            [1.0 if f"{first}, not {other}" in text else -1.0 for text, (first, other) in zip(told, pairs, strict=True)]
        )

    monkeypatch.setattr(causes, "score_answers", reads_verdict)
    monkeypatch.setattr(causes, "_regenerate", lambda *arguments, **options: None)
    found = causes.change_chains(embedded, asked, shots=shots, own=False)
    changed = causes.measure_effects(found)
    flips = changed.groupby("change")["flips"].mean()
    assert flips[["early", "filler", "mistake_withheld"]].tolist() == [1, 1, 1]
    assert flips[["mistake_kept", "paraphrase"]].tolist() == [0, 0]
    assert (changed[changed["flips"]]["lost"] == 2).all()
    # The same answer only after the last of n sentences: all but half of the last step of the curve.
    lengths = found.groupby("question")["n_sentences"].first()
    areas = causes.measure_areas_over_curve(changed).droplevel("task")
    assert (areas - (1 - 0.5 / lengths.loc[areas.index])).abs().max() < 1e-9


def test_changes_are_what_they_are_called(embedded, asked, shots, monkeypatch):
    monkeypatch.setattr(causes, "_regenerate", lambda *arguments, **options: None)
    monkeypatch.setattr(causes, "score_answers", lambda loaded, prompts, pairs: torch.ones(len(prompts)))
    found = causes.change_chains(embedded, asked, shots=shots, own=False)
    for _, rows in found.groupby("question"):
        told = {(row["change"], row["kept"]): row["reasoning"] for row in rows.to_dict("records")}
        n = rows["n_sentences"].iloc[0]
        full = told["full", n]
        assert told["early", 0] == ""
        assert [kept for change, kept in told if change == "early"] == list(range(n))
        assert all(full.startswith(told["early", kept]) for kept in range(n))
        assert set(told["filler", 0].split()) == {"..."}
        tokens = [len(embedded.tokenizer(f" {text}")["input_ids"]) for text in (full, told["filler", 0])]
        assert tokens[0] == tokens[1]
        assert told["paraphrase", n] != full
        places = sorted({kept for change, kept in told if change == "mistake_kept"})
        assert len(places) == 2
        for place in places:
            kept, withheld = told["mistake_kept", place], told["mistake_withheld", place]
            assert kept.startswith(withheld) and kept != full
            assert questions.split_sentences(kept)[place + 1 :] == questions.split_sentences(full)[place + 1 :]


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("Anna has 3 and Ben has 4.", "Ben has 3 and Anna has 4."),
        ("3 + 2 = 5.", "3 + 2 = 6."),
        ("Nothing is left.", None),
    ],
)
def test_a_mistake_exchanges_candidates_or_miscounts(sentence, wrong):
    assert causes.make_mistake(sentence, ("Anna", "Ben")) == wrong


@pytest.mark.slow
def test_the_real_model_goes_on_after_a_mistake(embedded, shots):
    parity = questions.draw_questions(embedded, tasks=["parity"], n=2, seed=3)
    found = causes.change_chains(embedded, parity, shots=shots, own=False)
    again = found[found["change"] == "mistake_regenerated"]
    withheld = found[found["change"] == "mistake_withheld"]
    for row, short in zip(again.to_dict("records"), withheld.to_dict("records"), strict=True):
        assert row["reasoning"].startswith(short["reasoning"]) and "\n" not in row["reasoning"]
    assert (again["reasoning"].str.len() > withheld["reasoning"].str.len().to_numpy()).all()
    own = causes.change_chains(embedded, parity, shots=shots, own=True)
    assert set(own["label"]) == {"causal_own"} and "paraphrase" not in set(own["change"])


@pytest.mark.slow
def test_a_chain_is_needed_by_itself_as_among_all_changes(embedded, shots, monkeypatch):
    monkeypatch.setattr(causes, "_regenerate", lambda *arguments, **options: None)  # of which nothing is compared
    asked = questions.draw_questions(embedded, tasks=["parity", "addition"], n=1, seed=3)
    for own in (False, True):
        alone = causes.ask_without_chains(embedded, asked, shots=shots, own=own).set_index("question")
        among = causes.label_causes(embedded, causes.change_chains(embedded, asked, shots=shots, own=own))
        among = among.set_index("question")
        columns = ["needs_chain", "text", "answer", "at_cue", "at_reasoning"]
        pd.testing.assert_frame_equal(alone.loc[among.index, columns], among[columns], check_dtype=False)
    told = causes.ask_without_chains(embedded, asked[:1], shots=shots, own=False, styles=["hedged", "terse"])
    assert (told.groupby("question")["style"].agg(set) == {"hedged", "terse"}).all()


def test_the_two_causal_labels_stand_side_by_side(embedded, asked, shots, monkeypatch):
    def reads_chain(loaded, prompts, pairs):
        told = [
            prompt.rsplit("Reasoning:", 1)[-1] if "Reasoning:" in prompt.rsplit("Question:", 1)[-1] else ""
            for prompt in prompts
        ]
        return torch.tensor([1.0 if text.strip() else -1.0 for text in told])

    monkeypatch.setattr(causes, "score_answers", reads_chain)
    monkeypatch.setattr(causes, "_regenerate", lambda *arguments, **options: None)
    labels = causes.label_causes(embedded, causes.change_chains(embedded, asked, shots=shots, own=False))
    assert len(labels) == len(asked)
    for row in labels.to_dict("records"):
        assert read_part(embedded, row, "answer") == row["answer"] == row["right"]
    assert not labels["follows_mistake"].any()


def test_a_style_that_there_is_not_is_refused(embedded, asked, shots, refused):
    with refused("'loud'", "terse"):
        causes.ask_without_chains(embedded, asked, shots=shots, own=False, styles=["loud"])


@pytest.mark.parametrize("habit", ["first option", "right answer"])
def test_both_orders_tell_a_habit_from_a_need(embedded, asked, shots, monkeypatch, habit):
    """A model that goes by its chain, and without one names the option that stands first, or the right one."""

    def answer(loaded, prompts, pairs):
        leads = []
        for prompt, (right, other) in zip(prompts, pairs, strict=True):
            line, told = prompt.rsplit("Question:", 1)[-1].split("\n", 1)
            if f"{right}, not {other}" in told:  # the verdict
                leads.append(1.0)
            elif habit == "first option":
                leads.append(1.0 if line.rindex(f" {right}") < line.rindex(f" {other}") else -1.0)
            else:
                leads.append(0.25)
        return torch.tensor(leads)

    monkeypatch.setattr(causes, "score_answers", answer)
    monkeypatch.setattr(causes, "_regenerate", lambda *arguments, **options: None)
    found = causes.ask_in_both_orders(embedded, asked, shots=shots)
    assert len(found) == 2 * len(asked) and found.groupby("question")["options"].nunique().eq(2).all()
    last = found["options"] == "right_last"
    if habit == "first option":
        assert found["names_first"].all()
        assert (found["needs_chain"] == last).all() and (found["follows_mistake"] == last).all()
        assert set(found.loc[last, "lost_without"]) == {2.0} and set(found.loc[~last, "lost_without"]) == {0.0}
    else:
        assert (found["names_first"] == ~last).all()
        assert not found["needs_chain"].any() and set(found["lost_without"]) == {0.75}
