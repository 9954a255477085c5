"""Probes find what was planted where it was planted, and nothing where there is nothing."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared.planted import activations, words
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from helpers import probes

pytestmark = pytest.mark.usefixtures("one_thread")


def swept(captured, labels, groups, **options):
    defaults = {"types": None, "seed": 0, "n_permutations": 20, "folds": 4}
    return probes.sweep(captured, labels, groups, **defaults | options)


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


# Transfer and learning curves


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


def test_bad_input_to_transfer_and_learning_curves_is_refused(refused):
    labels, groups = words(12, 2)
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    with refused("activations of shape [24, 3, 1]", "row feature"):
        probes.transfer(x[..., None], labels, groups, ["a"] * 24, seed=0, folds=3)
    with refused("the activations hold NaN"):
        probes.transfer(x.log(), labels, groups, ["a"] * 24, seed=0, folds=3)
    with refused("23 domains for 24 labels"):
        probes.transfer(x, labels, groups, ["a"] * 23, seed=0, folds=3)
    with refused("of 'b'", "no row of one class"):
        probes.transfer(x, labels, groups, ["b"] * 2 + ["a"] * 22, seed=0, folds=3)
    with refused("500 examples of a class", "1 to"):
        probes.trace_learning_curve(x, labels, groups, sizes=[500], seed=0, folds=3)
    with refused("learning curve of 'words'", "examples, groups"):
        probes.trace_learning_curve(x, labels, groups, sizes=[1], of="words", seed=0, folds=3)
