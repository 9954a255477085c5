"""What the text, the output and random heads give by themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared.planted import words

from helpers import baselines
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


# Random sets of heads


SETS_OF_HEADS = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=8).map(sorted)


@given(heads=SETS_OF_HEADS, seed=st.integers(0, 1000))
def test_random_sets_have_as_many_other_heads_in_every_layer(load_tiny, heads, seed):
    loaded = load_tiny("llama")
    per_layer = [sum(layer == i for layer, _ in heads) for i in range(2)]
    sets = baselines.draw_layer_matched_sets(loaded, heads, n_sets=5, seed=seed)
    if max(per_layer) > 2:  # of four
        assert sets == []
        return
    assert len(sets) == 5
    for chosen in sets:
        assert len(set(chosen)) == len(chosen) == len(heads)
        assert set(chosen).isdisjoint(heads)
        assert [sum(layer == i for layer, _ in chosen) for i in range(2)] == per_layer
        assert all(0 <= head < 4 for _, head in chosen)
    assert sets == baselines.draw_layer_matched_sets(loaded, heads, n_sets=5, seed=seed)


@given(heads=SETS_OF_HEADS.filter(bool), seed=st.integers(0, 1000))
def test_random_sets_that_may_share_heads_are_there_unless_only_one_could_be(load_tiny, heads, seed):
    loaded = load_tiny("llama")
    per_layer = [sum(layer == i for layer, _ in heads) for i in range(2)]
    sets = baselines.draw_layer_matched_sets(loaded, heads, n_sets=5, seed=seed, disjoint=False)
    if set(per_layer) <= {0, 4}:
        assert sets == []
        return
    assert len(sets) == 5
    for chosen in sets:
        assert len(set(chosen)) == len(chosen)
        assert [sum(layer == i for layer, _ in chosen) for i in range(2)] == per_layer


def test_random_sets_reach_every_other_head_about_equally_often(load_tiny):
    sets = baselines.draw_layer_matched_sets(load_tiny("llama"), [(1, 2)], n_sets=600, seed=0)
    counts = [sum((1, head) in chosen for chosen in sets) for head in range(4)]
    assert counts[2] == 0
    assert all(150 < counts[head] < 250 for head in (0, 1, 3))


def test_bad_input_is_refused(refused, load_tiny):
    labels, groups = words(12, 2)
    loaded, texts = load_tiny("llama"), ["the cat"] * 24
    for positive, negative, message in (([], [1], "at least one"), ([1], [1], "on both sides"), ([1], [9999], "9999")):
        with refused(message):
            baselines.read_output(loaded, texts, positive, negative)
    with refused("23 texts for 24 labels"):
        baselines.score_baselines(loaded, texts[:-1], labels, groups, answers=([1], [2]), rules={}, seed=0)
    with refused("rule: short", "shape [3]", "24 finite numbers"):
        baselines.score_baselines(loaded, texts, labels, groups, answers=([1], [2]), rules={"short": [1, 2, 3]}, seed=0)
