"""Pushes: a direction that a model's answers hang on turns them, another does not, and rules know which is which."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import claims
from studies.faithfulness import organism, pushes
from studies.faithfulness.pushes import CONTROLS, MEANS, PROBE, UNEMBEDDING, Cases, Reaction, Trial

RULE = "value > 0.2"
DOSES = (1.0, 2.0, 4.0, 8.0)
ONE, OTHER = 40, 41
pytestmark = pytest.mark.usefixtures("one_thread")


def decide(estimate):
    return claims.decide("id", "", rule=RULE, estimate=estimate).verdict


@pytest.fixture
def llama(load_tiny):
    return load_tiny("llama")


@pytest.fixture
def cases(llama):
    """Prompts in pairs: of each pair one is answered by one token, the other by the other one."""
    generator = np.random.default_rng(0)
    rows, leads = [], []
    for _ in range(400):
        rows.append(generator.integers(5, 290, size=8).tolist())
    logits = pushes.hooks.score_next_tokens(llama, rows, torch.tensor([[ONE, OTHER]] * len(rows)))
    leads = logits[:, 0] - logits[:, 1]
    first, second = ((leads * sign > 0).nonzero()[:16, 0].tolist() for sign in (1, -1))
    order = [row for pair in zip(first, second, strict=True) for row in pair]
    answers = torch.tensor([[ONE, OTHER], [OTHER, ONE]] * 16)
    signs, spans = torch.tensor([1.0, -1.0] * 16), {"cue": (1,) * 32, "last three": (3,) * 32}
    return Cases(tuple(rows[row] for row in order), answers, signs, tuple(range(16)), spans)


def unit(vector):
    return (vector / vector.norm())[None]


def given(llama, *, tested, positive, control=None, away=None):
    """Directions by name, controls at random but one, or all across a direction."""
    generator = torch.Generator().manual_seed(0)
    width = llama.config.hidden_size
    found = {PROBE: tested, MEANS: positive}
    for name in CONTROLS:
        some = torch.randn(10, width, generator=generator)
        some -= 0 if away is None else some @ away.T @ away
        found[name] = some / some.norm(dim=1, keepdim=True)
    if control is not None:
        found["random"][3] = control[0]
    return found


def columns(llama):
    """What turns one answer into the other after the last layer, and what does nothing to either."""
    weight = llama.model.get_output_embeddings().weight.detach().float()
    scale = llama.model.base_model.norm.weight.detach().float()
    across = (weight[OTHER] - weight[ONE]) * scale
    other = torch.randn(len(across), generator=torch.Generator().manual_seed(5))
    return unit(across), unit(other - across * (other @ across) / (across @ across))


def tried(llama, cases, directions, positive=MEANS, **more):
    options = {"length": 6.0, "layer": llama.n_layers - 1, "place": "cue", "positive": positive, "n_passages": 2}
    return pushes.run_trial(llama, cases, directions, **options, doses=DOSES, **more)


def test_what_answers_hang_on_turns_them(llama, cases):
    causal, _ = columns(llama)
    trial = tried(llama, cases, given(llama, tested=causal, positive=causal, away=causal))
    margin = trial.compare(PROBE)
    assert trial.powered and margin.turned.value > 0.5 > margin.control
    assert decide(margin.estimate) == "holds"
    assert margin.estimate.reach == (-margin.control, 1 - margin.control)
    fall = trial.reactions[PROBE].fall[0].mean(1)
    assert (fall.diff() > 0).all() and fall[0] > 0
    assert (trial.reactions[UNEMBEDDING].turned.float().mean() > 0.3) and UNEMBEDDING in trial.price


def test_what_they_do_not_hang_on_turns_none(llama, cases):
    causal, idle = columns(llama)
    margin = tried(llama, cases, given(llama, tested=idle, positive=causal)).compare(PROBE)
    assert margin.turned.value == 0
    assert decide(margin.estimate) == "fails"


def test_a_control_can_win(llama, cases):
    causal, idle = columns(llama)
    margin = tried(llama, cases, given(llama, tested=idle, positive=causal, control=causal)).compare(PROBE)
    assert margin.strongest == ("random", "random") and margin.control > 0.5
    assert margin.estimate.high < 0 and decide(margin.estimate) == "fails"
    same = tried(llama, cases, given(llama, tested=causal, positive=causal, control=causal)).compare(PROBE)
    assert same.estimate.value == 0


def test_without_a_positive_control_that_turns_half_nothing_is_decided(llama, cases):
    causal, idle = columns(llama)
    some = given(llama, tested=idle, positive=idle, away=causal)
    trial = tried(llama, cases, some)
    assert not trial.powered
    assert decide(trial.compare(PROBE).estimate) == "out of reach"
    known = tried(llama, cases, some, powered=True)  # by something else
    assert decide(known.compare(PROBE).estimate) == "fails" and known.chosen == trial.chosen


def test_a_push_to_one_answer_whatever_was_asked_turns_no_pair(llama, cases):
    causal, _ = columns(llama)
    same = replace(cases, signs=torch.ones(len(cases.prompts)))
    reaction = pushes.push(
        llama, same, {PROBE: 40 * causal[:, None].expand(1, 32, -1)}, layer=llama.n_layers - 1, place="cue", doses=[1.0]
    )[PROBE]
    assert not reaction.turned.any()
    alone = Cases(same.prompts, same.answers, same.signs, tuple(range(32)), same.spans)
    options = {"layer": llama.n_layers - 1, "place": "cue", "doses": [1.0]}
    assert pushes.push(llama, alone, {PROBE: 40 * causal[:, None].expand(1, 32, -1)}, **options)[
        PROBE
    ].turned.float().mean() == pytest.approx(0.5)


def test_a_push_at_several_tokens_in_several_layers_is_each_alone(llama, cases):
    vectors = torch.randn(2, 32, llama.config.hidden_size, generator=torch.Generator().manual_seed(1))
    options = {"place": "last three", "doses": [1.0, 2.0]}
    both = pushes.push(llama, cases, {PROBE: vectors}, layer=[0, 1], **options)[PROBE]
    for layer in (0, 1):
        (one,) = pushes.push(llama, cases, {PROBE: vectors[layer : layer + 1]}, layer=layer, **options).values()
        torch.testing.assert_close(both.fall[layer], one.fall[0], atol=1e-4, rtol=1e-4)
    assert (both.fall[0] - both.fall[1]).abs().max() > 0.01


def test_text_breaks_under_large_pushes_and_not_under_none(llama, cases):
    aimed = {PROBE: torch.randn(1, 32, llama.config.hidden_size, generator=torch.Generator().manual_seed(2))}
    options = {"layer": 0, "place": "last three", "doses": [0.0, 1e3]}
    price = pushes.measure_price(llama, cases, aimed, **options, n_passages=3)[PROBE]
    assert price.shape == (2, 3) and price[0].abs().max() < 1e-5 < price[1].abs().min()
    kept = torch.tensor([[[1.0, 0.9], [0.6, 0.2]]])
    reaction = Reaction(kept > 0, kept, kept)
    dear = torch.tensor([[0.0], [0.0]])
    assert pushes.find_whole(reaction, dear).tolist() == [True, False]
    assert pushes.find_whole(reaction, dear + 0.7).tolist() == [False, False]


def planted(seed, *, n=24, chances=None):
    """A trial in which every direction turns each case with the same chance, or with its own."""
    generator = torch.Generator().manual_seed(seed)
    chances = chances or {}

    def react(name, count):
        difficulty = torch.rand(len(DOSES), n, generator=generator) * 0.6
        turned = torch.rand(count, len(DOSES), n, generator=generator) < chances.get(name, difficulty)
        return Reaction(turned, turned.float(), torch.ones(turned.shape))

    answers = torch.zeros(2 * n, 2, dtype=torch.long)
    cases = Cases(([1, 2],) * 2 * n, answers, torch.ones(2 * n), tuple(range(n)), {"cue": (1,) * 2 * n})
    reactions, controls = {PROBE: react(PROBE, 1)}, {name: react(name, 10) for name in CONTROLS}
    controls = {name: Reaction(*(part[:, :2] for part in each)) for name, each in controls.items()}
    whole = torch.ones(len(DOSES), dtype=torch.bool)
    price = {PROBE: torch.zeros(len(DOSES), 1)}
    return Trial(cases, DOSES, reactions, controls, price, whole, (0, 1), True, "questions")


def test_noise_supports_at_most_one_claim_in_twenty():
    verdicts = [decide(planted(seed).compare(PROBE).estimate) for seed in range(200)]
    assert verdicts.count("holds") <= 10
    assert verdicts.count("fails") + verdicts.count("depends") + verdicts.count("holds") == 200


def test_the_strongest_control_is_chosen_where_it_is_not_reported():
    """Controls that turn a case at random: the largest of thirty would flatter itself by far more on its own half."""
    found = [planted(seed, chances=dict.fromkeys([PROBE, *CONTROLS], 0.3)).compare(PROBE) for seed in range(100)]
    assert np.mean([margin.control for margin in found]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([margin.estimate.value for margin in found]) == pytest.approx(0, abs=0.03)


def test_what_turns_while_the_text_is_broken_does_not_count():
    trial = planted(0, chances={PROBE: 0.9} | dict.fromkeys(CONTROLS, 0.1))
    assert decide(trial.compare(PROBE).estimate) == "holds"
    broken = replace(trial, price={PROBE: torch.full((len(DOSES), 1), 9.0)})
    assert broken.compare(PROBE).turned.value == 0 and decide(broken.compare(PROBE).estimate) == "fails"


def test_of_controls_that_turn_as_many_the_one_with_the_larger_fall_is_chosen():
    trial = planted(0, chances=dict.fromkeys([PROBE, *CONTROLS], 0.0))
    trial.controls["random, same covariance"].fall[3] = 5.0
    margin = trial.compare(PROBE)
    assert margin.strongest == ("random, same covariance",) * 2 and margin.as_many == "30 of 30"


def test_each_half_is_read_at_its_own_dose_also_when_a_push_is_repeated(llama, cases):
    causal, _ = columns(llama)
    some = given(llama, tested=causal, positive=causal, away=causal)
    trial = replace(tried(llama, cases, some), chosen=(0, len(DOSES) - 1))
    turned = trial.list_turned(PROBE)
    weak, *_, strong = trial.reactions[PROBE].turned[0]
    assert turned.tolist() == torch.where(torch.from_numpy(trial.halves) == 0, weak, strong).tolist()
    assert weak.sum() < strong.sum()
    aimed = pushes.aim(llama, cases, {PROBE: some[PROBE]}, length=6.0)
    again = trial.repeat(llama, cases, {PROBE: aimed[PROBE]}, layer=llama.n_layers - 1, place="cue")
    assert list(again[PROBE].values()) == turned.tolist()


def test_a_difference_of_shares_covers_the_truth():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        one, other = generator.random(12) < 0.8, generator.random(12) < 0.3
        estimate = pushes.subtract_shares(one, other, of="names")
        assert estimate.low <= estimate.value <= estimate.high
        covered += estimate.low <= 0.5 <= estimate.high
    assert covered >= 0.93 * 400
    assert pushes.subtract_shares([0] * 12, [0] * 12, of="names").high > 0.1


def test_halves_keep_units_together_and_kinds_apart(cases):
    doubled = replace(cases, units=tuple(np.repeat(range(8), 2).tolist()))
    assert pushes.split_halves(doubled).tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 2
    chosen = doubled.select([number % 3 == 0 for number in range(16)])
    assert chosen.units == (0, 1, 3, 4, 6, 7) and chosen.prompts[2:4] == doubled.prompts[6:8]
    assert doubled.spread(2).units == (0, 7) and doubled.spread(99).units == doubled.units
    assert chosen.spans["last three"] == (3,) * 12 and chosen.size == 2


def test_directions_point_to_what_was_planted_and_controls_do_not():
    generator = torch.Generator().manual_seed(0)
    labels, groups = [False, True] * 80, np.repeat(range(40), 4).tolist()
    planted = torch.randn(8, generator=generator)
    planted /= planted.norm()
    x = torch.randn(160, 8, generator=generator) + torch.tensor(labels)[:, None] * 6 * planted
    found = pushes.fit_directions(x, labels, groups, n_controls=20, seed=0)
    for name, each in found.items():
        assert torch.allclose(each.norm(dim=1), torch.ones(len(each)), atol=1e-5)
        cosine = each @ planted
        if len(each) == 1:
            assert cosine[0] > 0.95, name
        else:
            assert len(each) == 20 and abs(cosine.mean()) < 0.4, (name, cosine)
    assert pushes.measure_distance(x, labels) == pytest.approx(6, abs=0.5)


def test_swapped_states_carry_the_answer_where_it_is_read_off(llama, cases):
    alone = Cases(cases.prompts, cases.answers, cases.signs, tuple(range(32)), cases.spans)
    partners = {number: number ^ 1 for number in range(32)}
    last = pushes.swap_states(llama, alone, partners, layers=[0, 1], place="cue")
    assert last[1] == 1 and last[0] < 1
    with pytest.raises(pushes.InputError, match="0 prompts with partners"):
        pushes.swap_states(llama, alone, {}, layers=[1], place="cue")


def test_a_sweep_finds_the_layer_that_matters(llama, cases):
    causal, _ = columns(llama)
    states = pushes.read_means(llama, cases, ["cue", "last three"], layers=range(2))
    rows = torch.tensor([row[-3:] for row in cases.prompts])
    alone = pushes.hooks.capture(llama, cases.prompts, "resid_post", positions="all")["resid_post"]
    torch.testing.assert_close(states["resid_post"][:, :, 1], alone[:, :, -3:].mean(2))
    assert len(rows) == len(states["resid_post"])
    labels = [number % 2 == 1 for number in range(32)]
    values = torch.zeros(32, 2, 2, llama.config.hidden_size)
    values[1::2, 1] = 20 * causal
    known = replace(states, values={"resid_post": values})
    found, best = pushes.sweep_pushes(llama, cases, known, labels, layers=[0, 1], place="cue", doses=[1.0])
    assert found[0] == 0 and found[1] > 0.5 and best == 1
    weak = replace(known, values={"resid_post": values / 20})
    found, best = pushes.sweep_pushes(llama, cases, weak, labels, layers=[0, 1], place="cue", doses=[1.0])
    assert not found.any() and best == 1  # as many turn, and leads fall more


def test_the_organism_is_asked_in_partners(embedded):
    names = {"listed": ["Anna", "John", "Paul"], "others": ["Mary", "Tom", "Jack"]}
    items = pushes.draw_partners(names, slice(2), seed=0)
    assert pushes.match_partners(items) == {"Anna": "Mary", "Mary": "Anna", "John": "Tom", "Tom": "John"}
    assert items["name"].tolist() == ["Anna", "Mary", "John", "Tom"] and items["content"].tolist() == [0, 0, 1, 1]
    agreeing = pushes.draw_agreeing(embedded, items)
    assert agreeing.size == 1 and agreeing.signs.tolist() == [-1, 1, -1, 1]
    conflicts = pushes.draw_conflicts(embedded, items)
    assert conflicts.size == 2 or not conflicts.units
    for case, name in enumerate(conflicts.units):
        (row,) = items[items["name"] == name].to_dict("records")
        for number, version in enumerate(organism.CONFLICTS):
            prompt = embedded.decode(conflicts.prompts[2 * case + number])
            assert prompt.startswith(organism.write_prompt(row["asked"], row["content"], version))
        signs = conflicts.signs[2 * case : 2 * case + 2]
        right = [answer == conflicts.answers[0, 0] for answer in conflicts.answers[:, 0]]
        assert signs[0] == signs[1] and len(right) == len(conflicts.prompts)
        after = conflicts.prompts[2 * case][-conflicts.spans["all after the name"][2 * case] :]
        assert embedded.decode(after).startswith(" has")


def test_contradictions_are_pairs_that_the_model_follows(embedded):
    cases, asked = pushes.draw_followed(embedded, ["parity"], n=2, seed=0)
    assert asked == 2 and cases.size == 2 and cases.units
    logits = pushes.hooks.score_next_tokens(embedded, cases.prompts, cases.answers)
    assert (logits[:, 0] > logits[:, 1]).all()
    for number in range(len(cases.units)):  # what one of a pair answers is the other candidate of the other
        one, other = cases.answers[2 * number : 2 * number + 2]
        assert one.tolist() == other.tolist()[::-1]
        span = cases.spans["reasoning and cue"][2 * number]
        assert embedded.decode(cases.prompts[2 * number][-span:]).startswith("\nReasoning:")
    states, labels, groups = pushes.read_contradictions(embedded, ["parity"], n=1, seed=0)
    assert len(labels) == len(groups) == len(states["resid_post"]) == 8 and sum(labels) == 4


def test_bad_input_is_refused(llama, cases, refused):
    with refused("3 units", "4 and more"):
        pushes.split_halves(cases.select([number < 3 for number in range(16)]))
