"""The audit names what was planted, stored or not, and lets through what no factor tells."""

import random

import numpy as np
import pandas as pd
import pytest
from shared.transcripts import continued, read_options, scored

from studies.faithfulness import audit, causes, questions, transcripts

STYLES = ("terse", "verbose", "hedged")
NAMES = ("Ann", "Ben", "Cora", "Dan", "Eve", "Finn", "Gail", "Hugh")


def write_rows(n, seed=0, tasks=("addition", "letters")):
    """Transcripts of questions whose options, style and batch are drawn at random, independent of any label."""
    generator, names = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    rows = []
    for task in tasks:
        for number in range(n):
            right, other = generator.permutation(9)[:2]
            first, second = generator.permutation([right, other])
            told = (
                f"{STYLES[generator.integers(3)]} case {number} of {NAMES[names.integers(8)]} at {names.integers(1000)}"
            )
            line = f"Question: {told}? Is it {first} or {second}?"
            cells = {"style": told.split()[0], "right": right, "other": other}
            cells |= {"batch": int(generator.integers(4)), "weight": int(generator.integers(100))}
            rows.append({"task": task, "question": f"{told} {task}", "text": f"{line}\nAnswer: {right}."} | cells)
    return pd.DataFrame(rows).astype({"right": str, "other": str})


def plant(table, confound, seed=0, share=0.9):
    """Labels that agree with the confound in so large a share of the rows."""
    agree = np.random.default_rng(seed).random(len(table)) < share
    return np.where(agree, confound, ~confound)


def place(table):
    return table.groupby("task").cumcount().to_numpy()


def rank_by_length(table):
    told = table["text"].str.rsplit("\nAnswer:", n=1).str[0].str.len()
    of_question = told.groupby([table["task"], table["question"]]).mean().groupby("task").rank(method="first") - 1
    return of_question.loc[[*zip(table["task"], table["question"], strict=True)]].to_numpy()


CONFOUNDS = {
    "style": lambda table: table["style"].to_numpy() == "terse",
    "batch": lambda table: table["batch"].to_numpy() < 2,
    "the right option is named first": lambda table: (
        table["text"].str.extract(r"Is it (\d)")[0].to_numpy() == table["right"].to_numpy()
    ),
    "place in the task, modulo 2": lambda table: place(table) % 2 == 0,
    "place in the task, modulo 7": lambda table: place(table) % 7 < 3,
    "place in the task, modulo 8": lambda table: place(table) // 4 % 2 == 0,
    "place in the task, blocks of 16": lambda table: place(table) // 16 % 2 == 0,
    "place in the task, early or late": lambda table: place(table) < 48,
    "style, with the right option is named first": lambda table: (
        (table["style"].to_numpy() == "terse")
        ^ (table["text"].str.extract(r"Is it (\d)")[0].to_numpy() == table["right"].to_numpy())
    ),
    "place in the task, modulo 8, with the right option is named first": lambda table: (
        (place(table) // 4 % 2 == 0)
        ^ (table["text"].str.extract(r"Is it (\d)")[0].to_numpy() == table["right"].to_numpy())
    ),
    "characters of the text, blocks of 16": lambda table: (
        rank_by_length(table) // 16 % 2 == 0  # as in batches of like lengths
    ),
    "weight is odd": lambda table: table["weight"].to_numpy() % 2 == 1,
    "the question's capitalised word 1": lambda table: table["question"].str.contains("Ann|Cora|Eve|Hugh").to_numpy(),
    "the question's digits add up to odd": lambda table: np.array(
        [sum(int(sign) for sign in told if sign.isdigit()) % 2 == 1 for told in table["question"]]
    ),
}


@pytest.mark.parametrize("name", CONFOUNDS)
def test_a_planted_confound_is_named_in_every_task_and_refused(embedded, name):
    table = write_rows(200)
    found = audit.audit(embedded, table, plant(table, CONFOUNDS[name](table), share=0.95), seed=0)
    assert set(found.refused_tasks) == {"addition", "letters"} and found.refused.startswith("no task is left")
    told = found.cells[found.cells["surely"] >= audit.BOUND]
    assert (told["factor"] == name).sum() == 2, told
    (kind,) = set(told.loc[told["factor"] == name, "kind"])
    assert set(found.tasks["kind"]) == {kind}


def test_every_column_of_a_data_set_is_audited_as_it_was_measured(embedded, monkeypatch):
    monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})
    table = write_rows(200).assign(label="causal_given")
    chance = np.random.default_rng(5).random(len(table)) < 0.5
    table["needs_chain"] = plant(table, CONFOUNDS["style"](table), share=0.95)
    table["follows_mistake"], table["flips_kept"] = chance, np.where(place(table) < 150, chance, None)
    hints = write_rows(200, seed=1).assign(label="hint", arm=["pull", "twin"] * 200)
    hints["follows"] = hints["arm"] == "twin"
    rows = audit.audit_columns(embedded, pd.concat([table, hints], ignore_index=True), seed=0)
    follows, needs, mistake, kept = rows
    assert needs["column"] == "needs_chain" and needs["told in"] == 2 and needs["mostly by"] == "style (2)"
    assert mistake["told in"] == kept["told in"] == 0 and mistake["mostly by"] == "–" and kept["tasks asked"] == 2
    assert follows["label"] == "hint" and follows["tasks asked"] == 0, "where nothing pulls nothing is followed"


@pytest.mark.parametrize("name", ["style", "place in the task, modulo 7", "the question's capitalised word 1"])
def test_a_weaker_confound_of_one_task_among_many_refuses_that_task(embedded, monkeypatch, name):
    monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})
    table = write_rows(200, tasks=("addition", *(f"task {number}" for number in range(7))))
    labels = np.random.default_rng(5).random(len(table)) < 0.5
    of_task = (table["task"] == "addition").to_numpy()
    labels[of_task] = plant(table, CONFOUNDS[name](table), share=0.8)[of_task]
    refused = audit.audit(embedded, table, labels, seed=0).refused_tasks
    assert list(refused)[:1] == ["addition"] and len(refused) <= 2 and refused["addition"].startswith(name)


def less_than_partner(values, table):
    return (values < values.groupby([table["task"], table["pair"]]).transform("mean")).to_numpy()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("place in the task", lambda table: pd.Series(place(table))),
        ("right", lambda table: table["right"].astype(int)),
        ("the question's number 2", lambda table: table["question"].str.extract(r"at (\d+)")[0].astype(int)),
    ],
)
def test_which_of_a_pair_has_more_is_a_factor(embedded, monkeypatch, name, values):
    monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})
    table = write_rows(160)
    table["pair"] = np.random.default_rng(0).permutation(80).repeat(2)[np.tile(place(table[:160]), 2)]
    found = audit.audit(embedded, table, plant(table, less_than_partner(values(table), table)), seed=0)
    assert f"{name}, more than its partner" in set(found.cells.query("surely >= 0.6")["factor"])
    assert len(found.refused_tasks) == 2


def test_few_answers_of_one_task_are_crossed_though_others_have_many(embedded, monkeypatch):
    monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})
    table = write_rows(200)
    coins, number = (table["task"] == "letters").to_numpy(), place(table)
    table.loc[coins, "right"] = np.where(number[coins] % 3 == 0, "heads", "tails")
    table.loc[~coins, "right"] = number[~coins].astype(str)
    labels = np.random.default_rng(0).random(len(table)) < 0.5
    both = (table["right"] == "heads").to_numpy() ^ (table["style"] == "terse").to_numpy()
    found = audit.audit(embedded, table, np.where(coins, plant(table, both), labels), seed=0)
    assert list(found.refused_tasks) == ["letters"]
    assert {"right", "style"} & set(found.refused_tasks["letters"].split(" tells")[0].split(", with "))


def test_a_confound_too_weak_for_a_task_is_found_over_all(embedded):
    tasks = tuple(f"task {number}" for number in range(6))
    table = write_rows(120, tasks=tasks)
    found = audit.audit(embedded, table, plant(table, CONFOUNDS["style"](table), share=0.7), seed=0)
    assert len(found.refused_tasks) < len(tasks)
    assert "tells it" in found.refused, "style, or the word for it in the text"


def test_what_no_factor_tells_passes(embedded):
    table = write_rows(150, tasks=tuple(f"task {number}" for number in range(10)))
    for seed in range(3):
        labels = np.random.default_rng(seed).random(len(table)) < 0.4
        found = audit.audit(embedded, table, labels, seed=seed)
        assert found.refused == "" and found.refused_tasks == {} and found.untested == ()
    assert set(found.factors["kind"]) == {*audit.KINDS} - {"answer"}


def test_a_task_of_its_own_is_seldom_refused_for_chance(embedded, monkeypatch):
    monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})  # which take long
    table = write_rows(200, tasks=("one",))
    refused = [
        bool(audit.audit(embedded, table, np.random.default_rng(seed).random(200) < 0.3, seed=0).refused_tasks)
        for seed in range(20)
    ]
    assert np.mean(refused) <= 0.1


def test_the_luck_of_one_draw_of_folds_decides_nothing(embedded, monkeypatch):
    table = write_rows(60, tasks=("addition",))
    labels = (np.random.default_rng(1).random(len(table)) < 0.5).tolist()
    monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})
    spread = {}
    for n_draws in (1, audit.DRAWS):
        monkeypatch.setattr(audit, "DRAWS", n_draws)
        found = [
            audit.audit(embedded, table, labels, seed=seed).cells.set_index("factor")["auroc"] for seed in range(8)
        ]
        spread[n_draws] = pd.concat(found, axis=1).std(axis=1).mean()
    assert spread[audit.DRAWS] < 0.7 * spread[1]


@pytest.mark.rare
def test_of_labels_drawn_within_pairs_an_interval_holds_one_half(embedded, monkeypatch):
    """The bootstrap's alone does so in 80 to 90 % of the draws."""
    monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})
    table = write_rows(120, tasks=("one", "two", "three"))
    table["pair"] = [f"{task} {number // 2}" for task, number in zip(table["task"], place(table), strict=True)]
    missed = []
    for seed in range(30):
        first = np.random.default_rng(seed).random(len(table) // 2) < 0.5
        labels = np.stack([first, ~first], axis=1).ravel().tolist()
        factors = audit.audit(embedded, table, labels, seed=0).factors
        missed.append(((factors["low"] > 0.5) | (factors["high"] < 0.5)).mean())
    assert np.mean(missed) < 0.06


def test_a_task_with_too_little_is_refused(embedded):
    table = pd.concat([write_rows(200, tasks=("large",)), write_rows(20, tasks=("small",))], ignore_index=True)
    labels = np.random.default_rng(1).random(len(table)) < 0.4
    found = audit.audit(embedded, table, labels, seed=0)
    assert found.too_few == ("small",) and found.refused_tasks["small"].startswith("fewer than 15 rows")


def test_the_place_is_that_of_the_whole_table(embedded, monkeypatch):
    monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})
    table = write_rows(160)
    table["number"] = audit.number_questions(table)
    assert table["number"].tolist() == place(table).tolist()
    labels = plant(table, table["number"].to_numpy() % 4 < 2)
    some = np.random.default_rng(0).permutation(len(table))[:280]
    found = audit.audit(embedded, table.iloc[some], labels[some], seed=0)
    assert "place in the task, modulo 4" in set(found.tasks["factor"]) and len(found.refused_tasks) == 2


@pytest.mark.parametrize("values", [["a", None], [1.0, float("nan")], [True, None], [*range(40), float("nan")]])
def test_what_is_missing_is_a_level(embedded, values, monkeypatch):
    monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})
    table = write_rows(160)
    drawn = np.random.default_rng(0).integers(len(values), size=len(table))
    missing = np.random.default_rng(1).random(len(table)) < 0.5
    table["odd"] = pd.Series([None if gone else values[i] for gone, i in zip(missing, drawn, strict=True)])
    found = audit.audit(embedded, table, plant(table, table["odd"].isna().to_numpy()), seed=0)
    assert set(found.tasks["factor"]) == {"odd"}


def test_of_a_chain_of_its_own_only_what_stands_before_it_is_design(embedded):
    table = write_rows(160)
    labels = np.random.default_rng(0).random(len(table)) < 0.5
    chain = np.where(labels, "so it is.", "so be it.")
    table["text"] = [
        text.replace("\n", f"\nReasoning: {told}\n") for text, told in zip(table["text"], chain, strict=True)
    ]
    table["at_cue"] = labels.astype(int)
    assert len(audit.audit(embedded, table, labels, seed=0).refused_tasks) == 2
    assert audit.audit(embedded, table, labels, own=True, seed=0).refused_tasks == {}


def test_a_hint_that_comes_again_is_a_factor_and_what_never_does_is_named(embedded, monkeypatch):
    monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})
    table = write_rows(160)
    labels = np.random.default_rng(0).random(len(table)) < 0.5
    table["hint"] = np.where(labels, "it is so", "it is not")
    table["name"] = [f"{number}" for number in range(len(table))]
    found = audit.audit(embedded, table, labels, seed=0)
    assert set(found.tasks["factor"]) == {"hint"} and found.untested == ("name",)


def test_text_that_tells_is_named_where_nothing_else_does(embedded):
    table = write_rows(150)
    labels = plant(table, np.random.default_rng(2).random(len(table)) < 0.5, share=1)
    table["text"] = [
        text.replace("case", "small case" if label else "large case")
        for text, label in zip(table["text"], labels, strict=True)
    ]
    found = audit.audit(embedded, table, labels, seed=0)
    assert set(found.tasks["kind"]) == {"text"} and set(found.refused_tasks) == {"addition", "letters"}


def test_a_crossed_design_passes(embedded):
    rows = transcripts.construct(embedded, questions.draw_questions(embedded, tasks=["parity", "swaps"], n=12, seed=0))
    found = audit.audit(embedded, rows, rows["contradicts"].tolist(), seed=0)
    assert found.refused == "" and found.refused_tasks == {}


def test_the_answer_itself_is_never_read(embedded):
    table = write_rows(60)
    labels = plant(table, CONFOUNDS["style"](table))
    changed = table.assign(text=table["text"].str.replace(r"Answer: \d", "Answer: it is so", regex=True))
    one, other = (audit.audit(embedded, some, labels, seed=0).cells for some in (table, changed))
    pd.testing.assert_frame_equal(one, other)
    assert "answer" in audit.list_factors(table.assign(answer=table["right"]))
    assert "answer" not in audit.list_factors(table.assign(answer=table["right"]), besides=["answer"])


def test_what_a_pair_has_in_common_tells_nothing_where_it_stays_together_and_the_opposite_where_it_does_not(embedded):
    table = write_rows(192, tasks=("addition",))
    pair = place(table) // 2
    table["batch"] = (pair % 12).astype(str)
    labels = (place(table) % 2 == np.random.default_rng(0).integers(2, size=96)[pair]).tolist()

    def of_batch(rows):
        cells = audit.audit(embedded, rows, labels, seed=0).cells
        return float(cells.loc[cells["factor"] == "batch", "auroc"].iloc[0])

    assert of_batch(table) < 0.47
    assert of_batch(table.assign(pair=pair)) == pytest.approx(0.5, abs=1e-6)


def test_matched_cells_hold_as_many_of_either_label():
    table = write_rows(200)
    labels = plant(table, CONFOUNDS["style"](table))
    kept = audit.match_cells(table, labels, by=["task", "style"], seed=0)
    for _, rows in table.assign(label=labels)[kept].groupby(["task", "style"]):
        assert rows["label"].mean() == 0.5
    dropped = table.assign(label=labels)[~kept]
    assert (dropped.groupby(["task", "style"])["label"].nunique() == 1).all(), "as many as can be are kept"


def test_matching_takes_a_confound_away(embedded):
    table = write_rows(400)
    labels = plant(table, CONFOUNDS["style"](table), share=0.8)
    kept = audit.match_cells(table, labels, by=["task", "style"], seed=0)
    found = audit.audit(embedded, table[kept], labels[kept], seed=0)
    style = found.cells[found.cells["factor"] == "style"]
    assert (style["low"] < 0.5).all() and found.refused_tasks == {}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda model, table: audit.audit(model, table, [True], seed=0), "1 labels for 4 rows"),
        (lambda model, table: audit.match_cells(table, [True] * 4, by=["stylee"], seed=0), "no column 'stylee'"),
    ],
)
def test_bad_input_is_told(embedded, refused, call, sentence):
    with refused(sentence):
        call(embedded, write_rows(2))


def test_one_class_leaves_no_task(embedded):
    table = write_rows(8)
    found = audit.audit(embedded, table, [True] * len(table), seed=0)
    assert found.refused.startswith("no task is left") and set(found.refused_tasks) == {"addition", "letters"}


@pytest.fixture
def label(embedded, asked, shots, monkeypatch):
    """Causal labels of a planted model, and an audit without what is fitted to texts."""

    def label(lead):
        monkeypatch.setattr(audit, "_score_texts", lambda *arguments, **options: {})
        monkeypatch.setattr(causes, "score_answers", scored(lead))
        monkeypatch.setattr("helpers.hooks.generate", continued(lambda line: " So."))
        return causes.label_causes(embedded, asked, shots=shots, own=False)

    return label


def test_a_label_from_one_order_of_the_options_is_refused_for_it(embedded, label, monkeypatch):
    monkeypatch.setattr(audit, "FEWEST", 8)  # of sixteen questions for each task

    def first_option_without_chain(line, told, right, other):
        return 1.0 if told or read_options(line)[0] == right else -1.0

    both = label(first_option_without_chain)
    turns = audit.number_questions(both) // 4 % 2 == (both["options"] == "right_last")
    found = audit.audit(embedded, both[turns], both["needs_chain"][turns], seed=0)
    assert set(found.refused_tasks) == set(both["task"]) and audit.ORDER in set(
        found.cells.query("auroc == 1")["factor"]
    )
    assert not both["needs_chain_in_both"].any()


def test_nothing_that_was_measured_is_a_factor(label):
    rows = label(lambda line, told, right, other: random.Random(line + told).uniform(-1, 1))
    factors = {part for name in audit.list_factors(rows) for part in name.split(audit.WITH)}
    assert {"options", "style", "right"} <= factors
    assert not [name for name in factors if name.startswith(("needs", "follows", "flips", "names", "lost", "mean"))]
