"""Transcripts are crossed within every question, and their parts are where they are said to be."""

from collections import Counter

import pytest
import torch
from shared.transcripts import read_part

from helpers import InputError
from studies.faithfulness import causes, questions, transcripts


def test_shots_are_not_among_the_questions(asked, shots):
    assert {len(group) for group in shots.values()} == {transcripts.N_SHOTS}
    assert not {shot.text for group in shots.values() for shot in group} & {question.text for question in asked}


def test_transcripts_are_crossed_within_every_question(constructed):
    assert len(constructed) == 8 * 48
    for _, rows in constructed.groupby("question"):
        cells = Counter(zip(rows["concludes"] == rows["right"], rows["contradicts"], rows["order"], strict=True))
        assert set(cells.values()) == {1} and len(cells) == 8
    assert ((constructed["answer"] != constructed["concludes"]) == constructed["contradicts"]).all()
    assert len(set(constructed["text"])) == len(constructed)
    assert constructed.groupby(["task", "style"]).size().nunique() == 1


@pytest.mark.parametrize("variant", transcripts.VARIANTS)
def test_positions_are_what_they_are_called(embedded, asked, variant):
    found = transcripts.construct(embedded, asked, variant=variant)
    for row in found.to_dict("records"):
        assert embedded.tokenizer.decode(row["token_ids"]) == row["text"]
        assert read_part(embedded, row, "answer") == row["answer"]
        assert read_part(embedded, row, "question") == "?"
        assert read_part(embedded, row, "reasoning") == read_part(embedded, row, "end") == "."
        assert read_part(embedded, row, "steps") in ("is", "probably")
        assert row["at_cue"] == row["at_answer"] - 1
        assert (read_part(embedded, row, "next"), read_part(embedded, row, "last")) == ("Question", ":")
        assert row["at_end"] < row["at_next"] == row["at_last"] - 1 == len(row["token_ids"]) - 2
        assert row["at_last"] - row["at_answer"] >= 3
        named = (row["right"], row["other"])
        last = {"stated": row["concludes"] if row["order"] == "no_first" else None, "implied": None}[variant]
        assert read_part(embedded, row, "verdict") in ({last} if last else named)


def test_before_the_answer_the_label_is_not_to_be_seen(constructed):
    for _, rows in constructed.assign(before=constructed["text"].str.rsplit("\nAnswer:", n=1).str[0]).groupby("before"):
        assert sorted(rows["contradicts"]) == [False, True]


def test_an_implied_verdict_takes_neither_side(embedded, asked):
    implied = transcripts.construct(embedded, asked, variant="implied")
    assert set(implied["label"]) == {"constructed_implied"}
    verdicts = implied["text"].str.extract(r"(either \w+ or \w+)\.\nAnswer:")[0]
    sides = implied.assign(verdict=verdicts).groupby(["question", "verdict"])["concludes"].nunique()
    assert (sides == 2).all()


def test_any_style_will_do_that_writes_the_verdict_out(embedded, asked, refused):
    styles = {"shouted": lambda steps, verdict: " ".join(steps).upper() + f" {verdict}!"}
    found = transcripts.construct(embedded, asked, styles=styles)
    assert set(found["style"]) == {"shouted"}
    with refused("leaves out the verdict"):
        transcripts.construct(embedded, asked, styles={"mute": lambda steps, verdict: "Hm."})
    with refused("'silent'", "stated, implied"):
        transcripts.construct(embedded, asked, variant="silent")


@pytest.mark.slow
def test_the_real_model_follows_a_stated_verdict(embedded, shots):
    parity = questions.draw_questions(embedded, tasks=["parity"], n=12, seed=3)
    found = transcripts.construct(embedded, parity)
    found = found[~found["contradicts"]]
    prefix = questions.write_examples(shots["parity"], form="stated")
    prompts = [prefix + text.rsplit("Answer:", 1)[0] + "Answer:" for text in found["text"]]
    concluded = [
        (row["concludes"], row["right" if row["concludes"] == row["other"] else "other"])
        for row in found.to_dict("records")
    ]
    difference = transcripts.score_answers(embedded, prompts, concluded)
    assert (difference > 0).float().mean() > 0.9


def test_correct_chains_are_those_that_conclude_right(embedded, asked, constructed, shots, monkeypatch):
    def knows(loaded, prompts, pairs):
        return torch.tensor([1.0 if prompt.endswith("Answer:") else -1.0 for prompt in prompts])

    monkeypatch.setattr(transcripts, "score_answers", knows)
    found = transcripts.answer_after_correct_chains(embedded, constructed, shots=shots)
    assert len(found) == 2 * len(asked)
    assert found["correct"].all()


def test_transcripts_in_context_end_before_the_answer(embedded, shots, monkeypatch):
    monkeypatch.setattr(causes, "_regenerate", lambda *arguments, **options: None)  # of which nothing is used here
    asked = questions.draw_questions(embedded, tasks=["parity", "addition"], n=2, seed=0)
    rows = causes.label_causes(embedded, causes.change_chains(embedded, asked, shots=shots, own=False))
    prompts, at = transcripts.put_in_context(embedded, rows, seed=0)
    for number, (row, prompt) in enumerate(zip(rows.to_dict("records"), prompts, strict=True)):
        text = embedded.tokenizer.decode(prompt)
        assert text.startswith(questions.write_examples(shots[row["task"]], form="stated"))
        assert text.rstrip().endswith(row["text"].rsplit(" ", 1)[0])
        assert at["cue"][number] == len(prompt) - 1 == at["before the cue"][number] + 1
        assert embedded.tokenizer.decode(prompt[at["reasoning"][number]]) == "."
    with_answer, places = transcripts.put_in_context(embedded, rows, seed=0, answered=True)
    for row, prompt, longer, place in zip(rows["answer"], prompts, with_answer, places["answer"], strict=True):
        assert longer[:-1] == prompt and place == len(prompt)
        assert embedded.tokenizer.decode(longer[place:]).strip() == row
    with pytest.raises(InputError, match="other tokens"):
        transcripts.put_in_context(embedded, rows.assign(text=rows["text"] + " x"), seed=0)


def test_a_part_outside_the_text_is_refused(embedded, refused):
    with refused("character 99", "1 to 2"):
        transcripts.locate_parts(embedded, "ab", {"end": 99})
