"""What needs no probe: planted rules are found in other folds, and nothing sees an answer that the probe does not."""

import pandas as pd
import pytest
import torch

from helpers import baselines, claims, probes
from helpers.folds import assign_folds
from helpers.hooks import Captured
from helpers.scores import compute_auroc, subtract
from studies.faithfulness import readers, transcripts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def known(constructed):
    parts = [constructed[constructed["task"] == task].head(48) for task in ("addition", "coin_flips")]
    rows = pd.concat(parts, ignore_index=True)
    truth = rows["contradicts"].astype(bool).tolist()
    questions = rows["question"].tolist()
    return rows, truth, questions, assign_folds(truth, questions, seed=0)


def decide(probe, best, truth, questions, folds):
    margin = subtract(probe, best.scores, truth, questions, folds=folds, seed=0)
    return claims.decide("margin", "", rule="value > 0.02", estimate=margin).verdict


def test_a_parser_tells_contradictions_and_nothing_else_does(embedded, known, monkeypatch):
    monkeypatch.setattr(transcripts, "score_answers", lambda loaded, prompts, pairs: torch.ones(len(prompts)))
    rows, truth, questions, folds = known
    scores = readers.score_without_probe(
        embedded, "constructed", rows, truth, questions, folds=folds, reader=embedded, seed=0
    )
    areas = {name: float(compute_auroc(each, torch.tensor(truth))) for name, each in scores.items()}
    assert areas[readers.RULE] == 1
    for name in ("word n-grams", "character n-grams", "mean of the input embeddings"):
        assert areas[name] == pytest.approx(0.5, abs=0.06)
    assert areas[readers.READER] == areas[readers.OUTPUT] == 0.5, "what always says the same"
    best = readers.choose_best(scores, truth, folds)
    assert set(best.names) == {readers.RULE}
    assert decide(torch.tensor(truth).float(), best, truth, questions, folds) == "out of reach"


def noisy(truth, share, seed):
    """A score that is right on some share of the rows."""
    right = torch.rand(len(truth), generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(right, torch.tensor(truth), ~torch.tensor(truth)).float()


@pytest.mark.parametrize(
    ("probe", "rule", "expected"),
    [(1.0, 0.6, "holds"), (0.6, 0.9, "fails"), (0.82, 0.8, "depends"), (1.0, 1.0, "out of reach")],
)
def test_a_margin_can_hold_fail_depend_and_be_out_of_reach(probe, rule, expected):
    truth, questions = [False, True] * 200, [number // 4 for number in range(400)]
    folds = assign_folds(truth, questions, seed=0)
    best = readers.choose_best({"rule": noisy(truth, rule, 1), "chance": noisy(truth, 0.5, 2)}, truth, folds)
    assert decide(noisy(truth, probe, 3), best, truth, questions, folds) == expected


def test_the_best_is_chosen_in_the_other_folds():
    """Of fifty random scores the best would seem to tell the label, were it chosen where it is tested."""
    lucky, honest = [], []
    for seed in range(20):
        truth, questions = [False, True] * 30, [number // 4 for number in range(60)]
        folds = assign_folds(truth, questions, seed=0)
        scores = {str(number): noisy(truth, 0.5, 100 * seed + number) for number in range(50)}
        found = readers.choose_best(scores, truth, folds)
        honest.append(float(compute_auroc(found.scores, torch.tensor(truth))))
        lucky.append(max(float(compute_auroc(each, torch.tensor(truth))) for each in scores.values()))
    assert sum(lucky) / 20 > 0.6 and abs(sum(honest) / 20 - 0.5) < 0.05


def test_before_the_answer_rules_do_not_see_it(constructed):
    rows = constructed.head(8)
    other = rows.assign(answer=rows["right"])
    assert "parser" in readers.list_rules("constructed", rows)
    for label in ("hint", "causal_given", "causal_own"):
        first, second = (readers.list_rules(label, some) for some in (rows, other))
        assert all(torch.equal(first[name], second[name]) for name in first) and "parser" not in first
    assert readers.cut_answer("Question: who?\nReasoning: Ann.\nAnswer: Ann.") == "Question: who?\nReasoning: Ann."


def test_the_models_lean_points_away_from_the_answer(monkeypatch):
    rows = pd.DataFrame({"text": ["Q\nAnswer: 1.", "Q\nAnswer: 2."], "right": "1", "other": "2", "answer": ["1", "2"]})
    monkeypatch.setattr(transcripts, "score_answers", lambda loaded, prompts, pairs: torch.tensor([3.0] * len(prompts)))
    assert readers.read_lean(None, "constructed", rows).tolist() == [-3, 3]
    assert readers.read_lean(None, "hint", rows).tolist() == [-3, -3]
    assert readers.read_lean(None, "causal_own", rows).tolist() == [-3, -3]


def noise(seed, n_questions=20, strength=0.0):
    """Probes of three sites, of which one may read the label."""
    generator = torch.Generator().manual_seed(seed)
    truth, questions = [False, True] * 2 * n_questions, [number // 4 for number in range(4 * n_questions)]
    x = torch.randn(len(truth), 3, 1, 8, generator=generator)
    x[:, 0, 0, 0] += strength * (torch.tensor(truth).float() * 2 - 1)
    axes = {"resid_post": ("example", "layer", "position", "d_model")}
    states = Captured({"resid_post": x}, axes, (0, 1, 2), ("last",), torch.full((len(truth),), 9))
    return probes.sweep(states, truth, questions, types=None, n_permutations=100, penalties=[100.0], seed=seed)


def test_on_noise_a_margin_is_hardly_ever_supported():
    verdicts = []
    for seed in range(40):
        found, other = noise(seed), noise(seed + 1000)  # what is fitted to the text has the same luck of training
        texts = {str(number): scores for number, scores in enumerate(other.scores)}
        best = readers.choose_best(texts, found.labels.tolist(), found.folds)
        margin = readers.measure_margin(found, best.scores, seed=seed)
        verdicts.append(claims.decide("margin", "", rule="value > 0.02", estimate=margin).verdict)
    assert verdicts.count("holds") <= 2 and verdicts.count("not run") >= 30


def test_a_margin_is_asked_where_either_side_reads():
    found, chance = noise(0, strength=2.0), torch.zeros(80)
    margin = readers.measure_margin(found, chance, of="pairs", seed=0)
    assert margin and margin.low > 0.2 and (margin.n, margin.of) == (20, "pairs")
    told = readers.measure_margin(noise(0), found.labels.float(), seed=0)
    assert told and told.high < 0 and told.reach == (-1, 0)


@pytest.mark.parametrize("label", list(readers.ASKED))
def test_a_language_model_is_asked_with_one_example_of_either(label, embedded, constructed, monkeypatch):
    asked = []
    monkeypatch.setattr(
        transcripts, "score_answers", lambda loaded, prompts, pairs: asked.extend(prompts) or torch.zeros(len(prompts))
    )
    rows = constructed[constructed["task"] == "addition"].head(4)
    readers.ask_language_model(embedded, label, rows, seed=0)
    assert len(asked) == 4 and len(set(asked)) == (4 if label == "constructed" else 2)
    for prompt, given in zip(asked, rows["answer"], strict=True):
        assert prompt.count(readers.ASKED[label]) == 3 and prompt.endswith(" Answer:")
        assert prompt.count("Answer: yes.") == prompt.count("Answer: no.") == 1
        assert prompt.endswith(f"Answer: {given}.\n{readers.ASKED[label]} Answer:") == (label == "constructed")


def test_what_tells_in_one_task_alone_is_found_with_domains(embedded):
    texts, labels, domains, groups = [], [], [], []
    for number in range(40):
        for domain, sign in (("one", True), ("two", False)):
            label = number % 2 == 0
            texts.append("red" if label == sign else "blue")
            labels.append(label), domains.append(domain), groups.append(number)
    plain, within = (
        baselines.score_text(embedded, texts, labels, groups, domains=some, seed=0) for some in (None, domains)
    )
    for name in plain:
        assert compute_auroc(plain[name], torch.tensor(labels)) < 0.6
        assert compute_auroc(within[name], torch.tensor(labels)) > 0.95, name


def test_words_are_counted():
    counted = readers.count_words(["one two", "two one", "one two"])
    assert counted.shape == (3, 4) and torch.equal(counted[0], counted[2]) and not torch.equal(counted[0], counted[1])


def test_bad_input_is_refused(refused, known):
    rows, truth, questions, folds = known
    with refused("'mood'", "constructed"):
        readers.score_without_probe(None, "mood", rows, truth, questions, folds=folds, reader=None, seed=0)
    with refused("1 domains", "one for each"):
        baselines.score_text(None, ["a"] * 6, [True, False] * 3, [0, 0, 1, 1, 2, 2], domains=["x"], folds=3, seed=0)
