import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from helpers import baselines, hooks, probes
from helpers.folds import assign_folds, assign_shared_folds, can_fold, draw_control_labels, permute_labels
from helpers.scores import combine, compute_auroc, evaluate, measure_calibration_error, subtract, tabulate

pytestmark = pytest.mark.usefixtures("one_thread")

N_WORDS, PER_WORD = 40, 4


def words(n_words=N_WORDS, per_word=PER_WORD):
    """Rows as in a data set of words in sentences: the label is that of the word."""
    groups = np.repeat(np.arange(n_words), per_word)
    return (groups % 2).astype(bool), groups.tolist()


def activations(labels, *, planted=(), n_layers=3, n_heads=0, n_features=8, strength=2.0, seed=0):
    """Noise of every word and row, with the label planted at some (layer, head or None)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_heads, n_features) if n_heads else (n_features,)
    values = torch.randn(len(labels), n_layers, 1, *shape, generator=generator)
    direction = torch.randn(n_features, generator=generator)
    push = torch.as_tensor(labels)[:, None] * strength * direction / direction.norm()
    for layer, head in planted:
        values[(slice(None), layer, 0, *(() if head is None else (head,)))] += push
    site = "head_z" if n_heads else "resid_post"
    return hooks.Captured(
        {site: values},
        {site: ("example", "layer", *hooks.SITES[site])},
        tuple(range(n_layers)),
        ("last",),
        torch.full((len(labels),), 5),
    )


def swept(captured, labels, groups, **options):
    defaults = {"types": None, "seed": 0, "n_permutations": 20, "folds": 4}
    return probes.sweep(captured, labels, groups, **defaults | options)


# Splits


@given(seed=st.integers(0, 1000), n_folds=st.integers(3, 8))
def test_grouped_folds_split_no_group_and_hold_both_classes(seed, n_folds):
    labels, groups = words()
    folds = assign_folds(labels, groups, n_folds=n_folds, seed=seed).numpy()
    assert set(folds) == set(range(n_folds))
    assert len(set(zip(groups, folds, strict=True))) == N_WORDS
    for fold in range(n_folds):
        assert abs(labels[folds == fold].mean() - 0.5) < 0.2


@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(2, 9), min_size=2, max_size=20))
def test_shared_folds_spread_every_type(seed, sizes):
    types = [number for number, size in enumerate(sizes) for _ in range(size)]
    folds = assign_shared_folds(types, n_folds=4, seed=seed).numpy()
    for number, size in enumerate(sizes):
        own = folds[np.array(types) == number]
        assert len(set(own)) == min(size, 4)
        assert np.bincount(own, minlength=4).max() <= -(-size // 4)


@given(seed=st.integers(0, 1000))
def test_labels_are_permuted_between_groups_that_have_one_and_within_the_others(seed):
    groups = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    labels = [1] * 4 + [0] * 4 + [1, 0, 0, 0] + [1, 1, 0, 0]
    columns = permute_labels(labels, groups, n_permutations=30, seed=seed).T.int()
    for column in columns:
        assert sorted({tuple(column[:4].tolist()), tuple(column[4:8].tolist())}) == [(0,) * 4, (1,) * 4]
        assert column[8:12].sum() == 1
        assert column[12:].sum() == 2
    assert len({tuple(column.tolist()) for column in columns}) > 5


def test_control_labels_are_one_for_each_type_and_half_of_each():
    _, groups = words()
    control = draw_control_labels(groups, n_draws=30, seed=0)
    for column in control.T.numpy():
        per_type = {group: set(column[np.array(groups) == group]) for group in groups}
        assert all(len(values) == 1 for values in per_type.values())
        assert column.mean() == 0.5
    assert 0.3 < float((control[:, 0] == control[:, 1]).float().mean()) < 0.7


# The area under the curve


@given(seed=st.integers(0, 1000), n_values=st.integers(1, 30))
def test_areas_are_those_of_scikit_learn_also_with_ties(seed, n_values):
    generator = np.random.default_rng(seed)
    scores = generator.integers(n_values, size=(3, 40)) / 7
    labels = generator.random((3, 40)) < 0.4
    labels[:, :2] = [True, False]
    found = compute_auroc(torch.tensor(scores), torch.tensor(labels))
    expected = [roc_auc_score(truth, row) for row, truth in zip(scores, labels, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_an_area_without_one_class_is_not_a_number():
    assert compute_auroc(torch.arange(3.0), torch.ones(3, dtype=torch.bool)).isnan()


# The sweep


def test_a_nested_sweep_is_what_refitting_gives():
    labels, groups = words(20)
    captured = activations(labels, planted=[(1, None)], strength=1.0)
    found = swept(captured, labels, groups, penalties=[1.0, 30.0, 1000.0], n_permutations=0)
    folds, signs = found.folds.numpy(), np.where(labels, 1, -1)

    def predicted(x, training, penalty):
        scaler = StandardScaler().fit(x[training])
        return Ridge(alpha=penalty).fit(scaler.transform(x[training]), signs[training]).predict(scaler.transform(x))

    for number, site in enumerate(found.sites):
        x = probes.read_features(captured, site).double().numpy()
        for fold in range(4):
            losses = []
            for penalty in (1.0, 30.0, 1000.0):
                loss = 0.0
                for inner in set(range(4)) - {fold}:
                    held = folds == inner
                    scores = predicted(x, (folds != fold) & ~held, penalty)
                    loss += np.square(signs - scores)[held].sum()
                losses.append(loss / (folds != fold).sum())
            assert float(found.inner_loss[number, fold, 0]) == pytest.approx(min(losses), rel=1e-4)
            held = folds == fold
            scores = predicted(x, ~held, (1.0, 30.0, 1000.0)[int(np.argmin(losses))])[held]
            assert found.scores[number, held].numpy() == pytest.approx(scores, abs=1e-4)
            assert float(found.auroc[number, fold, 0]) == pytest.approx(roc_auc_score(labels[held], scores))
            assert float(found.accuracy[number, fold, 0]) == pytest.approx(((scores > 0) == labels[held]).mean())


@pytest.mark.parametrize("method", ["ridge", "logistic", "mean_difference"])
def test_a_planted_label_is_read_where_it_is_with_the_accuracy_it_allows(method):
    labels, groups = words(100)
    captured = activations(labels, planted=[(2, None)], strength=3.0)
    table = swept(captured, labels, groups, method=method).table()
    best = table.loc[table["auroc"].idxmax()]
    assert best["layer"] == 2
    assert best["accuracy"] == pytest.approx(0.933, abs=0.035)  # of a normal: half of 3 standard deviations
    assert best["accuracy_low"] < best["accuracy"] < best["accuracy_high"]
    assert best["p_corrected"] == pytest.approx(1 / 21)
    others = table[table["layer"] != 2]
    assert ((others["null_low"] - 0.05 < others["auroc"]) & (others["auroc"] < others["null_high"] + 0.05)).all()


def test_heads_are_told_apart():
    labels, groups = words()
    found = swept(activations(labels, planted=[(1, 2)], n_heads=4), labels, groups)
    table = found.table()
    best = table.loc[table["auroc"].idxmax()]
    assert (best["component"], best["layer"], best["head"]) == ("head_z", 1, 2)
    assert set(found.best().sites) == {probes.Site("head_z", 1, "last", 2)}


def test_labels_that_mean_nothing_stay_inside_the_null_band_19_times_of_20():
    """The band's two ends together are left by 5 %; over 300 draws three standard errors of that are 3.8 %."""
    labels, groups = words(30, 3)
    outside = 0
    for seed in range(100):
        captured = activations(labels, n_layers=3, seed=seed)
        table = swept(captured, labels, groups, seed=seed, n_permutations=60, penalties=[100.0]).table()
        outside += int(((table["auroc"] < table["null_low"]) | (table["auroc"] > table["null_high"])).sum())
    # of 60 permutations the outermost two or so lie beyond each quantile: a little more than 5 % is due to that
    assert 0.02 < outside / 300 < 0.105


def test_p_values_of_the_best_site_are_calibrated():
    """Also after the search over sites and penalties: at most 5 % below 0.05, within three standard errors."""
    labels, groups = words(24, 3)
    below = {"corrected": 0, "nested": 0}
    for seed in range(120):
        found = swept(
            activations(labels, n_layers=6, n_features=4, seed=seed), labels, groups, seed=seed, n_permutations=39
        )
        below["corrected"] += bool((found.table()["p_corrected"] <= 0.05).any())
        below["nested"] += found.best().p_value <= 0.05
    for count in below.values():
        assert count / 120 < 0.05 + 3 * (0.05 * 0.95 / 120) ** 0.5


def test_the_best_of_many_is_not_flattered_by_the_choice():
    labels, groups = words(24, 2)
    highest, nested = [], []
    for seed in range(30):
        found = swept(
            activations(labels, n_layers=40, n_features=3, seed=seed), labels, groups, n_permutations=0, seed=seed
        )
        highest.append(found.auroc[..., 0].mean(1).max())
        nested.append(found.best().auroc.value)
    assert np.mean(highest) > 0.6
    assert abs(np.mean(nested) - 0.5) < 0.06


def test_without_permutations_there_is_no_null():
    labels, groups = words()
    found = swept(activations(labels, planted=[(1, None)]), labels, groups, n_permutations=0)
    assert not {"null_low", "null_high", "p_value", "p_corrected"} & set(found.table().columns)
    best = found.best()
    assert all(map(np.isnan, (*best.null, best.p_value)))
    assert best.auroc.value > 0.9


def test_the_same_seed_gives_the_same_table():
    labels, groups = words()
    captured = activations(labels, planted=[(1, None)])
    tables = [swept(captured, labels, groups, types=groups, seed=seed).table() for seed in (3, 3, 4)]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_some_sites_are_those_of_the_whole_sweep():
    labels, groups = words()
    captured = activations(labels, planted=[(1, 2)], n_heads=4)
    whole = swept(captured, labels, groups)
    some = [probes.Site("head_z", 2, "last", 0), probes.Site("head_z", 1, "last", 2)]
    found = swept(captured, labels, groups, sites=some)
    for number, site in enumerate(some):
        assert torch.allclose(found.auroc[number], whole.auroc[whole.sites.index(site)], atol=1e-4)
    assert whole.best(some).sites == found.best().sites


# The control task


def test_a_probe_that_knows_the_words_has_no_selectivity():
    labels, groups = words(30, 6)
    generator = torch.Generator().manual_seed(0)
    captured = activations(labels, n_layers=2, n_features=40, planted=[(1, None)], strength=6.0)
    code = torch.randn(30, 40, generator=generator)  # layer 0 tells words apart and knows nothing else
    captured.values["resid_post"][:, 0, 0] = code[groups] + 0.1 * captured["resid_post"][:, 0, 0]
    table = swept(captured, labels, groups, types=groups, n_control=20).table()
    memory, meaning = table.iloc[0], table.iloc[1]
    assert memory["shared_accuracy"] > 0.95 and memory["control_accuracy"] > 0.95
    assert abs(memory["selectivity"]) < 0.05
    assert memory["auroc"] < memory["null_high"]  # on words it has not seen
    assert meaning["shared_accuracy"] > 0.95 and meaning["control_accuracy"] < 0.65
    assert meaning["selectivity"] == pytest.approx(meaning["shared_accuracy"] - meaning["control_accuracy"])


def test_without_types_there_is_no_control_task():
    labels, groups = words()
    assert "selectivity" not in swept(activations(labels), labels, groups).table()


# Scores


def test_evaluate_gives_what_was_planted_with_intervals_that_know_groups():
    generator = np.random.default_rng(0)
    labels, groups = words(200, 4)
    of_word = generator.normal(size=200)[groups]
    scores = torch.tensor(np.where(labels, 1, -1) + of_word).float()
    found = evaluate(scores, labels, groups, seed=0)
    assert found["auroc"].value == pytest.approx(roc_auc_score(labels, scores.numpy()))
    assert found["accuracy"].value == pytest.approx(((scores > 0).numpy() == labels).mean())
    assert found["auroc"].n == 200 and found["auroc"].of == "groups"
    alone = evaluate(scores, labels, list(range(800)), seed=0)
    width = {name: one["auroc"].high - one["auroc"].low for name, one in (("words", found), ("rows", alone))}
    assert width["words"] > 1.5 * width["rows"]  # four rows of a word say no more than one


def test_an_interval_lies_about_its_value_also_with_few_groups_in_a_fold():
    """Rows of a group share an offset, so that pairs within groups are told apart more easily."""
    outside, shifts = 0, []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        groups = torch.arange(30).repeat_interleave(4)
        labels = torch.arange(120) % 2 == 0
        scores = labels + 3 * torch.randn(30, generator=generator)[groups] + 0.5 * torch.randn(120, generator=generator)
        found = evaluate(scores, labels.tolist(), groups.tolist(), folds=(groups % 10).tolist(), seed=seed)
        area = found["auroc"]
        outside += not area.low <= area.value <= area.high
        shifts.append((area.low + area.high) / 2 - area.value)
    assert outside == 0 and abs(sum(shifts) / len(shifts)) < 0.02, (outside, shifts)


def test_groups_may_be_a_tensor():
    labels, groups = words(30, 4)
    scores = torch.linspace(0, 1, 120)
    expected = evaluate(scores, labels, groups, seed=0)
    assert evaluate(scores, labels, torch.tensor(groups), seed=0) == expected


def test_recall_at_one_percent_needs_300_negatives():
    labels = [True] * 200 + [False] * 300
    scores = torch.cat([torch.linspace(0, 1, 200), torch.linspace(-1, 0.5, 300)])
    found = evaluate(scores, labels, list(range(500)), seed=0)["recall"]
    threshold = np.sort(scores[200:].numpy())[-4]  # three of 300 may pass
    assert found.value == pytest.approx(float((scores[:200] > threshold).float().mean()), abs=0.006)
    assert evaluate(scores[:-1], labels[:-1], list(range(499)), seed=0)["recall"] is None


def test_calibration_error_is_small_for_true_probabilities_and_large_for_bold_ones():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, generator=generator)
    labels = torch.rand(4000, generator=generator) < torch.sigmoid(logits)
    groups = list(range(4000))
    honest = measure_calibration_error(logits, labels.numpy(), groups, seed=0)
    bold = measure_calibration_error(5 * logits, labels.numpy(), groups, seed=0)
    assert honest.value < 0.04 < 0.15 < bold.value
    assert bold.low < bold.value < bold.high


def test_a_difference_knows_that_both_scores_are_of_the_same_rows():
    generator = np.random.default_rng(0)
    labels, groups = words(100, 4)
    shared = generator.normal(size=100)[groups]
    one, other = (torch.tensor(np.where(labels, lift, -lift) + shared) for lift in (0.8, 0.6))
    gap = subtract(one, other, labels, groups, seed=0)
    apart = [evaluate(score, labels, groups, seed=0)["auroc"] for score in (one, other)]
    assert gap.value == pytest.approx(apart[0].value - apart[1].value, abs=1e-6)
    assert gap.high - gap.low < 0.7 * (apart[0].high - apart[0].low)
    assert gap.low > 0
    none = subtract(one, one, labels, groups, seed=0)
    assert (none.value, none.low, none.high) == (0, 0, 0)


# Transfer and learning curves


def test_areas_are_combined_on_their_own_rows():
    generator = torch.Generator().manual_seed(0)
    labels, groups = [True, False] * 20, [number // 2 for number in range(40)]
    one, other = torch.randn(2, 40, generator=generator)
    first = torch.arange(40) < 20
    found = combine([(2.0, one, first), (-0.5, other, ~first)], labels, groups, seed=0)
    truth = torch.tensor(labels)
    by_hand = 2 * compute_auroc(one[first], truth[first]) - 0.5 * compute_auroc(other[~first], truth[~first])
    assert found.value == pytest.approx(float(by_hand), abs=1e-6) and found.low < found.value < found.high
    whole = combine([(1.0, one, [True] * 40)], labels, groups, seed=0)
    assert whole.value == pytest.approx(evaluate(one, labels, groups, seed=0)["auroc"].value)


def test_five_folds_need_five_groups_of_each_class():
    labels, groups = [True, False] * 5, list(range(10))
    assert can_fold(labels, groups, seed=0)
    assert not can_fold([True, *[False] * 9], groups, seed=0)
    assert not can_fold([False] * 10, groups, seed=0)
    assert not can_fold(labels, [number // 4 for number in groups], seed=0)


def test_transfer_finds_which_domains_share_a_direction():
    groups = np.repeat(np.arange(60), 3)
    labels, domains = groups % 2 == 1, np.tile(["a", "b", "c"], 60)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(180, 10, generator=generator)
    x[:, 0] += torch.tensor(np.where(labels, 3, -3) * np.where(domains == "c", -1, 1))
    table = probes.transfer(x, labels, groups.tolist(), domains.tolist(), seed=0)
    auroc = table.set_index(["trained", "tested"])["auroc"]
    for one, other in ("aa", "ab", "ba", "bb", "cc"):
        assert auroc[one, other] > 0.95
    for one, other in ("ac", "bc", "ca", "cb"):
        assert auroc[one, other] < 0.05
    assert (table["auroc_low"] <= table["auroc"]).all() and (table["auroc"] <= table["auroc_high"]).all()


def test_transfer_does_not_see_the_words_that_it_is_tested_on():
    """Each word has a code of its own, the same in both domains, and nothing else says its label."""
    groups = np.repeat(np.arange(60), 2)
    labels, domains = groups % 2 == 1, np.tile(["a", "b"], 60)
    code = torch.randn(60, 100, generator=torch.Generator().manual_seed(0))
    table = probes.transfer(code[groups], labels, groups.tolist(), domains.tolist(), seed=0)
    assert (table["auroc"] - 0.5).abs().max() < 0.2


def test_learning_curves_rise_and_begin_with_one_example_of_each_class():
    labels, groups = words(60, 4)
    x = probes.read_features(
        activations(labels, planted=[(0, None)], strength=3.0), probes.Site("resid_post", 0, "last")
    )
    curve = probes.trace_learning_curve(x, labels, groups, sizes=[1, 4, 16, 64], seed=0, n_draws=40)
    assert curve["size"].tolist() == [1, 4, 16, 64]
    assert curve["auroc"].is_monotonic_increasing
    assert 0.6 < curve["auroc"][0] < 0.9 < curve["auroc"][3]
    assert (curve["auroc_low"] <= curve["auroc"]).all()
    whole = probes.trace_learning_curve(x, labels, groups, sizes=[1], of="groups", seed=0, n_draws=40)
    assert 0.6 < whole["auroc"][0] < 1


def test_few_examples_come_from_as_many_groups_as_there_are():
    codes = np.repeat(np.arange(10), 5)
    legal = codes < 6
    generator = np.random.default_rng(0)
    for size in range(1, 7):
        rows = probes._drawn(legal, codes, size, "examples", generator)
        assert len(set(codes[rows])) == len(rows) == size
    assert sorted(probes._drawn(legal, codes, 30, "examples", generator)) == list(range(30))
    rows = probes._drawn(legal, codes, 2, "groups", generator)
    assert len(rows) == 10 and len(set(codes[rows])) == 2


# Without a probe


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


# Bad input


def test_bad_labels_and_groups_are_refused(refused):
    labels, groups = words(6, 2)
    captured = activations(labels)
    with refused("12 labels are of one class"):
        swept(captured, [True] * 12, groups)
    with refused("11 labels for 12 groups"):
        swept(captured, labels[:-1], groups)
    with refused("labels ['0', '1', '2']", "True and False"):
        swept(captured, [0, 1, 2] * 4, groups)
    with refused("7 folds", "3 to 6, the number of groups"):
        swept(captured, labels, groups, folds=7)
    with refused("2 folds", "3 to 6"):
        swept(captured, labels, groups, folds=2)
    with refused("8 labels for 12 prompts"):
        swept(captured, labels[:8], [0, 1, 2, 3, 4, 5, 6, 7], folds=3)
    with refused("11 types for 12 labels"):
        swept(captured, labels, groups, types=groups[:-1], folds=3)
    with refused("occurs once"):
        swept(captured, labels, groups, types=list(range(12)), folds=3)


def test_a_group_on_both_sides_is_refused(refused):
    labels, groups = words(6, 2)
    folds = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert swept(activations(labels), labels, groups, folds=folds, n_permutations=0).folds.tolist() == folds
    leaking = [0, 0, 0, 1, 1, 1, 1, 0, 2, 2, 2, 2]
    with refused("a group is in two folds"):
        swept(activations(labels), labels, groups, folds=leaking)
    with refused("a group is in two folds"):
        evaluate(torch.zeros(12), labels, groups, folds=leaking, seed=0)
    with refused("fold 0 has 2 rows of one class"):
        swept(activations(labels), labels, groups, folds=[0, 0, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2])
    with refused("legal are at least three"):
        swept(activations(labels), labels, groups, folds=[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1])


def test_activations_that_are_not_there_are_refused_by_name(refused):
    labels, groups = words(6, 2)
    captured = activations(labels)
    captured.values["resid_post"][3, 1, 0] = torch.nan
    with refused("resid_post 1 at last holds NaN"):
        swept(captured, labels, groups, folds=3)
    with refused("no activations of resid_post 7 at last", "resid_post 0 at last to resid_post 2 at last"):
        swept(captured, labels, groups, folds=3, sites=[probes.Site("resid_post", 7, "last")])
    with refused("no sites"):
        swept(captured, labels, groups, folds=3, sites=[])
    pattern = dataclasses.replace(captured, axes={"pattern": ("example", "layer", "query", "head", "key")})
    with refused("pattern can't be probed"):
        probes.list_sites(pattern)


def test_bad_input_to_the_smaller_functions_is_refused(refused, load_tiny):
    labels, groups = words(12, 2)
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    with refused("[23]", "24 finite"):
        evaluate(torch.zeros(23), labels, groups, seed=0)
    with refused("[23]", "24 finite"):
        subtract(torch.zeros(23), torch.zeros(23), labels, groups, seed=0)
    with refused("activations of shape [24, 3, 1]", "row feature"):
        probes.transfer(x[..., None], labels, groups, ["a"] * 24, seed=0, folds=3)
    with refused("the activations hold NaN"):
        probes.transfer(x.log(), labels, groups, ["a"] * 24, seed=0, folds=3)
    with refused("23 domains for 24 labels"):
        probes.transfer(x, labels, groups, ["a"] * 23, seed=0, folds=3)
    with refused("no AUROC", "at least one"):
        combine([], [True, False], [0, 1], seed=0)
    with refused("rows of one class"):
        combine([(1.0, torch.zeros(2), [True, False])], [True, False], [0, 1], seed=0)
    with refused("of 'b'", "no row of one class"):
        probes.transfer(x, labels, groups, ["b"] * 2 + ["a"] * 22, seed=0, folds=3)
    with refused("500 examples of a class", "1 to"):
        probes.trace_learning_curve(x, labels, groups, sizes=[500], seed=0, folds=3)
    with refused("learning curve of 'words'", "examples, groups"):
        probes.trace_learning_curve(x, labels, groups, sizes=[1], of="words", seed=0, folds=3)
    loaded = load_tiny("llama")
    texts = ["the cat"] * 24
    for positive, negative, message in (([], [1], "at least one"), ([1], [1], "on both sides"), ([1], [9999], "9999")):
        with refused(message):
            baselines.read_output(loaded, texts, positive, negative)
    with refused("23 texts for 24 labels"):
        baselines.score_baselines(loaded, texts[:-1], labels, groups, answers=([1], [2]), rules={}, seed=0)
    with refused("rule: short", "3 scores for 24 labels"):
        baselines.score_baselines(loaded, texts, labels, groups, answers=([1], [2]), rules={"short": [1, 2, 3]}, seed=0)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_leaving_out_two_folds_serves_both(seed):
    """The inner loss of fold k uses no row of fold k, whatever its label."""
    labels, groups = words(20, 2)
    captured = activations(labels, seed=seed, planted=[(1, None)])
    before = swept(captured, labels, groups, n_permutations=0, seed=seed)
    for fold in range(4):
        changed = captured["resid_post"].clone()
        changed[before.folds == fold] = changed[before.folds == fold].flip(-1)
        other = dataclasses.replace(captured, values={"resid_post": changed})
        after = swept(other, labels, groups, n_permutations=0, folds=before.folds, seed=seed)
        assert torch.allclose(after.inner_loss[:, fold], before.inner_loss[:, fold], atol=1e-4)
        others = [number for number in range(4) if number != fold]
        assert not torch.allclose(after.inner_loss[:, others], before.inner_loss[:, others], atol=1e-4)
    assert len(list(combinations(range(4), 2))) == 6
