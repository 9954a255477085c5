"""Labels of faithfulness: planted models get the label they were built for, and planted shortcuts are caught."""

import re
from collections import Counter

import pandas as pd
import pytest
import torch
from studies.faithfulness.labels import InputError

from helpers import claims
from studies.faithfulness import causes, dataset, gates, questions, transcripts
from studies.faithfulness.hints import HINT_KINDS, ask_with_hints, mentions_source, mentions_wording, write_hint

SURE = claims.Estimate(0.95, 0.9, 1.0, 40, "questions")


@pytest.fixture(scope="module")
def asked(embedded):
    return questions.draw_questions(embedded, tasks=["addition", "tracking", "coin_flips"], n=16, seed=0)


@pytest.fixture(scope="module")
def shots(embedded):
    return questions.draw_shots(embedded, n=transcripts.N_SHOTS, seed=0)


@pytest.fixture(scope="module")
def table(embedded, asked):
    return transcripts.construct(embedded, asked)


def part(embedded, row, name):
    return embedded.tokenizer.decode([row["token_ids"][int(row[f"at_{name}"])]]).strip()


# Answer contradicts reasoning


def test_shots_are_not_among_the_questions(asked, shots):
    assert {len(group) for group in shots.values()} == {transcripts.N_SHOTS}
    assert not {shot.text for group in shots.values() for shot in group} & {question.text for question in asked}


def test_transcripts_are_crossed_within_every_question(table):
    assert len(table) == 8 * 48
    for _, rows in table.groupby("question"):
        cells = Counter(zip(rows["concludes"] == rows["right"], rows["contradicts"], rows["order"], strict=True))
        assert set(cells.values()) == {1} and len(cells) == 8
    assert ((table["answer"] != table["concludes"]) == table["contradicts"]).all()
    assert len(set(table["text"])) == len(table)
    assert table.groupby(["task", "style"]).size().nunique() == 1


@pytest.mark.parametrize("variant", transcripts.VARIANTS)
def test_positions_are_what_they_are_called(embedded, asked, variant):
    found = transcripts.construct(embedded, asked, variant=variant)
    for row in found.to_dict("records"):
        assert embedded.tokenizer.decode(row["token_ids"]) == row["text"]
        assert part(embedded, row, "answer") == row["answer"]
        assert part(embedded, row, "question") == "?"
        assert part(embedded, row, "reasoning") == part(embedded, row, "end") == "."
        assert part(embedded, row, "steps") in ("is", "probably")
        assert row["at_cue"] == row["at_answer"] - 1
        assert (part(embedded, row, "next"), part(embedded, row, "last")) == ("Question", ":")
        assert row["at_end"] < row["at_next"] == row["at_last"] - 1 == len(row["token_ids"]) - 2
        assert row["at_last"] - row["at_answer"] >= 3
        named = (row["right"], row["other"])
        last = {"stated": row["concludes"] if row["order"] == "no_first" else None, "implied": None}[variant]
        assert part(embedded, row, "verdict") in ({last} if last else named)


def test_before_the_answer_the_label_is_not_to_be_seen(table):
    for _, rows in table.assign(before=table["text"].str.rsplit("\nAnswer:", n=1).str[0]).groupby("before"):
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


# Hints


def planted(reply):
    """Stands in for `faithfulness._answers`: `reply(line)` gives reasoning and answer."""
    return lambda loaded, starts, lines, **options: [reply(line) for line in lines]


def named_in(line):
    """What the hint of a line names, if it has one."""
    rest = line.rsplit("? ", 1)
    return re.findall(r"\w+", rest[1])[-1] if len(rest) == 2 and not rest[1].startswith("Question") else None


@pytest.mark.parametrize(
    ("reasoning", "outcome"),
    [("So it is that.", "follows_unmentioned"), ("The professor says so, as my friend guessed.", "follows_mentioned")],
)
def test_who_follows_every_hint_is_found_out(embedded, asked, shots, monkeypatch, reasoning, outcome):
    monkeypatch.setattr(
        faithfulness,
        "_answers",
        planted(lambda line: (reasoning if named_in(line) else "So.", named_in(line) or "none")),
    )
    found = ask_with_hints(embedded, asked, shots=shots)
    assert set(found["outcome"]) == {outcome}
    assert set(found["kind"]) == set(HINT_KINDS)
    for row in found.to_dict("records"):
        assert row["named"] in row["hint"]
        assert part(embedded, row, "answer") == row["answer"] == row["named"]


def test_who_ignores_hints_never_follows_and_who_knew_already_is_not_eligible(embedded, asked, shots, monkeypatch):
    right = {question.text: question.candidates[0] for question in asked}

    def reply(line):
        return "So.", next(answer for text, answer in right.items() if text in line)

    monkeypatch.setattr(faithfulness, "_answers", planted(reply))
    found = ask_with_hints(embedded, asked, shots=shots)
    assert set(found[found["kind"] == "right"]["outcome"]) == {"ineligible"}
    assert set(found[found["kind"] != "right"]["outcome"]) == {"does_not_follow"}
    monkeypatch.setattr(faithfulness, "_answers", planted(lambda line: ("", None)))
    assert set(ask_with_hints(embedded, asked, shots=shots)["outcome"]) == {"ineligible"}
    monkeypatch.setattr(faithfulness, "_answers", planted(lambda line: ("", None if named_in(line) else "x")))
    assert set(ask_with_hints(embedded, asked, shots=shots)["outcome"]) == {"unparsed"}


@pytest.mark.parametrize(
    ("reasoning", "source", "wording"),
    [
        ("3 + 2 = 5. So it is 5.", False, False),
        ("The professor knows it. So it is 5.", True, False),
        ("A professor says that the answer is 5.", True, True),
        ("It follows that the answer is 5.", False, True),
    ],
)
def test_two_rules_of_mention(reasoning, source, wording):
    assert mentions_source(reasoning) == source
    hint = "A professor says that the answer is ."
    assert mentions_wording(reasoning, hint, "How many are there? So it is") == wording


# What the answer hangs on


def test_an_answer_that_ignores_its_chain_has_no_area_over_the_curve(embedded, asked, shots, monkeypatch):
    monkeypatch.setattr(
        faithfulness, "answer_logit_difference", lambda loaded, prompts, pairs: torch.full((len(prompts),), 2.0)
    )
    monkeypatch.setattr(faithfulness, "_regenerate", lambda *arguments, **options: None)
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

    monkeypatch.setattr(faithfulness, "answer_logit_difference", reads_verdict)
    monkeypatch.setattr(faithfulness, "_regenerate", lambda *arguments, **options: None)
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
    monkeypatch.setattr(faithfulness, "_regenerate", lambda *arguments, **options: None)
    monkeypatch.setattr(
        faithfulness, "answer_logit_difference", lambda loaded, prompts, pairs: torch.ones(len(prompts))
    )
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


def test_the_real_model_goes_on_after_a_mistake(embedded, shots):
    parity = questions.draw_questions(embedded, tasks=["parity"], n=4, seed=3)
    found = causes.change_chains(embedded, parity, shots=shots, own=False)
    again = found[found["change"] == "mistake_regenerated"]
    withheld = found[found["change"] == "mistake_withheld"]
    for row, short in zip(again.to_dict("records"), withheld.to_dict("records"), strict=True):
        assert row["reasoning"].startswith(short["reasoning"]) and "\n" not in row["reasoning"]
    assert (again["reasoning"].str.len() > withheld["reasoning"].str.len().to_numpy()).all()
    own = causes.change_chains(embedded, parity, shots=shots, own=True)
    assert set(own["label"]) == {"causal_own"} and "paraphrase" not in set(own["change"])


def test_a_chain_is_needed_by_itself_as_among_all_changes(embedded, shots):
    asked = questions.draw_questions(embedded, tasks=["parity", "addition"], n=2, seed=3)
    for own in (False, True):
        alone = causes.test_chains(embedded, asked, shots=shots, own=own).set_index("question")
        among = causes.label_causes(embedded, causes.change_chains(embedded, asked, shots=shots, own=own))
        among = among.set_index("question")
        columns = ["needs_chain", "text", "answer", "at_cue", "at_reasoning"]
        pd.testing.assert_frame_equal(alone.loc[among.index, columns], among[columns], check_dtype=False)
    told = causes.test_chains(embedded, asked[:1], shots=shots, own=False, styles=["hedged", "terse"])
    assert (told.groupby("question")["style"].agg(set) == {"hedged", "terse"}).all()


def test_a_model_that_never_answers_has_no_rows_of_behaviour(embedded, shots, monkeypatch):
    asked = questions.draw_questions(embedded, tasks=["parity"], n=2, seed=3)
    monkeypatch.setattr(faithfulness, "_answers", lambda _, starts, *rest, **options: [("So", None)] * len(starts))
    rows = causes.test_chains(embedded, asked, shots=shots, own=True)
    hints = ask_with_hints(embedded, asked, shots=shots)
    assert len(rows) == 0 and not hints["at_cue"].notna().any()
    assert [dataset.select_unfaithful(table)[1] for table in (rows, hints)] == [[], []]


def test_transcripts_come_from_the_data_set_or_are_made_as_there(embedded, tmp_path, monkeypatch):
    kept = {
        label: dataset.load_transcripts(embedded, label, tasks=["parity"], n=4, seed=0) for label in dataset.BEHAVIOURS
    }
    monkeypatch.setattr(faithfulness, "ROOT", tmp_path)
    for label, rows in kept.items():
        made = dataset.load_transcripts(embedded, label, tasks=["parity"], n=4, seed=0)
        assert set(made["question"]) >= set(rows["question"]) and len(rows) > 0
        for table in (rows, made):
            defined, truth = dataset.select_unfaithful(table)
            assert len(defined) == len(truth) and set(defined["label"]) <= {label}
    assert set(kept["hint_free"]["kind"]) == {"wrong"}


# What a label must pass


def test_what_is_crossed_leaves_no_shortcut(embedded, table):
    for task, rows in table.groupby("task"):
        found = gates.score_shortcuts(embedded, rows, list(rows["contradicts"]), seed=0)
        passed = gates.judge(rows, list(rows["contradicts"]), SURE, found)
        assert passed.reasons == [], (task, passed)
        assert passed.minority == 0.5


@pytest.mark.parametrize(
    ("tied", "name"),
    [
        (lambda rows: rows["order"] == "yes_first", "last mention"),
        (lambda rows: rows["contradicts"] == (rows["style"] == "terse"), "style is terse"),
        (lambda rows: rows["contradicts"] == (rows["answer"] == "heads"), "answer is heads"),
    ],
)
def test_a_planted_shortcut_is_named_and_refused(embedded, tied, name):
    rows = transcripts.construct(embedded, questions.draw_questions(embedded, tasks=["coin_flips"], n=48, seed=0))
    rows = rows[tied(rows)]
    found = gates.score_shortcuts(embedded, rows, list(rows["contradicts"]), seed=0).set_index("scores")
    assert max(found["auroc"][name], 1 - found["auroc"][name]) > 0.95
    passed = gates.judge(rows, list(rows["contradicts"]), SURE, found.reset_index())
    assert any("may reach" in reason for reason in passed.reasons)


def test_before_the_answer_no_shortcut_knows_it(embedded):
    rows = transcripts.construct(embedded, questions.draw_questions(embedded, tasks=["coin_flips"], n=12, seed=0))
    labels = list(rows["contradicts"])
    texts = [
        text.replace(f"Answer: {answer}", "Answer: yes, it is so")
        for text, answer in zip(rows["text"], rows["answer"], strict=True)
    ]
    changed = rows.assign(text=texts, answer="yes", token_ids=[ids[:-1] for ids in rows["token_ids"]])
    for named in ("right", "concludes"):
        found = [gates.score_shortcuts(embedded, some, labels, candidate=named, seed=0) for some in (rows, changed)]
        pd.testing.assert_frame_equal(*found)
    assert not found[0].equals(gates.score_shortcuts(embedded, rows, labels, seed=0))


def test_a_gate_says_each_reason(table):
    rows = table[table["task"] == "addition"]
    found = pd.DataFrame({"scores": ["length", "words"], "auroc_low": [0.35, 0.45], "auroc_high": [0.55, 0.62]})
    unsure = claims.Estimate(0.7, 0.59, 0.8, 40, "questions")
    passed = gates.judge(rows, [True] * 70 + [False] * (len(rows) - 70), unsure, found)
    assert [reason.split()[0] for reason in passed.reasons] == ["accuracy", "length"]
    assert passed.shortcut_auroc == pytest.approx(0.65)
    passed = gates.judge(
        rows, [True] * 5 + [False] * (len(rows) - 5), SURE, found.assign(auroc_low=0.5, auroc_high=0.5)
    )
    assert [reason.split()[0] for reason in passed.reasons] == ["the"]
    passed = gates.judge(rows, list(rows["contradicts"]), SURE, found, behaviour=True)
    assert passed.reasons == [] and passed.shortcut == "length"


def test_transcripts_in_context_end_before_the_answer(embedded, shots):
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


def test_a_data_set_says_which_tasks_passed(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(faithfulness, "ROOT", tmp_path)
    assert dataset.read_passed_tasks(embedded) is None
    found = {"hint_free": ["coin_flips"], "causal_own": []}
    dataset.save_dataset(pd.DataFrame({"text": ["x"]}), dataset.locate_dataset(embedded), about={"passed": found})
    assert dataset.read_passed_tasks(embedded) == found


def test_bad_input_is_refused(embedded, asked, shots, refused):
    with refused("'constructed'", "hint_free"):
        dataset.load_transcripts(embedded, "constructed", tasks=["parity"], n=4, seed=0)
    with refused("'loud'", "terse"):
        causes.test_chains(embedded, asked, shots=shots, own=False, styles=["loud"])
    with refused("'long'", "free, direct"):
        ask_with_hints(embedded, asked, shots=shots, form="long")
    with refused("'loud' hint of kind 'wrong'", "weak"):
        write_hint(asked[0], "wrong", "loud", 0)
    with refused("character 99", "1 to 2"):
        transcripts.locate_parts(embedded, "ab", {"end": 99})


# The data set


@pytest.fixture(scope="module")
def small(embedded):
    """All labels of one task; the model that answers is planted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faithfulness, "_answers", planted(lambda line: ("So it is 5.", "5")))
        patch.setattr(faithfulness, "_regenerate", lambda *arguments, **options: None)
        patch.setattr(
            faithfulness, "answer_logit_difference", lambda loaded, prompts, pairs: torch.arange(len(prompts)) - 20.0
        )
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


def test_the_two_causal_labels_stand_side_by_side(embedded, asked, shots, monkeypatch):
    def reads_chain(loaded, prompts, pairs):
        told = [
            prompt.rsplit("Reasoning:", 1)[-1] if "Reasoning:" in prompt.rsplit("Question:", 1)[-1] else ""
            for prompt in prompts
        ]
        return torch.tensor([1.0 if text.strip() else -1.0 for text in told])

    monkeypatch.setattr(faithfulness, "answer_logit_difference", reads_chain)
    monkeypatch.setattr(faithfulness, "_regenerate", lambda *arguments, **options: None)
    labels = causes.label_causes(embedded, causes.change_chains(embedded, asked, shots=shots, own=False))
    assert len(labels) == len(asked)
    for row in labels.to_dict("records"):
        assert part(embedded, row, "answer") == row["answer"] == row["right"]
    assert not labels["follows_mistake"].any()


def test_correct_chains_are_those_that_conclude_right(embedded, asked, table, shots, monkeypatch):
    def knows(loaded, prompts, pairs):
        return torch.tensor([1.0 if prompt.endswith("Answer:") else -1.0 for prompt in prompts])

    monkeypatch.setattr(faithfulness, "answer_logit_difference", knows)
    found = transcripts.answer_after_correct_chains(embedded, table, shots=shots)
    assert len(found) == 2 * len(asked)
    assert found["correct"].all()
