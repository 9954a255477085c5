"""The hypotheses on planted activations: what was planted is found, noise supports none, test rows choose nothing."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from helpers import claims, probes
from helpers.folds import assign_folds
from helpers.hooks import Captured
from studies.faithfulness import hypotheses
from studies.faithfulness.hypotheses import Draw

N_LAYERS, POSITIONS, WIDTH = 6, ("second_to_last", "last"), 8
STYLES = ("terse", "verbose", "hedged")
pytestmark = pytest.mark.usefixtures("one_thread")


def verdict(name, estimate):
    return claims.decide(name, "", rule=hypotheses.HYPOTHESES[name].rule, estimate=estimate).verdict


def rows(n_questions):
    """Labels and questions: every question has each label twice."""
    labels = np.tile([False, True, False, True], n_questions)
    return labels, np.repeat(np.arange(n_questions), 4).tolist()


def planted(seed, strength, n_questions=40):
    """A sweep over layers, positions and heads in which `strength(component, layer, position, head)` is planted."""
    generator = torch.Generator().manual_seed(seed)
    labels, questions = rows(n_questions)
    signs = torch.from_numpy(labels).float() * 2 - 1
    stream = torch.randn(len(labels), N_LAYERS, len(POSITIONS), WIDTH, generator=generator)
    heads = torch.randn(len(labels), N_LAYERS, len(POSITIONS), 2, WIDTH, generator=generator)
    for layer, (place, position) in product(range(N_LAYERS), enumerate(POSITIONS)):
        stream[:, layer, place, 0] += strength("resid_post", layer, position, None) * signs
        for head in range(2):
            heads[:, layer, place, head, 0] += strength("head_z", layer, position, head) * signs
    axes = {
        "resid_post": ("example", "layer", "position", "d_model"),
        "head_z": ("example", "layer", "position", "head", "d_head"),
    }
    states = Captured(
        {"resid_post": stream, "head_z": heads}, axes, tuple(range(N_LAYERS)), POSITIONS, torch.full((len(labels),), 9)
    )
    return probes.sweep(states, labels, questions, types=None, n_permutations=100, penalties=[10.0, 1000.0], seed=seed)


def answers(sweeps):
    """H1, H2 and H5 as the chapters ask them."""
    sides = hypotheses.name_sides(N_LAYERS, POSITIONS, POSITIONS)
    return {name: hypotheses.contrast(sweeps, *of_name, seed=0) for name, of_name in sides.items()}


@pytest.mark.parametrize(
    ("where", "supported"),
    [
        (lambda component, layer, position, head: layer in (2, 3) and not head, {"H1"}),
        (lambda component, layer, position, head: layer in (4, 5), set()),
        (lambda component, layer, position, head: position == "second_to_last", {"H2"}),
        (lambda component, layer, position, head: head == 1, {"H5"}),
    ],
)
def test_what_was_planted_is_found(where, supported):
    sweeps = [planted(seed, lambda *site: 0.9 * where(*site)) for seed in range(3)]
    found = {name: verdict(name, estimate) for name, estimate in answers(sweeps).items()}
    assert {name for name in found if found[name] == "holds"} == supported, found
    if not supported:  # late layers read it and middle ones do not
        assert found["H1"] == "fails"


def test_the_leading_site_is_the_planted_one():
    sweep = planted(0, lambda component, layer, position, head: 2.0 * (layer == 4 and position == "last" and not head))
    assert sweep.leading().layer == 4 and sweep.leading().position == "last"
    tied = planted(0, lambda component, layer, position, head: 5.0 * (layer in (1, 4)) + layer / 10)
    assert tied.auroc[..., 0].mean(1).max() > 0.99 and tied.leading().layer == 1, "the first of those that tie"
    assert tied.leading([site for site in tied.sites if site.layer > 1]).layer == 4


def test_at_a_ceiling_nothing_can_be_decided():
    """14 questions that every site reads without error: no comparison, and no failure."""
    found = answers([planted(0, lambda *site: 9.0, n_questions=14)])
    assert {verdict(name, estimate) for name, estimate in found.items()} == {"out of reach"}
    assert all((estimate.n, estimate.of) == (14, "questions") for estimate in found.values())


@pytest.mark.slow
def test_noise_supports_nothing():
    supported, travelled = {name: 0 for name in ("H1", "H2", "H3", "H5")}, 0
    for seed in range(40):
        sweep = planted(seed, lambda *site: 0.0, n_questions=20)
        found = answers([sweep])
        noise = in_styles(seed, lambda style: torch.zeros(WIDTH))
        across = hypotheses.measure_transfer([noise], seed=seed)
        found["H3"] = gap([[noise]], seed=seed)
        travelled += any(area.low > 0.6 for area in across.pairs.values())
        for name, estimate in found.items():
            supported[name] += verdict(name, estimate) == "holds"
    assert max(supported.values()) <= 2 and travelled <= 2, (supported, travelled)  # at most 5 % of the seeds


@pytest.mark.slow
def test_a_journey_of_noise_to_a_strong_label_arrives_by_luck_and_does_not_count():
    by_area, supported, pair = 0, 0, (STYLES[0], STYLES[-1])
    for seed in range(40):
        draw = in_styles(seed, lambda style: 2.0 * along(0) if style == STYLES[-1] else torch.zeros(WIDTH))
        area = hypotheses.measure_transfer([draw], seed=seed).pairs[pair]
        bar = hypotheses.find_bar([draw], *pair, seed=seed)
        by_area += area.low > 0.6
        supported += area.low > max(0.6, bar)
    assert supported <= 2 < 5 < by_area, (supported, by_area)


def test_several_draws_are_more_certain():
    def strength(component, layer, position, head):
        return 0.4 * (layer in (2, 3))

    one, three = (answers([planted(seed, strength) for seed in range(n)])["H1"] for n in (1, 3))
    assert one is not None and three is not None
    assert three.n == 3 * one.n
    assert three.high - three.low < one.high - one.low


def in_styles(seed, direction, n_questions=30):
    """Every transcript in every style; `direction(style)` tells the label."""
    generator = torch.Generator().manual_seed(seed)
    labels, questions = rows(n_questions)
    parts = []
    for style in STYLES:
        x = torch.randn(len(labels), WIDTH, generator=generator)
        x += (torch.from_numpy(labels).float() * 2 - 1)[:, None] * direction(style)
        parts.append(x)
    domains = [style for style in STYLES for _ in labels]
    return Draw(torch.cat(parts), np.tile(labels, len(STYLES)), questions * len(STYLES), domains)


def along(*axes):
    found = torch.zeros(WIDTH)
    found[list(axes)] = 2.0
    return found


def gap(layers, seed=0):
    found = hypotheses.compare_tasks(layers, seed=seed)
    return found.measure_gap(found.choose_layers())


def own_direction(strength=1.0):
    return lambda style: strength * along(STYLES.index(style))


def test_tasks_that_share_a_direction_transfer_and_others_do_not():
    shared, own = in_styles(0, lambda style: along(0)), in_styles(0, own_direction())
    assert verdict("H3", gap([[shared]])) == "fails"
    found = gap([[own]])
    assert verdict("H3", found) == "holds" and (found.n, found.of) == (len(STYLES), "tasks")
    assert found.value == pytest.approx(0.5, abs=0.08)
    within = hypotheses.compare_tasks([[own]], seed=0).within.mean()
    assert found.reach == pytest.approx((within - 1, max(within - 0.5, found.value)))
    weak = hypotheses.AcrossTasks(STYLES, 0.5 + 0.08 * np.eye(len(STYLES))[None], np.full((1, len(STYLES)), 0.5))
    assert verdict("H3", weak.measure_gap([0] * len(STYLES))) == "out of reach"  # as there is little to lose
    mixed = in_styles(0, lambda style: 0.5 * along(0, *([] if style == STYLES[-1] else [1 + STYLES.index(style)])))
    assert verdict("H3", gap([[mixed]])) == "depends"  # on the task
    found = hypotheses.measure_transfer([own], seed=0)
    for (trained, tested), area in found.pairs.items():
        assert area.value == pytest.approx(1.0 if trained == tested else 0.5, abs=0.15)


def test_where_layers_tie_the_first_is_read_and_all_are_told():
    noise, shared, own = (
        [in_styles(0, direction)]
        for direction in (lambda style: torch.zeros(WIDTH), lambda style: along(0, 1), own_direction(2))
    )
    for layers, verdict_of in (([noise, shared, own], "fails"), ([noise, own, shared], "holds")):
        found = hypotheses.compare_tasks(layers, seed=0)
        assert found.find_tied() == [1, 2] and found.choose_layers() == [1] * len(STYLES)
        assert verdict("H3", gap(layers)) == verdict_of
    assert gap([noise]) is None  # nothing is read, so that nothing can be lost


def test_the_layer_of_a_task_is_chosen_on_the_others():
    least, most = np.full(len(STYLES), 0.8), np.full(len(STYLES), 0.85)
    least[0] = 1.0  # the first layer is best for the first task alone
    areas = np.stack([np.diag(least), np.diag(most)])
    found = hypotheses.AcrossTasks(STYLES, areas, np.zeros((2, len(STYLES))))
    assert found.choose_layers() == [1, *[0] * (len(STYLES) - 1)]


def losing(lost):
    """Tasks that are read without error within, with the loss of each pair, a row for each that is trained on."""
    n = len(lost)
    return hypotheses.AcrossTasks(tuple(map(str, range(n))), (1 - lost * (1 - np.eye(n)))[None], np.ones((1, n)))


@pytest.mark.parametrize(("of_trained", "of_tested", "of_pairs"), [(0.1, 0, 0.02), (0, 0.1, 0.02), (0.02, 0.02, 0.1)])
def test_a_task_counts_as_what_is_tested_and_as_what_taught(of_trained, of_tested, of_pairs):
    """Of tasks drawn from many the interval holds the mean of all, also where what differs is how well they teach."""
    generator, decided, covered = np.random.default_rng(0), [], 0
    for _ in range(300):
        spread = [
            generator.normal(0, sd, size) for sd, size in ((of_trained, (7, 1)), (of_tested, 7), (of_pairs, (7, 7)))
        ]
        estimate = losing(0.1 + sum(spread)).measure_gap([0] * 7)
        decided.append(verdict("H3", estimate))
        covered += estimate.low <= 0.1 <= estimate.high
    assert covered >= 0.92 * 300
    assert max(decided.count("holds"), decided.count("fails")) <= 0.05 * 300


def test_the_mean_over_pairs_is_left_as_it_is_and_few_tasks_decide_nothing():
    lost = np.random.default_rng(0).random((4, 4)) / 2
    off = ~np.eye(4, dtype=bool)
    assert losing(lost).measure_gap([0] * 4).value == pytest.approx(lost[off].mean())
    assert losing(lost[:2, :2]).measure_gap([0] * 2) is None


def test_probes_of_the_same_family_need_not_count():
    families = ["a", "a", "b", "b", "c", "c"]
    same = np.equal.outer(families, families)
    found = losing(np.where(same, 0.0, 0.3))
    assert verdict("H3", found.measure_gap([0] * 6, families=families)) == "holds"
    assert found.measure_gap([0] * 6, families=families).value == pytest.approx(0.3)
    assert found.measure_gap([0] * 6).value == pytest.approx(0.3 * 24 / 30)
    assert found.measure_gap([0] * 6, families=["a"] * 3 + ["b"] * 3) is None


def test_shuffled_labels_set_a_bar_that_is_high_where_all_differ_along_one_line():
    def target(strength):
        draw = in_styles(0, lambda style: strength * along(0) if style == STYLES[-1] else torch.zeros(WIDTH))
        return hypotheses.find_bar([draw], STYLES[0], STYLES[-1], seed=0)

    assert 0.5 < target(0.0) < 0.62 < 0.9 < target(8.0)
    draw = in_styles(0, lambda style: along(0))
    together = [
        draw._replace(blocks=[(one, bool(label)) for one, label in zip(draw.questions, draw.labels, strict=True)])
    ]
    assert hypotheses.find_bar(together, *STYLES[:2], seed=0) > hypotheses.find_bar([draw], *STYLES[:2], seed=0)


def test_a_probe_of_all_other_tasks_finds_what_they_share():
    """Each task's label lies along an axis of its own and, weakly, along one that all share."""
    layers = [[in_styles(0, lambda style: 0.3 * along(1 + STYLES.index(style)) + 0.5 * along(0), n_questions=60)]]
    found = hypotheses.compare_tasks(layers, seed=0)
    one, together = (found.measure_gap([0] * len(STYLES), alone=alone).value for alone in (True, False))
    assert together < one
    assert found.across.mean() < found.left_out.mean() < found.within.mean()


def test_areas_are_those_of_the_figure_and_of_the_claim():
    """One estimator: what `measure_transfer` shows for a pair, `compare_tasks` averages."""
    draw = in_styles(0, own_direction(0.3))
    pairs = {pair: area.value for pair, area in hypotheses.measure_transfer([draw], seed=0).pairs.items()}
    areas = hypotheses.measure_areas(draw, {style: np.array(draw.domains) == style for style in STYLES}, seed=0)
    assert areas == pytest.approx(pairs, abs=1e-6)
    found = hypotheses.compare_tasks([[draw]], seed=0)
    assert found.within[0].tolist() == pytest.approx([pairs[style, style] for style in found.tasks], abs=1e-6)


def test_domains_without_both_classes_are_left_out():
    draw = in_styles(0, lambda style: along(0))
    first, second, *_ = STYLES
    labels = [
        label and not (domain == second and question not in draw.questions[:2])
        for label, domain, question in zip(draw.labels, draw.domains, draw.questions, strict=True)
    ]
    (kept,) = hypotheses.drop_unfilled([draw._replace(labels=labels)], seed=0)
    assert set(kept.domains) == set(STYLES) - {second}
    assert len(kept.labels) == len(kept.activations) == len(kept.questions) == len(kept.domains)
    only = [label and domain == first for label, domain in zip(draw.labels, draw.domains, strict=True)]
    assert hypotheses.drop_unfilled([draw._replace(labels=only)], seed=0) == []
    assert hypotheses.drop_unfilled([], seed=0) == []
    few = [number for number, question in enumerate(draw.questions) if question in draw.questions[:4]]
    assert hypotheses.drop_unfilled([hypotheses._restricted(draw, set(STYLES))], seed=0) != []
    some = Draw(draw.activations[few], *([values[row] for row in few] for values in draw[1:4]))
    assert hypotheses.drop_unfilled([some], seed=0) == []


def test_what_is_tested_on_chooses_no_site_and_no_penalty():
    """Labels of one fold are turned round: what is scored there stays what it was. Weak ones leave the choice open."""
    options = {"types": None, "n_permutations": 0, "penalties": [1.0, 100.0, 10000.0], "seed": 0}
    moved = 0
    for seed in range(3):
        draw = in_styles(seed, lambda style: along(0) / 8)
        folds = assign_folds(draw.labels, draw.questions, seed=seed)
        turned = np.where(folds.numpy() == 0, ~np.array(draw.labels), draw.labels).tolist()
        generator = torch.Generator().manual_seed(seed)
        stream = torch.randn(len(folds), 6, 1, WIDTH, generator=generator) + draw.activations[:, None, None]
        axes = {"resid_post": ("example", "layer", "position", "d_model")}
        states = Captured({"resid_post": stream}, axes, tuple(range(6)), ("last",), torch.full((len(folds),), 9))
        before, after = (
            probes.sweep(states, labels, draw.questions, folds=folds.tolist(), **options)
            for labels in (draw.labels, turned)
        )
        held = folds == 0
        torch.testing.assert_close(before.scores[:, held], after.scores[:, held])
        assert before.best().sites[0] == after.best().sites[0]
        torch.testing.assert_close(before.best().scores[held], after.best().scores[held])
        moved += before.best().sites[1:] != after.best().sites[1:]
    assert moved  # what was turned does count for the other folds


def test_bad_input_is_refused(refused):
    sweep = planted(0, lambda *site: 0.0)
    few = replace(sweep, auroc=sweep.auroc[..., :50])
    with refused("100 permutations"):
        hypotheses.contrast([few], lambda site: True, lambda site: True, seed=0)
    with refused("2 layers", "at least three"):
        hypotheses.split_thirds(2)
    draw = in_styles(0, lambda style: along(0))
    with refused("one domain", "at least two"):
        hypotheses.measure_transfer([draw._replace(domains=["one"] * len(draw.labels))], seed=0)
