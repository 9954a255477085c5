"""What the text, the output and random heads give by themselves."""

import dataclasses
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared.planted import words
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline

from helpers import baselines, claims, hooks
from helpers.folds import assign_folds
from helpers.scores import tabulate

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_confound_planted_in_the_text_is_caught_by_the_text_baseline(load_tiny):
    loaded = load_tiny("llama")
    labels, groups = words(20, 4)
    fillers = ["a cat", "the mat", "some tea", "my hat"]
    texts = [
        f"{fillers[i % 4]} w{group} {'sat' if label else 'lay'}"
        for i, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]
    clean = [text.rsplit(" ", 1)[0] for text in texts]
    options = {"answers": ([65], [66]), "rules": {"length": [len(text) for text in texts]}, "seed": 0, "folds": 4}
    folds = assign_folds(labels, groups, n_folds=4, seed=0)

    def table(texts):
        scores = baselines.score_baselines(loaded, texts, labels, groups, **options)
        return tabulate(scores, labels, groups, folds=folds, seed=0).set_index("scores")

    caught, missed = table(texts), table(clean)
    assert caught["auroc"]["word n-grams"] > 0.95 and caught["auroc"]["character n-grams"] > 0.95
    assert caught["auroc"]["mean of the input embeddings"] > 0.95
    assert abs(missed["auroc"]["word n-grams"] - 0.5) < 0.25
    for table in (caught, missed):
        assert table["auroc"]["majority class"] == 0.5
        assert table["auroc"]["rule: length"] == pytest.approx(0.5, abs=0.15)
        assert "the model's output at last" in table.index


def test_the_output_baseline_is_the_difference_of_log_probabilities(load_tiny):
    loaded = load_tiny("gpt2")
    texts = ["the cat sat", "on the mat", "the the the"]
    found = baselines.read_output(loaded, texts, [40, 41], [50], positions={"end": -1, "before": -2})
    for row, text in enumerate(texts):
        logits = loaded.model(torch.tensor([loaded.encode(text)])).logits[0].log_softmax(-1).exp()
        for column, place in enumerate((-1, -2)):
            expected = (logits[place, [40, 41]].sum() / logits[place, 50]).log()
            assert float(found[row, column]) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_the_output_read_off_the_last_states_is_that_of_a_run(load_tiny, family):
    loaded, texts = load_tiny(family), ["the cat sat", "on the mat", "the the the the"]
    places = {"end": -1, "before": -2}
    states = hooks.capture(loaded, texts, "resid_post", positions=places)
    run = baselines.read_output(loaded, texts, [40, 41], [50], positions=places)
    torch.testing.assert_close(baselines.read_output(loaded, states, [40, 41], [50]), run, atol=1e-5, rtol=0)


def test_states_that_are_not_of_the_texts_are_refused(load_tiny, refused):
    loaded, texts = load_tiny("llama"), ["the cat", "a mat", "tea", "hat", "cup", "pen"]
    states = hooks.capture(loaded, texts, "resid_post")
    labels, groups = [True, False] * 3, [0, 0, 1, 1, 2, 2]
    options = {"answers": ([1], [2]), "rules": {}, "seed": 0, "folds": 3}
    for wrong in (states.select([5, 4, 3, 2, 1, 0]), dataclasses.replace(states, positions=("end",))):
        with refused("states at", "legal are those of the texts, at last"):
            baselines.score_baselines(loaded, texts, labels, groups, states=wrong, **options)
    with refused("no last layer's resid_post"):
        baselines.read_output(loaded, hooks.capture(loaded, texts, "resid_post", layers=[0]), [1], [2])
    found = [
        baselines.score_baselines(loaded, texts, labels, groups, states=some, **options) for some in (None, states)
    ]
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, atol=1e-5, rtol=0)


def test_terms_counted_once_score_as_if_each_fold_had_read_its_texts_alone(load_tiny):
    labels, groups = words(20, 4)
    texts = [f"w{group} {'sat' if (i * 7) % 5 else 'lay'} by {i % 6}" for i, group in enumerate(groups)]
    folds = assign_folds(labels, groups, n_folds=4, seed=0)
    found = baselines.score_text(load_tiny("llama"), texts, labels, groups, folds=folds, seed=0)
    for name, options in (
        ("word n-grams", {"ngram_range": (1, 2), "token_pattern": r"\S+"}),
        ("character n-grams", {"analyzer": "char_wb", "ngram_range": (2, 4)}),
    ):
        model = make_pipeline(TfidfVectorizer(**options), LogisticRegression(max_iter=1000))
        split = PredefinedSplit(folds.numpy())
        expected = cross_val_predict(model, texts, labels, cv=split, method="decision_function")
        torch.testing.assert_close(found[name], torch.tensor(expected).float(), atol=1e-4, rtol=0)


# Random sets of heads


SETS_OF_HEADS = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=8).map(sorted)


@given(heads=SETS_OF_HEADS, avoid=SETS_OF_HEADS, seed=st.integers(0, 1000), n_sets=st.integers(0, 12))
def test_controls_are_different_sets_of_as_many_heads_none_of_the_circuit(load_tiny, heads, avoid, seed, n_sets):
    loaded, n_free = load_tiny("llama"), 8 - len({*heads, *avoid})
    controls = baselines.draw_controls(loaded, heads, avoid=avoid, n_sets=n_sets, seed=seed)
    assert controls == baselines.draw_controls(loaded, heads, avoid=avoid, n_sets=n_sets, seed=seed)
    if not heads or n_free < len(heads):
        assert controls.sets == ()
        return
    assert len(controls.sets) == min(n_sets, controls.n_possible) == len(set(controls.sets))
    for chosen in controls.sets:
        assert len(set(chosen)) == len(chosen) == len(heads)
        assert set(chosen).isdisjoint({*heads, *avoid})
        assert all(0 <= layer < 2 and 0 <= head < 4 for layer, head in chosen)


@given(heads=SETS_OF_HEADS.filter(bool), avoid=SETS_OF_HEADS, seed=st.integers(0, 1000))
def test_a_layer_lends_only_where_another_has_too_few(load_tiny, heads, avoid, seed):
    free = [4 - sum(layer == i for layer, _ in {*heads, *avoid}) for i in range(2)]
    needed = [sum(layer == i for layer, _ in heads) for i in range(2)]
    controls = baselines.draw_controls(load_tiny("llama"), heads, avoid=avoid, n_sets=5, seed=seed)
    if all(have >= 2 * need for have, need in zip(free, needed, strict=True)):
        assert controls.n_borrowed == 0
        assert controls.n_possible == math.comb(free[0], needed[0]) * math.comb(free[1], needed[1])
        for chosen in controls.sets:
            assert [sum(layer == i for layer, _ in chosen) for i in range(2)] == needed
    elif sum(free) >= len(heads):
        assert controls.n_possible == math.comb(sum(free), len(heads))


def test_what_controls_share_is_counted(load_tiny):
    alone = baselines.draw_controls(load_tiny("llama"), [(1, 2)], n_sets=9, seed=0)
    assert (alone.n_possible, len(alone.sets), alone.shared) == (3, 3, 0.0)
    pairs = baselines.draw_controls(load_tiny("llama"), [(0, 0), (0, 1)], avoid=[(1, 0)], n_sets=99, seed=0)
    assert pairs.n_possible == 10 and pairs.n_borrowed > 0  # two free heads in layer 0, three in layer 1
    assert pairs.shared == 0.5  # of 9 other pairs 6 share one of two heads


def test_controls_reach_every_free_head_about_equally_often(load_tiny):
    counts = Counter(
        baselines.draw_controls(load_tiny("llama"), [(1, 2)], n_sets=1, seed=seed).sets[0][0] for seed in range(600)
    )
    assert set(counts) == {(1, 0), (1, 1), (1, 3)}
    assert all(150 < count < 250 for count in counts.values())


@pytest.mark.parametrize(("lift", "lead"), [(3.0, "above"), (-3.0, "below"), (0.0, "within")])
def test_a_set_is_compared_with_its_strongest_control_in_pairs(lift, lead):
    generator = torch.Generator().manual_seed(0)
    level = 100 * torch.randn(40, generator=generator)  # what examples have in common, far larger than any effect
    effects = level + torch.randn(11, 40, generator=generator)
    effects[0] += lift
    above = baselines.compare_with_controls(effects, seed=0)
    below = baselines.compare_with_controls(effects, seed=0, below=True)
    assert (above.lead.low > 0) == (lead == "above") and (below.lead.low > 0) == (lead == "below")
    assert above.own.value == pytest.approx(float(effects[0].mean()), rel=1e-4)
    assert above.lead.value == pytest.approx(float(effects[0].mean() - effects[1:].mean(1).max()), abs=1e-3)
    verdict = claims.decide("a", "A.", rule="value > 0", **above.evidence).verdict
    assert verdict in {"above": ["holds"], "below": ["fails"], "within": ["fails", "depends"]}[lead]
    low, middle, high = (claims.shorten(float(effects[1:].mean(1).quantile(at))) for at in (0, 0.5, 1))
    assert above.spread == f"{middle} ({low} to {high})"


def test_chance_sets_beat_all_their_controls_no_more_often_than_one_in_so_many():
    generator, won = torch.Generator().manual_seed(1), 0
    for _ in range(400):
        effects = torch.randn(10, 1, generator=generator) + torch.randn(10, 30, generator=generator)
        won += baselines.compare_with_controls(effects, seed=0, groups=range(30)).lead.low > 0
    assert won / 400 < 1 / 10


def test_without_a_control_nothing_is_compared():
    alone = baselines.compare_with_controls(torch.arange(4.0)[None], seed=0)
    assert (alone.own.value, alone.lead, alone.spread) == (1.5, None, "–")
    assert claims.decide("a", "A.", rule="value > 0", **alone.evidence).verdict == "not run"


def test_bad_input_is_refused(refused, load_tiny):
    for effects in (torch.ones(4), torch.ones(0, 4)):
        with refused("effects of shape", "a row for the set"):
            baselines.compare_with_controls(effects, seed=0)
    labels, groups = words(12, 2)
    loaded, texts = load_tiny("llama"), ["the cat"] * 24
    for positive, negative, message in (([], [1], "at least one"), ([1], [1], "on both sides"), ([1], [9999], "9999")):
        with refused(message):
            baselines.read_output(loaded, texts, positive, negative)
    with refused("23 texts for 24 labels"):
        baselines.score_baselines(loaded, texts[:-1], labels, groups, answers=([1], [2]), rules={}, seed=0)
    with refused("rule: short", "shape [3]", "24 finite numbers"):
        baselines.score_baselines(loaded, texts, labels, groups, answers=([1], [2]), rules={"short": [1, 2, 3]}, seed=0)
