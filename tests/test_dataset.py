"""The data set holds every label, is read as it was saved, by the model that made it, and says what is unfaithful."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from shared.transcripts import continued, planted

from helpers import runs
from studies.faithfulness import causes, dataset, hints, questions
from studies.faithfulness.audit import compare_candidates

TASKS, N = ["parity", "coin_flips"], 4
SIZES = {"n_constructed": 3, "n_hinted": N, "n_samples": 2, "n_causal": N, "n_more": 0, "seed": 0, "tasks": TASKS}


def reply(before, line):
    """Counts rightly, says what an answer key says, and does not know coins."""
    if "coin" in line:
        return "The coin fell 2 times. So.", "edge"
    said = re.search(r"(?:professor says that the answer is|answer key says) (\w+)\.$", line)
    number = int(re.search(r"\d+", line)[0])
    return f"There are {number}. So.", said[1] if said else ("odd" if number % 2 else "even")


def plant(patch, reply=reply):
    for module in (hints, causes):
        patch.setattr(module, "continue_questions", planted(reply))
    patch.setattr("helpers.hooks.generate", continued(lambda line: " So."))
    leads = torch.Generator().manual_seed(0)
    patch.setattr(
        causes, "score_answers", lambda loaded, prompts, pairs, **_: torch.randn(len(prompts), generator=leads)
    )


@pytest.fixture(scope="module")
def small(embedded):
    """All labels of two tasks, of which the planted model can do one."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        return dataset.make_dataset(embedded, **SIZES)


@pytest.fixture
def keep(embedded, monkeypatch, tmp_path):
    """Keeps a table as the data set of a model, in a book of its own."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)

    def keep(table, **about):
        known = {"model": embedded.record(), "parameters": SIZES, "able": ["parity"]}
        return dataset.save_dataset(table, dataset.locate_dataset(embedded), about=known | about)

    return keep


def test_a_data_set_holds_every_label(small):
    n_rows = small.groupby(["label", "task"]).size()
    for task in TASKS:
        assert n_rows["constructed", task] == n_rows["constructed_implied", task] == 8 * 3
        assert n_rows["causal_given", task] == n_rows["causal_own", task] == 2 * N
    arms = small[small["label"] == "hint"].groupby(["task", "pull", "arm"]).size()
    plain = {(task, "sentence", "none"): 2 * N for task in TASKS}
    tried = {("parity", pull, arm): 2 * N for pull in hints.PULLS for arm in ("twin", "pull")}
    assert arms.to_dict() == plain | tried, "no hint where nothing is known"
    assert not small[["before", "text", "number"]].isna().any(axis=None)


def test_a_number_is_the_place_of_a_question_in_its_task(small, embedded):
    for task, rows in small.groupby("task"):
        asked = [question.text for question in questions.draw_questions(embedded, tasks=[task], n=N, seed=0)]
        assert rows["question"].tolist() == [asked[number] for number in rows["number"]]
        assert set(rows["number"]) == set(range(N))


def test_hints_are_tried_on_the_tasks_that_are_given(embedded, monkeypatch):
    plant(monkeypatch)
    found = dataset.make_dataset(embedded, **SIZES, able=["coin_flips"])
    assert set(found["task"][found["arm"].isin(["twin", "pull"])]) == {"coin_flips"}


def test_hints_of_these_sizes_are_taken_over_and_others_are_made_anew(small, embedded, monkeypatch):
    plant(monkeypatch)
    marked = small.assign(reasoning=small["reasoning"].where(small["label"] != "hint", "as it was"))
    marked.attrs = {"parameters": SIZES, "able": ["parity"]}
    more = dataset.make_dataset(embedded, **SIZES | {"n_causal": N + 1}, known=marked)
    assert set(more["reasoning"][more["label"] == "hint"]) == {"as it was"} and more.attrs["able"] == ["parity"]
    assert more[more["label"] == "causal_given"]["question"].nunique() == (N + 1) * len(TASKS)
    anew = dataset.make_dataset(embedded, **SIZES | {"n_samples": 4}, known=marked)
    assert "as it was" not in set(anew["reasoning"])


def test_more_questions_are_asked_where_given_chains_are_followed(small, embedded, monkeypatch):
    plant(monkeypatch)
    monkeypatch.setattr(dataset, "find_followed_tasks", lambda rows, *, seed: ["parity"] if len(rows) else [])
    sizes = SIZES | {"n_more": 2}
    more = dataset.make_dataset(embedded, **sizes)
    given = more[more["label"] == "causal_given"]
    assert given.groupby("task")["question"].nunique().to_dict() == {"coin_flips": N, "parity": N + 2}
    assert set(given["number"][given["task"] == "parity"]) == set(range(N + 2))
    assert more[more["label"] == "causal_own"]["question"].nunique() == N * len(TASKS)
    marked = more.assign(reasoning="as it was")
    marked.attrs = {"parameters": sizes, "able": ["parity"]}
    again = dataset.make_dataset(embedded, **sizes, known=marked)
    assert set(again["reasoning"][again["label"] == "causal_given"]) == {"as it was"}
    monkeypatch.setattr(dataset, "read_kept", lambda loaded: marked)
    loaded = dataset.load_transcripts(embedded, "causal_given", tasks=["parity"], n=N, seed=0)
    assert set(loaded["reasoning"]) == {"as it was"} and loaded["question"].nunique() == N + 2
    assert loaded["number"].max() == N + 1
    further = dataset.load_transcripts(embedded, "causal_given", tasks=["parity"], n=N + 1, seed=0)
    assert further["question"].nunique() == N + 1 and len(further) == 2 * (N + 1), "none twice"


@pytest.mark.parametrize(("share", "followed"), [(1.0, ["a"]), (0.5, [])])
def test_a_task_is_followed_where_its_pairs_are_surely_answered_rightly(share, followed):
    n = 40
    rows = pd.DataFrame(
        {
            "task": "a",
            "question": [f"q{i}" for i in range(n) for _ in range(2)],
            "style": "terse",
            "options": ["right_first", "right_last"] * n,
            "right": [str(100 + i) for i in range(n) for _ in range(2)],
            "other": [str(99 + i) for i in range(n) for _ in range(2)],
            "logit_difference": 1.0,
            "mean_lost_without": [float(i % 7) for i in range(n) for _ in range(2)],
        }
    )
    wrong = [i % 8 in (2, 3, 6, 7) and share < 1 for i in range(n) for _ in range(2)]
    rows["answer"] = rows["right"].where([not one for one in wrong], rows["other"])
    assert dataset.find_followed_tasks(rows, seed=0) == followed


def test_a_model_is_able_where_its_chains_are_right_where_nothing_pulls():
    rows = pd.DataFrame(
        [
            {"task": task, "arm": arm, "right": "5", "answer": "5" if number < n_right else None}
            for task, arm, n_right in (("a", "none", 6), ("b", "none", 5), ("b", "twin", 8))
            for number in range(8)
        ]
    )
    assert dataset.find_able_tasks(rows) == ["a"]


@pytest.mark.parametrize("pull", hints.PULLS)
def test_the_arms_of_a_pull_are_three_where_it_was_tried(small, pull):
    found = dataset.select_arms(small[small["label"] == "hint"], pull)
    n_plain = N if pull == "order" else 2 * N  # the right option is last
    assert found["arm"].value_counts().to_dict() == {"none": n_plain, "twin": 2 * N, "pull": 2 * N}
    assert set(found["task"]) == {"parity"} and set(found["pull"][found["arm"] != "none"]) == {pull}


def test_a_data_set_is_read_as_it_was_saved_or_not_at_all(small, tmp_path, refused):
    path = tmp_path / "cot.parquet"
    digest = dataset.save_dataset(small, path, about={"model": "planted"})
    table = dataset.read_dataset(path)
    assert {name: table.attrs[name] for name in ("sha256", "model", "version", "rows")} == {
        "sha256": digest,
        "model": "planted",
        "version": dataset.VERSION,
        "rows": len(small),
    }
    assert table["text"].equals(small["text"]) and table["mean_lost_without"].equals(small["mean_lost_without"])
    table.loc[0, "contradicts"] = not table.loc[0, "contradicts"]
    table.to_parquet(path)
    with refused("cot.parquet is damaged"):
        dataset.read_dataset(path)
    with refused("no data set at none.parquet"):
        dataset.read_dataset(tmp_path / "none.parquet")


def test_the_hash_is_of_what_another_machine_measures_alike(small):
    logits = ["logit_difference", "lost_without", "lost_by_mistake", "mean_lost_without", "mean_lost_by_mistake"]
    digest = dataset.hash_content(small)
    assert dataset.hash_content(small.assign(**{name: small[name] + 1e-4 for name in logits})) == digest
    assert dataset.hash_content(small.assign(needs_chain=small["needs_chain"] == False)) != digest  # noqa: E712


@pytest.mark.parametrize("label", dataset.BEHAVIOURS)
def test_what_is_kept_is_not_made_again(small, embedded, keep, monkeypatch, label):
    def never(before, line):
        raise AssertionError("asked again")

    keep(small)
    plant(monkeypatch, never)
    options = {"n": 2, "n_samples": 1, "seed": 0, "tasks": ["parity"]}
    rows = dataset.load_transcripts(embedded, label, **options)
    wanted = small[(small["label"] == label) & (small["task"] == "parity")]
    if label == "hint":  # of changed chains all are given, as pairs are found among them
        wanted = wanted[(wanted["number"] < 2) & (wanted["sample"] == 0)]
    assert rows["text"].tolist() == wanted["text"].tolist() and len(rows) and not rows.isna().all().any()
    plant(monkeypatch, lambda before, line: ("There are 9. So.", "edge"))
    for changed in ({"seed": 1}, {"n": N + 1}, {"tasks": ["parity", "addition"]}, {"n_samples": 3}):
        if label == "hint" or "n_samples" not in changed:
            made = dataset.load_transcripts(embedded, label, **options | changed)
            wanted = dict.fromkeys((options | changed)["tasks"], (options | changed)["n"])
            assert made.groupby("task")["number"].nunique().to_dict() == wanted
            if label == "hint":
                assert set(made["task"][made["arm"] == "pull"]) == {"parity"}, "where hints were tried before"


@pytest.mark.parametrize(
    ("model", "version", "sentence"),
    [({"weights_sha256": "0"}, 2, "legal is '0'"), ({}, 1, "has version 1: legal is 2")],
)
def test_data_of_another_model_or_version_are_refused(small, embedded, keep, refused, model, version, sentence):
    keep(small.head(20), version=version)
    with refused("data set", sentence):
        dataset.load_transcripts(replace(embedded, **model), "hint", tasks=["parity"], n=2, seed=0)


def test_data_of_another_precision_are_never_pooled(small, embedded, keep, refused):
    keep(small)
    other = replace(embedded, dtype="bfloat16")
    assert dataset.read_kept(embedded) is not None and dataset.read_kept(other) is None
    with refused("has dtype 'float32': legal is 'bfloat16'"):
        dataset.check_alike(other, dataset.read_kept(embedded))


def test_what_was_made_at_these_sizes_need_not_be_made_again(small):
    known = small.copy()
    known.attrs["parameters"] = SIZES
    sizes = {key: SIZES[key] for key in dataset.SIZES}
    assert dataset.has_sizes(known, sizes, TASKS) and not dataset.has_sizes(None, sizes, TASKS)
    assert not dataset.has_sizes(known, sizes | {"seed": 1}, TASKS) and not dataset.has_sizes(known, sizes, TASKS[:1])


def test_a_data_set_says_which_tasks_passed(small, embedded, keep):
    assert dataset.read_passed_tasks(embedded) is None
    found = {"hint": ["coin_flips"], "causal_own": []}
    keep(small.head(), passed=found)
    assert dataset.read_passed_tasks(embedded) == found


def test_who_is_moved_and_does_not_say_so_is_unfaithful_against_who_is_not_moved():
    """Questions with how often of eight they follow pull and twin."""
    follows = {"moved": (8, 0), "says so": (8, 0), "half": (5, 1), "little": (3, 1), "named": (8, 8)}
    follows |= {"not": (0, 0), "nor": (0, 0), "other": (0, 0)}

    def answered(question, sample, n):
        if sample < n:
            return "6"
        return {"other": "7", "not": "5" if sample else None}.get(question, "5")

    rows = pd.DataFrame(
        [
            {
                **{"label": "hint", "task": "parity", "question": question, "pull": "order", "arm": arm},
                **{"sample": sample, "follows": sample < n, "answer": answered(question, sample, n)},
                **{"right": "5", "other": "6"},
                **{"mentions_words": question == "says so" and sample > 0, "mentions_wording": False},
            }
            for question, of_arms in follows.items()
            for arm, n in zip(("pull", "twin"), of_arms, strict=True)
            for sample in range(8)
        ]
    )
    chosen, unfaithful = dataset.select_unfaithful(rows)
    assert set(chosen["arm"]) == {"pull"}
    for sample in range(8):
        found = {
            truth: set(chosen["question"][(chosen["sample"] == sample) & (truth == np.array(unfaithful))])
            for truth in (True, False)
        }
        moved = {"moved"} | ({"half"} if sample < 5 else set()) | ({"says so"} if not sample else set())
        unmoved = {"nor"} | ({"not"} if sample else set())
        assert found[True] <= moved and found[False] <= unmoved
        assert len(found[True]) == len(found[False]) == min(len(moved), len(unmoved)), "as many of either"


def test_of_two_questions_that_are_alike_the_one_whose_chain_was_needed_less_is_unfaithful():
    generator = np.random.default_rng(0)
    tasks = {
        "parity": [("even", "odd"), ("odd", "even")],
        "names": [(name, "else") for name in "abcdef"],
        "sums": [(str(n), str(n + (-1) ** n)) for n in range(70)],
    }
    rows = []
    for task, answers in tasks.items():
        for number in range(80):
            drawn = number if task == "sums" else generator.integers(len(answers))
            (right, other), style = answers[drawn % len(answers)], ["terse", "hedged"][number % 2]
            n_right = int(generator.integers(3))
            rows += [
                {
                    **{"label": "causal_given", "task": task, "question": f"{task} {number}", "number": number},
                    **{"style": style, "right": right, "other": other, "options": options, "n_right": n_right},
                    "answer": right if place < n_right else other,
                    "logit_difference": 1.0,
                    "mean_lost_without": float(number * 7 % 10 + 50 * (style == "hedged") + 9 * n_right),
                }
                for place, options in enumerate(("right_first", "right_last"))
            ]
    chosen, unfaithful = dataset.select_unfaithful(pd.DataFrame(rows))
    chosen = chosen.assign(unfaithful=unfaithful, larger=compare_candidates(chosen))
    assert 60 < chosen["question"].nunique() < 240 and set(chosen["n_right"]) == {0, 2}, "one answer in both orders"
    assert (chosen.groupby(["task", "question"])["unfaithful"].nunique() == 1).all()
    pairs = chosen.groupby("pair")
    assert (pairs["question"].nunique() == 2).all() and (pairs["unfaithful"].mean() == 0.5).all()
    assert (pairs[["task", "style", "n_right", "larger"]].nunique() == 1).all(axis=None)
    of_few = chosen[chosen["task"] != "sums"].groupby("pair")
    assert (of_few["right"].nunique() == 1).all(), "of few candidates one"
    less = chosen.pivot_table(index="pair", columns="unfaithful", values="mean_lost_without")
    assert (less[True] < less[False]).all()
    fewer, of_fewer = dataset.select_unfaithful(pd.DataFrame(rows), n=8)
    assert fewer.groupby("task")["question"].nunique().tolist() == [8] * len(tasks)
    of_all = chosen.set_index(["question", "options"])["unfaithful"]
    assert of_fewer == of_all.loc[[*zip(fewer["question"], fewer["options"], strict=True)]].tolist()
    sums = chosen[chosen["task"] == "sums"].assign(right=lambda some: some["right"].astype(int))
    apart = sums.groupby("pair")["right"].agg(lambda some: some.max() - some.min())
    assert apart.mean() < 20 < sums["right"].max() - sums["right"].min(), (
        "next to each other by the number that is right"
    )
    assert split_alike(dataset.list_units(chosen), list(zip(chosen["task"], chosen["pair"], strict=True)))


def split_alike(some, others):
    return len(set(some)) == len(set(others)) == len(set(zip(some, others, strict=True)))


def test_rows_of_a_question_stay_together_whatever_labels_come_together():
    """Rows without a pair are in no pair with themselves, or a question would be trained on where it is tested."""
    put_in = pd.DataFrame({"label": "constructed", "task": "sums", "question": ["a", "a", "b", "c", "d", "d", "e"]})
    given = pd.DataFrame({"label": "given", "task": "sums", "question": ["a", "b", "c"], "pair": [0, 0, 1]})
    own = pd.DataFrame({"label": "own", "task": "sums", "question": ["b", "d"], "pair": [1, 1]})
    alone = pd.concat([put_in, given], ignore_index=True)
    units = pd.Series(dataset.list_units(alone))
    assert split_alike(units[: len(put_in)], [1, 1, 1, 2, 3, 3, 4]), "a and b are a pair of given chains"
    units = pd.Series(dataset.list_units(pd.concat([put_in, given, own], ignore_index=True)))
    assert split_alike(units[: len(put_in)], [1, 1, 1, 2, 1, 1, 3]), "b and d are one of own chains"
    assert set(units[len(put_in) + len(given) :]) == {units[0]}
    assert split_alike(dataset.list_units(put_in), put_in["question"])


def test_questions_without_a_partner_ties_and_equals_are_left_out_and_wrong_answers_are_compared_with_wrong_ones():
    common = {"label": "causal_own", "task": "names", "style": "own", "right": "Tom", "other": "Ann"}
    losses = {"right": (3, 1, 2), "wrong": (104, 101), "mixed": (7, 9), "tie": (1, 5), "last": (2.0, 2.1)}
    rows = pd.DataFrame(
        [
            {**common, "question": f"{kind} {place}", "options": order, "mean_lost_without": loss}
            | {"answer": "Tom" if kind == "right" or (kind == "mixed" and order == "right_first") else "Ann"}
            | {"logit_difference": 0.0 if kind == "tie" else 1.0}
            | ({"right": "Eve", "answer": "Eve"} if kind == "last" else {})
            for kind, some in losses.items()
            for place, loss in enumerate(some)
            for order in ("right_first", "right_last")
        ]
    )
    chosen, unfaithful = dataset.select_unfaithful(rows)
    found = dict(zip(chosen["question"], unfaithful, strict=True))
    assert found == {"right 0": False, "right 1": True, "wrong 0": False, "wrong 1": True}
    alone, none = dataset.select_unfaithful(rows[rows["question"] == "right 0"])
    assert not len(alone) and none == []


def test_a_question_told_in_several_styles_has_one_label():
    losses = {"a": {"terse": 9.0, "hedged": 1.0}, "b": {"terse": 2.0, "hedged": 3.0}}
    common = {"label": "causal_given", "task": "names", "right": "Tom", "other": "Ann", "answer": "Tom"}
    rows = pd.DataFrame(
        [
            common | {"question": question, "style": style, "mean_lost_without": loss, "logit_difference": 1.0}
            for question, by_style in losses.items()
            for style, loss in by_style.items()
            for _ in range(2)
        ]
    )
    chosen, unfaithful = dataset.select_unfaithful(rows)
    assert len(chosen) == 8 and chosen["pair"].nunique() == 1
    assert set(zip(chosen["question"], unfaithful, strict=True)) == {("a", False), ("b", True)}


def test_a_loss_that_partners_decide_with_has_a_ceiling_below_one():
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            **{"task": "names", "pair": np.repeat(np.arange(200), 2), "question": [f"q{i}" for i in range(400)]},
            **{"mean_lost_without": generator.normal(size=400), "needs_chain": generator.random(400) < 0.3},
        }
    )
    rows = rows.assign(lost_without=rows["mean_lost_without"], logit_difference=9 * generator.choice([-1, 1], 400))
    rows["did"] = rows["mean_lost_without"] < rows.groupby("pair")["mean_lost_without"].transform("mean")
    found = dataset.describe_pairs(rows, seed=0)
    assert found["ceiling"].value == pytest.approx(5 / 6, abs=0.03), "the less of two below the more of two others"
    assert found["sure_without"].value == pytest.approx(5 / 6, abs=0.03), "all lead alike with their chains"
    assert all(found[name].low < 0.3 < found[name].high for name in ("changes_less", "changes_more"))


def test_a_written_transcript_is_unfaithful_where_its_answer_contradicts_it(small):
    rows = small[small["label"] == "constructed"]
    chosen, unfaithful = dataset.select_unfaithful(rows)
    assert unfaithful == (chosen["answer"] != chosen["concludes"]).tolist() and sum(unfaithful) == len(rows) / 2


def test_a_model_that_never_answers_has_no_unfaithful_rows(embedded, monkeypatch):
    plant(monkeypatch, lambda before, line: ("So", None))
    for label, n_rows in (("hint", 2 * N), ("causal_own", 0)):
        rows = dataset.load_transcripts(embedded, label, tasks=["parity"], n=N, n_samples=2, seed=1)
        chosen, unfaithful = dataset.select_unfaithful(rows)
        assert len(rows) == n_rows and len(chosen) == 0 and unfaithful == []
        assert label != "hint" or not (rows["follows"].any() or rows["at_cue"].notna().any())


def test_bad_input_is_refused(embedded, refused):
    with refused("'constructed'", "hint, causal_given, causal_own"):
        dataset.load_transcripts(embedded, "constructed", tasks=["parity"], n=4, seed=0)
    for name in ("n_constructed", "n_hinted", "n_samples", "n_causal"):
        with refused(f"{name} = 0", "at least 1"):
            dataset.make_dataset(embedded, **SIZES | {name: 0})
    with refused("n_more = -1", "at least 0"):
        dataset.make_dataset(embedded, **SIZES | {"n_more": -1})


@pytest.mark.slow
def test_transcripts_of_the_real_model_are_made_where_none_are_kept(embedded, monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    for label in dataset.BEHAVIOURS:
        rows = dataset.load_transcripts(embedded, label, tasks=["residence"], n=2, n_samples=1, seed=0)
        chosen, unfaithful = dataset.select_unfaithful(rows)
        assert len(rows) and len(chosen) == len(unfaithful) and set(rows["label"]) == {label}
        assert rows["reasoning"].str.len().min() > 10 and rows["number"].max() == 1
