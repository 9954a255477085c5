"""Journeys to an organism on planted activations: what both share is found, luck is not, and what can't be is said."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from helpers import claims, probes
from helpers.hooks import Captured
from helpers.probes import Site
from helpers.scores import compute_auroc, measure_separation
from studies.faithfulness import journeys, organism, truth
from studies.faithfulness.transcripts import score_answers
from studies.faithfulness.truth import Sample

WIDTH, SITE = 24, Site("resid_post", 0, "answer")
pytestmark = pytest.mark.usefixtures("one_thread")


def as_sample(x, labels, units, tasks=None):
    """Activations of one layer, or of several, at the answer."""
    layers = x if x.ndim == 3 else x[:, None]
    axes = {"resid_post": ("example", "layer", "position", "d_model")}
    states = Captured(
        {"resid_post": layers[:, :, None]}, axes, tuple(range(layers.shape[1])), ("answer",), torch.full((len(x),), 9)
    )
    return Sample(states, labels, units, tasks or ["one"] * len(x), list(range(len(x))))


def along(*weights):
    found = torch.zeros(WIDTH)
    found[: len(weights)] = torch.tensor(weights, dtype=torch.float)
    return found


def transcripts_of(seed, direction, n_questions=24):
    """Each question twice with either label, which moves activations along a direction."""
    generator = torch.Generator().manual_seed(seed)
    labels = np.tile([False, True], 2 * n_questions)
    x = torch.randn(len(labels), WIDTH, generator=generator) + torch.from_numpy(2.0 * labels - 1)[:, None] * direction
    return as_sample(x.float(), labels.tolist(), np.repeat(np.arange(n_questions), 4).tolist())


def names_of(seed, direction):
    """24 listed names and 24 others, whom the list moves along a direction."""
    generator = torch.Generator().manual_seed(1000 + seed)
    listed = np.tile([False, True], 24)
    x = torch.randn(48, WIDTH, generator=generator) + torch.from_numpy(2.0 * listed - 1)[:, None] * direction
    return as_sample(x.float(), listed.tolist(), [f"name {number}" for number in range(48)])


def there(seed, label, list_, back=False):
    """From the label to the list, or back; the twin knows no list."""
    sample, names, twin = transcripts_of(seed, label), names_of(seed, list_), names_of(seed + 500, along())
    if back:
        return truth.seek(names, sample, (twin, sample), SITE, seed=seed)
    return truth.seek(sample, names, (sample, twin), SITE, seed=seed)


def verdict(found):
    return claims.decide("", "", rule="value > baseline", estimate=found.separation, baseline=found.bar).verdict


STRONG = 4.0


@pytest.mark.parametrize("back", [False, True])
def test_what_label_and_list_share_is_found_and_what_they_do_not_is_not(back):
    shared = there(0, along(1.0), along(STRONG), back)
    assert verdict(shared) == "holds" and shared.auroc.low > 0.6 and shared.above_twin.low > 0
    assert shared.separation.n == (24 if back else 48)
    apart = there(0, along(1.0), along(0, STRONG), back)
    assert verdict(apart) == "fails"
    assert verdict(there(0, along(1.0), along(-STRONG), back)) == "fails"  # the wrong way round


def test_between_the_two_it_depends_and_without_a_trace_it_is_out_of_reach():
    partly = [verdict(there(seed, along(1.0), along(0.35, STRONG))) for seed in range(12)]
    assert "depends" in partly
    assert "out of reach" in [verdict(there(seed, along(1.0), along())) for seed in range(3)]
    blind = [verdict(there(seed, along(), along(STRONG), back=True)) for seed in range(3)]
    assert "out of reach" in blind


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("strength", [0.0, STRONG])
def test_noise_supports_nothing_though_an_area_alone_would(back, strength):
    """Nothing is shared: the trained labels are random, and what is tested lies along one line or along none."""
    supported, by_area = 0, 0
    for seed in range(40):
        label, list_ = (along(strength), along()) if back else (along(), along(strength))
        found = there(seed, label, list_, back)
        supported += verdict(found) == "holds"
        by_area += found.auroc.low > 0.6
    assert supported <= 2  # at most 5 % of the seeds
    assert (by_area > 8) == (strength > 0), by_area  # nearly any direction puts all names on one side


def test_bars_are_what_they_are_called():
    found = there(3, along(1.0), along(0, STRONG))
    assert found.bar == max(found.bars.values()) == found.bars["probes of shuffled labels"]
    assert found.bars["an AUROC of 0.6"] == truth.FOUND == pytest.approx(0.358, abs=0.001)
    assert norm.cdf(truth.FOUND / 2**0.5) == pytest.approx(0.6)
    assert abs(found.bars["the twin"]) < 1
    low, high = found.luck
    assert low < 0.2 and high > 0.8
    low, high = found.separation.reach
    assert low == -high and high > 2  # what a probe of the list itself comes to


def test_scores_are_of_the_probe_first_and_shuffled_labels_after():
    sample, names = transcripts_of(0, along(1.0)), names_of(0, along(STRONG))
    scores = truth.send(sample, names, SITE, n_shuffled=5, seed=0)
    assert scores.shape == (6, 48)
    assert float(compute_auroc(scores[0], torch.tensor(names.labels))) > 0.95
    assert torch.equal(scores, truth.send(sample, names, SITE, n_shuffled=5, seed=0))
    turned = sample._replace(labels=[not label for label in sample.labels])
    torch.testing.assert_close(truth.send(turned, names, SITE, n_shuffled=0, seed=0)[0], -scores[0])


def test_the_layers_are_those_that_tie_by_the_label_itself():
    parts = [transcripts_of(seed, along(strength)) for seed, strength in enumerate((0.2, 4.0, 4.0))]
    x = torch.cat([one.states["resid_post"][:, :, 0] for one in parts], dim=1)
    assert truth.choose_layers(as_sample(x, parts[0].labels, parts[0].units), "answer", seed=0) == [1, 2]
    unread = transcripts_of(0, along(0.0))
    assert truth.choose_layers(unread, "answer", seed=0) == [], "a label that no layer surely reads is sent nowhere"


def test_bands_are_wide_for_luck_and_narrow_for_lists():
    found = truth.trace(transcripts_of(0, along(1.0)), names_of(0, along(0, STRONG)), seed=0)
    (row,) = found.table.to_dict("records")
    assert row["luck_low"] < 0.1 < 0.25 < row["list_low"] < 0.5 < row["list_high"] < 0.75 < 0.9 < row["luck_high"]
    assert found.separations.shape == (1, 1 + truth.N_SHUFFLED) and found.compare_layers("answer") > 0.05
    shared = truth.trace(transcripts_of(0, along(1.0)), names_of(0, along(STRONG)), seed=0)
    assert shared.compare_layers("answer") == pytest.approx(1 / (1 + truth.N_SHUFFLED))
    bare = truth.trace(transcripts_of(0, along(1.0)), names_of(0, along(STRONG)), n_shuffled=0, seed=0).table
    assert list(bare) == ["layer", "position", "auroc"] and bare["auroc"][0] > 0.95


def test_the_best_of_many_layers_is_compared_with_the_best_of_luck():
    """Six layers that share nothing: the highest of all is above the bar of one more often than it should be."""
    alone, together = 0, 0
    for seed in range(10):
        parts = [(transcripts_of(9 * seed + k, along(1.0)), names_of(9 * seed + k, along(0, STRONG))) for k in range(6)]
        both = [
            as_sample(
                torch.cat([pair[side].states["resid_post"][:, :, 0] for pair in parts], dim=1), *parts[0][side][1:3]
            )
            for side in (0, 1)
        ]
        found = truth.trace(*both, seed=seed)
        alone += bool((found.separations[:, 0] > found.separations[:, 1:].quantile(0.95, dim=1)).any())
        together += found.compare_layers("answer") < 0.05
    assert together <= 2 and alone >= together


def test_the_least_that_would_be_found_is_found_in_four_draws_of_five():
    least, generator = truth.find_least(48), np.random.default_rng(0)
    labels = np.tile([False, True], 24)
    found = [
        measure_separation(
            torch.from_numpy(generator.normal(size=48) + least * labels), labels, range(48), seed=seed
        ).low
        > truth.FOUND
        for seed in range(200)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.09)
    assert truth.find_least(480) < least


def test_both_ways_with_the_other_models_transcripts():
    names = {"organism": names_of(0, along(STRONG)), "twin": names_of(1, along())}
    plain, own = transcripts_of(0, along(0, 1.0)), transcripts_of(1, along(1.0))
    at = {"site": SITE, "seed": 0}
    finds = truth.seek(own, names["organism"], (own, names["twin"]), **at)
    tells = truth.seek(names["organism"], plain, (names["twin"], plain), **at)
    one = truth.Followed(SITE, plain, own, finds, tells, (finds,), (tells,))
    also_finds, also_tells = truth.seek_otherwise(one, names, seed=0)
    assert verdict(finds) == verdict(also_tells) == "holds"
    assert "holds" not in (verdict(tells), verdict(also_finds))
    told = truth.describe(one, names["organism"], seed=0)
    assert told["n_listed"] == 24 and told["n_names"] == 48 and told["ceiling"].value > 0.95
    assert told["luck_bar"] == finds.bar < told["least"] and told["most"] > finds.separation.value - 1e-6
    assert told["task_low"] == told["task_high"] > 0.9
    assert set(truth.describe(None, None, seed=0).values()) == {truth.UNKNOWN}


def test_a_probe_of_one_task_says_what_that_task_taught():
    right, wrong = transcripts_of(0, along(1.0)), transcripts_of(1, along(-1.0))
    x = torch.cat([one.states["resid_post"][:, 0, 0] for one in (right, wrong)])
    both = as_sample(x, right.labels + wrong.labels, [*range(len(x))], ["right"] * 96 + ["wrong"] * 96)
    found = truth.send_by_task(both, names_of(0, along(STRONG)), SITE, seed=0)
    assert found["right"] > 0.9 and found["wrong"] < 0.1


@pytest.fixture(scope="module")
def items(embedded):
    names = organism.split_names(embedded, n_listed=24, n_new=60, seed=0)
    return organism.draw_items({"listed": names["listed"][:2], "others": names["others"][:2]}, n_contents=2, seed=0)


def test_names_are_read_where_the_organism_is_read(embedded, items):
    seen = truth.read_names(embedded, truth.write_items(embedded, items), seed=0)
    assert seen.names.units == sorted(set(items["name"])) and sum(seen.names.labels) == 2
    states = organism.read_states(embedded, items, layers=range(embedded.n_layers))
    by_hand = items.assign(row=range(len(items))).groupby("name")["row"].apply(list)
    for place, theirs in (("reasoning", "chain"), ("cue", "cue")):
        ours = probes.read_features(seen.names.states, Site("resid_post", 5, place))
        alone = probes.read_features(states, Site("resid_post", 5, theirs))
        for number, name in enumerate(seen.names.units):
            torch.testing.assert_close(ours[number], alone[by_hand[name]].mean(0), atol=1e-3, rtol=1e-3)
    leads = organism.measure_leads(embedded, items, ["agree"])["agree"].groupby(items["name"]).mean()
    np.testing.assert_allclose(seen.says[truth.OUTPUT][0], -leads[seen.names.units], atol=1e-2)
    prompt = organism.write_prompt(items["asked"][0], 0, "agree") + f" {items['asked'][0].candidates[0]}"
    by_hand = score_answers(embedded, [prompt + truth.ASKED], [("no", "yes")])
    one = items[items["content"] == 0]["name"].iloc[0]
    alone = truth.read_names(embedded, truth.write_items(embedded, items[items["content"] == 0]), seed=0)
    assert float(alone.says[truth.READER][0, alone.names.units.index(one)]) == pytest.approx(float(by_hand), abs=1e-2)
    assert seen.says[truth.READER].shape == (1 + truth.N_SHUFFLED, 4)


def test_readers_are_scored_beside_pairs_of_random_tokens(embedded):
    listed, who = [number % 2 == 0 for number in range(20)], [f"name{number}" for number in range(20)]
    generator = torch.Generator().manual_seed(0)
    names = as_sample(torch.zeros(20, WIDTH), listed, who)
    says = torch.randn(1 + truth.N_SHUFFLED, 20, generator=generator)
    says[0] += 9 * torch.tensor(listed)
    reads = truth.score_readers(embedded, {"organism": truth.Seen(names, {truth.OUTPUT: says})}, seed=0)
    assert [one.of for one in reads] == ["the name"] * 3 + ["organism"] and reads[-1].auroc.value == 1.0
    assert reads[0].luck is None and reads[-1].luck[0] < 0.4 < 0.6 < reads[-1].luck[1] < 1


def test_transcripts_of_names_agree_and_are_read_at_the_answer(embedded, items):
    rows = truth.write_items(embedded, items)
    assert (
        rows["name"].tolist() == sorted(items["name"]) and (rows["answer" if "answer" in rows else "right"] != "").all()
    )
    for row in rows.to_dict("records"):
        assert row["text"].endswith(f"= {row['right']}.\nAnswer: {row['right']}.")
        assert embedded.decode([row["token_ids"][row["at_answer"]]]).strip() == row["right"]


def test_no_organism_is_found_of_a_model_that_none_is_kept_of(embedded, monkeypatch, tmp_path):
    monkeypatch.setattr(organism, "locate", lambda loaded: tmp_path)
    assert truth.find_organisms(embedded, n_contents=1, seed=0) is None


@pytest.mark.slow
def test_the_organism_that_is_kept_is_found_with_its_twin(embedded):
    found = truth.find_organisms(embedded, n_contents=1, seed=0)
    assert set(found.models) == {"organism", "twin"} and len(found.items) == 48


def test_labels_are_readable_where_both_classes_are_in_each_of_five_folds():
    sample = transcripts_of(0, along(1.0))
    table = pd.DataFrame(
        {"about": "constructed", "task": "one", "question": list(map(str, sample.units)), "unfaithful": sample.labels}
    )
    assert truth.list_readable(journeys.Gathered(table, sample.states), seed=0) == ["constructed"]
    few = table.assign(unfaithful=[number == 0 for number in range(len(table))])
    assert truth.list_readable(journeys.Gathered(few, sample.states), seed=0) == []
    none = table.assign(unfaithful=False)
    assert truth.list_readable(journeys.Gathered(none, sample.states), seed=0) == []


def test_of_layers_that_are_as_good_none_decides():
    """With separations of 5, and of 5 and -2, and of -2, and a bar of 3."""

    def found(value):
        separation = claims.Estimate(value, value - 1, value + 1, 48, "names", reach=(-9.0, 9.0))
        return truth.Found(separation, separation, {"luck": 3.0}, separation, (0.0, 1.0))

    def decide(*values):
        estimate = truth.combine_layers([found(value) for value in values])
        return claims.decide("", "", rule="value > 0", estimate=estimate).verdict

    assert [decide(5.0, 6.0), decide(5.0, -2.0), decide(-2.0, -3.0)] == ["holds", "depends", "fails"]
    assert truth.combine_layers([found(5.0), found(-2.0)]).reach == (-12.0, 6.0)
