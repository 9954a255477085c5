"""Knock-outs are those of patching, each measured once, and what claims are decided by finds what was planted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import attribution, claims, hooks, patching
from studies.ioi import knock_outs, roles, templates

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    """Random tokens as prompts of two forms."""
    generator = np.random.default_rng(0)
    rows = [tuple(generator.choice(200, 9, replace=False).tolist()) for _ in range(12)]
    rows = [(*row[:5], row[2], *row[5:]) for row in rows]  # the name at 2 comes again at 5
    places = {"IO": 1, "S1": 2, "S1+1": 3, "S2": 5, "END": 9}
    return templates.IOI(
        tuple(rows),
        tuple(i % 2 for i in range(12)),
        ("ABBA",) * 12,
        tuple(row[1] for row in rows),
        tuple(row[2] for row in rows),
        tuple((200 + i, 220 + i, 235 + i) for i in range(12)),
        {name: (place,) * 12 for name, place in places.items()},
    )


@pytest.fixture
def out(load_tiny, data):
    return knock_outs.KnockOuts(load_tiny("llama"), data, data, [(0, 1), (1, 2)], n_sets=3, seed=0)


def test_without_is_the_ablation_and_only_that_of_all_others(out, data):
    heads = [(0, 1), (1, 2)]
    others = [(layer, head) for layer in range(2) for head in range(4) if (layer, head) not in heads]
    for found, gone in ((out.without([heads])[0], heads), (out.only([heads])[0], others)):
        expected = patching.ablate(
            out.loaded,
            data.prompts,
            [[patching.Node("head_z", *head) for head in gone]],
            reference=data.corrupted("p_ABC"),
            groups=data.forms,
            answers=data.answers,
        ).values[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    whole = patching.patch_sets(out.loaded, data.prompts, data.prompts, [[]], answers=data.answers).base
    np.testing.assert_allclose(out.without([[]])[0], whole, atol=1e-4)


def test_a_set_is_measured_once_in_whatever_order_it_is_named(out, monkeypatch):
    first = out.without([[(0, 1), (1, 2)], [(0, 0)]])
    monkeypatch.setattr(patching, "ablate", None)
    again = out.without([[(0, 0)], [(1, 2), (0, 1)]])
    np.testing.assert_array_equal(again, first[::-1])


def test_controls_hold_no_head_of_the_circuit(out):
    for heads in out.draw_controls([(0, 1)]).sets:
        assert not {*heads} & {*out.circuit}


def test_a_ratio_is_that_of_means_and_its_interval_widens_with_the_wholes_spread(out, data):
    whole = np.array([2.0, 2.1] * 6)  # by template, of which there are two
    assert out.average_ratio(0.8 * whole, whole).value == pytest.approx(0.8)
    exact, loose = out.average_ratio(0.8 * whole, whole), out.average_ratio(np.full(12, 1.64), whole)
    assert exact.high - exact.low == pytest.approx(0, abs=1e-9)
    assert loose.value == pytest.approx(0.8) and loose.high - loose.low > 0.4
    assert out.average_ratio(whole, whole - 2.0) is None, "the whole may be zero"


def test_the_extreme_is_the_largest_mean(out):
    effects = np.array([[1.0] * 12, [3.0, 1.0] * 6, [0.0] * 12])
    assert out.find_extreme(effects) == (1, 2.0)


def test_what_others_take_over_is_judged_on_the_other_half_of_the_templates():
    before, rise = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    rise[0, 0] = torch.tensor([2.0, 2.0, 2.0, 2.0])  # rises and writes towards: counts
    rise[0, 1] = 1.0
    before[0, 1] = -5.0  # writes against after as before
    rise[0, 2] = torch.tensor([4.0, -4.0, 4.0, -4.0])  # rises on even templates, is judged on these for odd ones
    rise[0, 3] = 9.0  # set apart
    takers = knock_outs.find_takers(before, rise, [0, 1, 2, 3], [(0, 3)])
    assert (rise * takers).sum((0, 1)).tolist() == [2.0, -2.0, 2.0, -2.0]


def found_with(**by_role):
    heads = dict.fromkeys(roles.ROLES, ()) | {name.replace("_", " "): some for name, some in by_role.items()}
    effect = torch.arange(8.0).view(2, 4, 1).expand(2, 4, 6) / 8
    stages = {stage: roles.Stage(-effect, 0.0, 0.01) for stage in roles.RECEIVERS}
    return roles.Search(torch.ones(6), stages, {}, {}, heads)


def test_heads_are_ranked_by_effect_and_grow_in_that_order():
    found = found_with(name_mover=((1, 1), (0, 1)), negative=((1, 3),), induction=((0, 1),))
    ranked = knock_outs.rank_heads(found)
    assert ranked == [(1, 3), (1, 1), (0, 1)]
    sizes, sets = knock_outs.grow(ranked)
    assert sizes == [1, 2, 3] and sets == [ranked[:1], ranked[:2], ranked]
    assert knock_outs.grow([]) == ([], [])
    assert sorted(knock_outs.shuffle(ranked, 1)) == sorted(ranked)


def test_an_addition_is_to_the_circuit_without_the_rest_of_the_role():
    found = found_with(name_mover=((1, 1), (0, 1)), negative=((1, 3),))
    rows = {head: (with_it, without_it) for _, head, with_it, without_it in knock_outs.list_additions(found)}
    assert rows[1, 1] == ([(1, 1), (1, 3)], [(1, 3)])
    assert (1, 3) not in rows, "a negative head is there to take away"
    worth = {(0, 1): 1.0, (1, 1): 4.0, (1, 3): -2.0}
    fake = SimpleNamespace(only=lambda sets: np.array([[sum(worth[head] for head in heads)] for heads in sets]))
    role_of, added = knock_outs.measure_additions(fake, found)
    assert dict(zip((head for _, head in role_of), added[:, 0].tolist(), strict=True)) == {(1, 1): 4.0, (0, 1): 1.0}


def test_the_plan_holds_every_set_that_the_tests_keep():
    found = found_with(name_mover=((1, 1), (0, 1)), negative=((1, 3),), induction=((0, 2),))
    subsets = knock_outs.list_subsets(found, seed=0)
    assert next(iter(subsets)) == "the whole circuit" and "random half 2" in subsets
    assert all(subsets.values()), "with nothing knocked out the two differ by their faithfulness"
    controls = SimpleNamespace(sets=(((0, 0), (1, 0), (1, 2), (0, 3)),))
    plan = {frozenset(heads) for heads in knock_outs.plan_tests(found, controls, subsets, seed=0)}
    circuit = list(found.heads)
    wanted = [circuit, *controls.sets, *knock_outs.grow(knock_outs.rank_heads(found))[1]]
    wanted += [knock_outs.take_away(circuit, some) for some in subsets.values()]
    wanted += [kept for row in knock_outs.list_additions(found) for kept in row[2:]]
    assert {frozenset(heads) for heads in wanted} <= plan


def test_scores_are_compared_sequence_by_sequence():
    score = torch.zeros(4, 2, 2)
    score[:, 0, 0] = torch.tensor([0.5, 0.7, 0.9, 1.1])
    score[:, 0, 1] = score[:, 0, 0] - 0.2
    score[:, 1, 1] = 2.0
    lead = knock_outs.compare_with_rivals(score, [(0, 0)], seed=0)[0, 0].lead
    assert lead.value == pytest.approx(0.2) and lead.low > 0.19, "a better head of another layer is none"
    both = knock_outs.compare_with_rivals(score, [(0, 0), (1, 0)], seed=0)
    assert both[1, 0].strongest == pytest.approx(2.0) and both[1, 0].lead.high < 0 < both[0, 0].lead.low
    assert knock_outs.compare_with_rivals(score, [(0, 0)], avoid=[(0, 1)], seed=0) == {}
    assert knock_outs.add_up(score.movedim(0, -1), []).tolist() == [0.0] * 4


# Claims on planted data, and on noise


def verdict(estimate):
    return claims.decide("a", "…", rule="value > 0", estimate=estimate).verdict


def react(data, *, apart, spread, faithful_gap=0.9, seed=0):
    """Model and circuit, apart by a constant, of which some knock-outs move one more than the other."""
    noise = np.random.default_rng(seed)
    whole = noise.normal(4, 0.3, size=len(data.prompts))
    falls = noise.normal(1, 0.3, size=(len(apart), len(whole)))
    model = np.vstack([whole, whole - falls])
    off = np.vstack([np.zeros_like(whole), np.array(apart)[:, None] + spread * noise.normal(size=falls.shape)])
    return whole, model, model - faithful_gap + off


@pytest.fixture
def many(load_tiny, data):
    """As `out`, over prompts of twelve templates."""
    data = data.first(12)
    object.__setattr__(data, "template", tuple(range(12)))
    return knock_outs.KnockOuts(load_tiny("llama"), data, data, [(0, 1)], n_sets=3, seed=0)


@pytest.mark.parametrize(
    ("apart", "spread", "expected"),
    [((0, 0, 0), 0.1, "holds"), ((0, -1.5, 0), 0.1, "fails"), ((0.3, 0, 0), 0.5, "depends")],
)
def test_completeness_is_about_what_knock_outs_do_and_not_about_faithfulness(many, apart, spread, expected):
    whole, model, circuit = react(many.data, apart=apart, spread=spread)
    moved = knock_outs.compare_reactions(model, circuit)
    assert verdict(knock_outs.bound_completeness(many, moved, whole)) == expected
    assert (moved.mean(1) >= 0).all()
    worst, gap = many.find_extreme(moved)
    if expected == "fails":
        assert worst == 1 and gap == pytest.approx(1.5, abs=0.2)


def test_a_circuit_that_differs_by_chance_is_rarely_called_complete_or_not(many):
    """Reactions of which each is a tenth off, at the bound: neither is supported in more than one of twenty."""
    found = []
    for seed in range(60):
        whole, model, circuit = react(many.data, apart=(-0.4,) * 6, spread=0.5, seed=seed)
        moved = knock_outs.compare_reactions(model, circuit)
        found.append(verdict(knock_outs.bound_completeness(many, moved, whole)))
    assert found.count("holds") <= 3 and found.count("fails") <= 6


def turn(out, before, own, controls):
    return knock_outs.bound_turn(out.compare(np.vstack([own, *controls])), out.average(-before))


@pytest.mark.parametrize(
    ("before", "own", "control", "expected"),
    [
        (-0.8, 0.7, -0.5, "holds"),
        (-0.8, -0.3, -0.5, "fails"),
        (-0.8, 0.4, 1.2, "fails"),
        (-0.8, 0.1, -0.5, "depends"),
        (0.5, 0.7, -0.5, "fails"),
        (-0.1, 0.7, -0.5, "depends"),
    ],
)
def test_negative_heads_turn_round_where_they_come_from_below_and_end_above_zero_and_their_controls(
    many, before, own, control, expected
):
    noise = np.random.default_rng(0).normal(scale=0.3, size=(5, 12))
    assert verdict(turn(many, before + noise[4], own + noise[0], control + noise[1:4])) == expected
    assert turn(many, before + noise[4], own + noise[0], []) is None


def test_heads_that_write_noise_rarely_turn_round(many):
    noise = np.random.default_rng(0).normal(size=(200, 6, 12))
    held = [verdict(turn(many, before, own, controls)) == "holds" for before, own, *controls in noise]
    assert np.mean(held) <= 0.05


def test_what_is_written_of_two_names_is_against_names_that_are_in_no_prompt(embedded):
    drawn = templates.draw_ioi(embedded, n_prompts=3, seed=0)
    parts = attribution.attribute_logits(embedded, drawn.prompts, drawn.answers)
    found, absent = knock_outs.split_names(embedded, drawn, parts), templates.list_absent(embedded, drawn)
    torch.testing.assert_close(found["IO"] - found["S"], parts.heads)
    each = [list(zip(drawn.subject, some, strict=True)) for some in zip(*(names[:3] for names in absent), strict=True)]
    by_hand = [attribution.attribute_logits(embedded, drawn.prompts, pairs).heads for pairs in each]
    few = [names[:3] for names in absent]
    pairs = [(s, io) for io, s in drawn.answers]
    against = attribution.attribute_logits(embedded, drawn.prompts, pairs, against=few).heads
    torch.testing.assert_close(against, torch.stack(by_hand).mean(0), atol=1e-3, rtol=1e-3)


def test_rivals_are_the_other_heads_of_the_layer_the_best_first():
    score = torch.tensor([[0.1, 0.4, 0.2, 0.3], [9.0, 9.0, 9.0, 9.0]])
    assert knock_outs.rank_rivals(score, 0, [(0, 1)]) == [(0, 3), (0, 2), (0, 0)]


def test_names_are_read_against_those_that_are_in_no_prompt(embedded):
    drawn = templates.draw_ioi(embedded, n_prompts=3, seed=0)
    found = knock_outs.read_names(embedded, drawn)
    logits = hooks.capture(embedded, drawn.prompts, "logits")["logits"][:, 0]
    for row, (answers, absent) in enumerate(zip(drawn.answers, templates.list_absent(embedded, drawn), strict=True)):
        for name, token in zip(("IO", "S"), answers, strict=True):
            expected = logits[row, token] - logits[row, absent].mean()
            assert float(found[name][row]) == pytest.approx(float(expected), abs=1e-4)
