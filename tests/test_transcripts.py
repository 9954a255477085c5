"""Transcripts are crossed within every question, and their parts are where they are said to be."""

from collections import Counter

import pytest
import torch
from shared.transcripts import continued, read_part

from studies.faithfulness import questions, transcripts


def last_token(candidate):
    """A number has a token for each digit."""
    return candidate[-1] if candidate.isdigit() else candidate


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
        assert read_part(embedded, row, "answer") == last_token(row["answer"])
        assert read_part(embedded, row, "question") == "?"
        assert read_part(embedded, row, "reasoning") == read_part(embedded, row, "end") == "."
        assert read_part(embedded, row, "steps") in ("is", "probably")
        assert row["at_cue"] == row["at_answer"] - 1
        assert (read_part(embedded, row, "next"), read_part(embedded, row, "last")) == ("Question", ":")
        assert row["at_end"] < row["at_next"] == row["at_last"] - 1 == len(row["token_ids"]) - 2
        assert row["at_last"] - row["at_answer"] >= 3
        last = {"stated": row["concludes"] if row["order"] == "no_first" else None, "implied": None}[variant]
        named = {last} if last else {row["right"], row["other"]}
        assert read_part(embedded, row, "verdict") in {last_token(candidate) for candidate in named}


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


@pytest.mark.parametrize("variant", transcripts.VARIANTS)
def test_transcripts_in_context_end_before_the_answer(embedded, asked, shots, variant, refused):
    rows = transcripts.construct(embedded, asked[::8], variant=variant)
    rows["before"] = rows["task"].map(transcripts.write_examples_by_task(shots, variant))
    prompts, at = transcripts.put_in_context(embedded, rows)
    assert list(at) == ["reasoning", "before the cue", "cue"]
    longer, places = transcripts.put_in_context(embedded, rows, answered=True)
    for number, row in enumerate(rows.to_dict("records")):
        prompt, text = prompts[number], embedded.decode(prompts[number])
        lead, pair = questions.encode_candidates(embedded, (row["right"], row["other"]))
        cue = f"{row['text'].rsplit('Answer:', 1)[0]}Answer:{embedded.decode(lead)}"
        assert text.removeprefix(embedded.tokenizer.bos_token) == row["before"] + cue
        assert at["cue"][number] == len(prompt) - 1 == at["before the cue"][number] + 1
        assert embedded.decode(prompt[: at["reasoning"][number] + 1]) == text.rsplit("\nAnswer:", 1)[0]
        assert longer[number] == [*prompt, pair[row["answer"] == row["other"]]]
        assert {name: of_name[number] for name, of_name in places.items()} == {
            **{name: of_name[number] for name, of_name in at.items()},
            "answer": len(prompt),
        }
    with refused("other tokens", repr(rows["question"].iloc[0])):
        transcripts.put_in_context(embedded, rows.assign(text=rows["text"] + " x"))


def test_each_question_goes_on_after_its_own_examples(embedded, monkeypatch):
    told = {"one?": " 3 + 2 = 5. So it is 5.\nAnswer: 5.", "two?": " So it is"}
    prompts = []

    def generate(loaded, some, **options):
        prompts.extend(some)
        return continued(told.get)(loaded, some)

    monkeypatch.setattr("helpers.hooks.generate", generate)
    starts, lines = ["before one\n\n", "before two\n\n"], ["Question: one?", "Question: two?"]
    found = transcripts.continue_questions(embedded, starts, lines, folder=None)
    assert found == [("3 + 2 = 5. So it is 5.", "5"), ("So it is", None)]
    assert prompts == [f"{start}{line}\nReasoning:" for start, line in zip(starts, lines, strict=True)]


@pytest.mark.parametrize("answer", ["Rome", None])
def test_what_a_model_wrote_goes_up_to_its_answer(embedded, answer):
    row = transcripts.write_parts(embedded, "Question: Where?", "It is Rome.", answer)
    assert row["text"] == "Question: Where?\nReasoning: It is Rome.\nAnswer:" + (" Rome." if answer else "")
    assert embedded.decode(row["token_ids"]) == row["text"]
    assert (read_part(embedded, row, "question"), read_part(embedded, row, "reasoning")) == ("?", ".")
    if answer:
        assert (read_part(embedded, row, "cue"), read_part(embedded, row, "answer")) == (":", answer)
    else:
        assert row["at_cue"] is row["at_answer"] is None


def test_a_part_outside_the_text_is_refused(embedded, refused):
    with refused("character 99", "1 to 2"):
        transcripts.locate_parts(embedded, "ab", {"end": 99})
