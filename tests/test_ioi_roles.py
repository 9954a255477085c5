"""The criteria find heads that were planted, in their roles, and nothing where there is nothing."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import transformers

from helpers import hooks, models, patching
from helpers.patching import Node
from studies.ioi import roles, templates

pytestmark = pytest.mark.usefixtures("one_thread")

# A = the person named first, B = the other, S = the one named again; numbers are words.
TEMPLATES = (
    (0, "A", 1, "B", 2, "S", 3, 4),
    (0, 5, "A", 1, "B", 6, 7, "S", 4),
    (0, 8, 9, "A", 10, "B", 2, 11, "S", 3, 12, 4),
    (0, "A", 10, "B", 7, 6, 5, "S", 11, 4),
)
TEMPLATES *= 3  # fifteen by number, as a template counts as one, and with five any signs are as likely as not
N_NAMES, N_WORDS, LONGEST = 10, 13, 12


def drawn_prompts(n_prompts, seed, names, words=tuple(range(N_WORDS))):
    """Prompts for indirect object identification from any tokens; templates and orders take turns."""
    generator = np.random.default_rng(seed)
    rows, answers, others, positions = [], [], [], []
    numbers = [i % len(TEMPLATES) for i in range(n_prompts)]
    orders = [("ABBA", "BABA")[i // len(TEMPLATES) % 2] for i in range(n_prompts)]
    for number, order in zip(numbers, orders, strict=True):
        io, subject, *three = generator.choice(names, 5, replace=False).tolist()
        first, second = (io, subject) if order == "ABBA" else (subject, io)
        slots = {"A": first, "B": second, "S": subject}
        row = tuple(slots[part] if part in slots else words[part] for part in TEMPLATES[number])
        s1 = row.index(subject)
        rows.append(row)
        answers.append((io, subject))
        others.append(tuple(three))
        positions.append((row.index(io), s1, s1 + 1, row.index(subject, s1 + 1), len(row) - 1))
    places = dict(zip(("IO", "S1", "S1+1", "S2", "END"), zip(*positions, strict=True), strict=True))
    io, subject = zip(*answers, strict=True)
    return templates.IOI(tuple(rows), tuple(numbers), tuple(orders), io, subject, tuple(others), places)


# A planted model: the mechanism of Wang et al. (2023), by hand

SPACES = {
    "word": N_WORDS,  # the first is the start token, where a head looks that finds nothing
    "name": N_NAMES,
    "position": LONGEST,
    "position + 1": LONGEST,
    "name before": N_NAMES,
    "name again": N_NAMES,
    "name inhibited": N_NAMES,
    "name said": N_NAMES,
    "unread": N_NAMES,
}
N_LAYERS, N_HEADS, D_HEAD = 5, 8, 26
D_MODEL = N_HEADS * D_HEAD
VOCABULARY = 40
NAME_TOKENS = tuple(range(N_WORDS, N_WORDS + N_NAMES))
NOISE = 0.005
ASKS_START = 4.0


@dataclass(frozen=True)
class Planted:
    """A head, as what its queries ask for, what its keys find, and what it moves where."""

    layer: int
    head: int
    asks: dict[str, float]
    finds: dict[str, float]
    moves: tuple[str, str]
    strength: float = 1.0
    asks_any_name: float = 0.0

    @property
    def place(self):
        return self.layer, self.head


SAYS = ("name", "name said")
NAME = {"name": 1.0}
NOT_INHIBITED = {"asks": {"name inhibited": -0.5}, "finds": NAME, "asks_any_name": 9}
DUPLICATE = Planted(0, 1, {"name": 1, "position": -2}, {"name": 1, "position": 1}, ("name", "name again"))
PREVIOUS = Planted(0, 6, {"position": 1}, {"position + 1": 1}, ("name", "name before"))
INDUCTION = Planted(1, 2, NAME, {"name before": 1}, ("name before", "name again"))
INHIBITION = Planted(2, 5, {}, {"name again": 1}, ("name again", "name inhibited"), asks_any_name=6)
MOVER = Planted(3, 7, moves=SAYS, **NOT_INHIBITED)
PLANTED = {
    "name mover": [MOVER, Planted(3, 1, moves=SAYS, strength=0.5, **NOT_INHIBITED)],
    "S-suppressor": [Planted(3, 3, {"name inhibited": 1.0}, NAME, SAYS, -1)],
    "negative": [Planted(3, 5, moves=SAYS, strength=-0.4, **NOT_INHIBITED)],
    "backup": [Planted(4, 2, {"name inhibited": -4, "name said": -2}, NAME, SAYS, asks_any_name=9)],
    "S-inhibition": [INHIBITION],
    "induction": [INDUCTION],
    "duplicate token": [DUPLICATE],
    "previous token": [PREVIOUS],
}
FOUND = [name for name in PLANTED if name != "backup"]
# Heads that look where they should, and write what no one reads.
IDLE = [
    replace(one, head=(one.head + 1) % 8, moves=(one.moves[0], "unread"), strength=0.5)
    for one in (DUPLICATE, PREVIOUS, INDUCTION, INHIBITION, MOVER)
]


def where(space):
    names = list(SPACES)
    start = sum(SPACES[name] for name in names[: names.index(space)])
    return slice(start, start + SPACES[space])


def plant(model, one):
    """Write a head's weights over the noise; its slots are the names, then the positions, then the start token."""
    attention = model.transformer.h[one.layer].attn
    first = one.head * D_HEAD

    def connect(part, space, strength):
        width = SPACES[space]
        slot = part * D_MODEL + first + (N_NAMES if "position" in space else 0)
        attention.c_attn.weight[where(space), slot : slot + width] += strength * torch.eye(width)

    for part, spaces in enumerate((one.asks, one.finds, {one.moves[0]: 0.1})):
        for space, strength in spaces.items():
            connect(part, space, strength)
    attention.c_attn.bias[first : first + N_NAMES] = one.asks_any_name
    attention.c_attn.bias[first + D_HEAD - 1] = ASKS_START
    attention.c_attn.weight[where("word").start, D_MODEL + first + D_HEAD - 1] = 1.0
    attention.c_proj.weight[first : first + N_NAMES, where(one.moves[1])] += one.strength * torch.eye(N_NAMES)


def planted_model(folder, heads):
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LONGEST,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_inner=8,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        for name, weights in model.named_parameters():
            if "mlp" in name or name.endswith("bias"):
                weights.zero_()
            elif "ln_" not in name:
                weights.normal_(std=NOISE)
        embedding = model.transformer.wte.weight
        embedding[:N_WORDS, where("word")] += torch.eye(N_WORDS)
        embedding[list(NAME_TOKENS), where("name")] += torch.eye(N_NAMES)
        for space in ("position", "position + 1"):
            ahead = space.endswith("1")
            model.transformer.wpe.weight[: LONGEST - ahead, where(space)] += torch.eye(LONGEST)[ahead:]
        model.lm_head.weight[list(NAME_TOKENS), where("name said")] += torch.eye(N_NAMES)
        for one in heads:
            plant(model, one)
        model.save_pretrained(folder)
    return models.load(str(folder))


def places(name):
    return tuple(one.place for one in PLANTED[name])


def planted_but(*missing):
    return [one for name, heads in PLANTED.items() if name not in missing for one in heads] + IDLE


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return planted_model(tmp_path_factory.mktemp("planted"), planted_but())


def search(loaded, data, seed):
    """The prompts are their own reference: of each form there are enough."""
    return roles.search(loaded, data, data, seed=seed)


@pytest.fixture(scope="module")
def searches(planted):
    """The search on three data sets."""
    return [search(planted, drawn_prompts(32, seed, NAME_TOKENS), seed) for seed in range(3)]


def test_the_planted_heads_look_where_they_should(searches):
    looks = {
        "name mover": "END attends IO",
        "S-suppressor": "END attends S",
        "negative": "END attends IO",
        "S-inhibition": "END attends S2",
        "induction": "S2 attends S1+1",
        "duplicate token": "S2 attends S1",
        "previous token": "S1+1 attends S1",
    }
    for found in searches:
        assert found.logit_difference.min() > 1
        for name, look in looks.items():
            assert all(found.scores[look][one.place] > 0.5 for one in PLANTED[name]), name
        assert all(found.scores["raises IO"][one.place] == 1 for one in PLANTED["name mover"])
        assert all(found.scores["lowers S"][one.place] == 1 for one in PLANTED["S-suppressor"])


@pytest.mark.parametrize("name", FOUND)
def test_a_role_is_had_by_the_heads_that_were_planted_and_by_no_others(name, searches):
    assert [found.roles[name] for found in searches] == [places(name)] * 3


def test_a_backup_is_found_that_looks_at_the_indirect_object_only_when_it_is_needed(searches):
    assert [found.roles["backup"] for found in searches] == [places("backup")] * 3


def test_the_heads_of_a_search_are_those_of_all_roles(searches):
    for found in searches:
        assert found.heads == tuple(sorted({head for heads in found.roles.values() for head in heads}))
        assert set(found.heads) >= {place for name in FOUND for place in places(name)}


def test_a_planted_backup_takes_over_when_the_movers_are_knocked_out(searches):
    place = PLANTED["backup"][0].place
    for found in searches:
        stage = found.stages["backup"]
        assert stage.found[place]
        assert stage.mean[place] == stage.mean.min() < -1
        assert found.stages["logits"].mean[place] > -1
        assert stage.left_out == found.roles["name mover"] + found.roles["S-suppressor"]
        assert not any(stage.found[head] for head in stage.left_out)


def test_without_induction_its_heads_are_not_found_and_the_others_are(tmp_path):
    loaded = planted_model(tmp_path, planted_but("induction"))
    found = search(loaded, drawn_prompts(32, 0, NAME_TOKENS), 0)
    assert "keys" not in found.stages
    missing = ("induction", "previous token")
    expected = [() if name in missing else places(name) for name in FOUND]
    assert [found.roles[name] for name in FOUND] == expected


def test_a_model_that_does_not_do_the_task_has_no_circuit_for_it(tmp_path, planted):
    data = drawn_prompts(32, 0, NAME_TOKENS)
    without = search(planted_model(tmp_path, planted_but("S-inhibition")), data, 0)
    wrong = search(planted, replace(data, io=data.subject, subject=data.io), 0)
    assert wrong.logit_difference.mean() < -1
    for found in (without, wrong):
        assert found.heads == ()
        assert found.stages == found.limits == {}
        assert list(found.roles) == list(roles.ROLES)


def test_heads_are_measured_against_three_unrelated_names(planted, searches):
    data = drawn_prompts(32, 0, NAME_TOKENS)
    source = data.corrupted("p_ABC")
    stages, by_role = searches[0].stages, searches[0].roles
    queries = [Node("q", *head, -1) for head in by_role["name mover"] + by_role["S-suppressor"]]
    for stage, receivers in (("logits", "logits"), ("queries", queries)):
        expected = patching.patch_paths(planted, data.prompts, source, receivers, answers=data.answers).effect
        torch.testing.assert_close(stages[stage].effect, expected, atol=1e-4, rtol=0)


def test_an_effect_counts_from_a_hundredth_of_the_logit_difference(searches):
    for found in searches:
        for stage in found.stages.values():
            assert stage.smallest == pytest.approx(0.01 * float(found.logit_difference.mean()))
    effect = torch.tensor([[[-0.9] * 6, [-1.1] * 6, [1.1] * 6, [5.0, -5.0, 6.0, -6.0, 0.0, 3.0]]])
    assert roles.Stage(effect, least_consistency=0.5, smallest=1.0).found.tolist() == [[False, True, True, False]]


def test_a_planted_head_is_firm_and_one_that_every_other_prompt_contradicts_is_not(searches):
    found = searches[0]
    firm = roles.measure_firmness(found, seed=0)
    assert set(firm) == {(name, head) for name, heads in found.roles.items() for head in heads}
    assert firm["name mover", MOVER.place] == pytest.approx(1)
    stage = found.stages["logits"]
    effect = stage.effect.clone()
    effect[MOVER.place][::2] *= -1
    shaky = replace(found, stages=found.stages | {"logits": replace(stage, effect=effect)})
    assert roles.measure_firmness(shaky, seed=0)["name mover", MOVER.place] < 0.5


# The null


@pytest.mark.parametrize("n_examples", [16, 32])
@pytest.mark.parametrize("shared", [0.0, 2.0], ids=["independent heads", "heads that go together"])
def test_noise_looks_consistent_in_one_of_twenty_data_sets(shared, n_examples):
    generator, exceeded = torch.Generator().manual_seed(0), []
    for seed in range(600):
        noise = torch.randn(6, 8, n_examples, generator=generator)
        noise += shared * torch.randn(n_examples, generator=generator)
        effect = noise * 10 ** (6 * torch.rand(6, 8, 1, generator=generator) - 3)
        limit = roles.bound_consistency(effect, seed=seed)
        exceeded.append(bool((roles.measure_consistency(effect) > limit).any()))
    assert 0.02 < np.mean(exceeded) < 0.09


def test_a_head_with_a_giant_effect_does_not_hide_a_small_consistent_one():
    noise = torch.randn(6, 8, 32, generator=torch.Generator().manual_seed(0))
    noise[0, 0] += 2
    alone = roles.measure_consistency(noise) > roles.bound_consistency(noise, seed=1)
    noise[5, 7] = 1e6 * (noise[5, 7] + 5)
    both = roles.measure_consistency(noise) > roles.bound_consistency(noise, seed=1)
    assert alone.nonzero().tolist() == [[0, 0]]
    assert both.nonzero().tolist() == [[0, 0], [5, 7]]


def test_consistency_is_one_where_all_agree_and_zero_where_they_cancel():
    effect = torch.tensor([[-3.0, -3.0, -3.0, -3.0], [1.0, -1.0, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    assert roles.measure_consistency(effect).tolist() == [1, 0, 0]


# Where there is nothing

FAMILIES = ("gpt2", "llama", "qwen2")


def random_prompts(n_prompts, seed):
    """Any tokens in the places of names and words, others for each seed."""
    tokens = np.random.default_rng(seed).permutation(250).tolist()
    return drawn_prompts(n_prompts, seed, tokens[N_WORDS:], tokens[:N_WORDS])


def chosen(data, numbers):
    def pick(values):
        return tuple(values[i] for i in numbers)

    names = ("prompts", "template", "order", "io", "subject", "others")
    positions = {name: pick(values) for name, values in data.positions.items()}
    return replace(data, positions=positions, **{name: pick(getattr(data, name)) for name in names})


def difference(loaded, data):
    logits = hooks.capture(loaded, data.prompts, "logits")["logits"][:, 0].gather(1, torch.tensor(data.answers))
    return logits[:, 0] - logits[:, 1]


def test_random_models_have_no_heads_for_the_task(load_tiny):
    found = [
        search(load_tiny(family), random_prompts(32, seed), seed).heads for family in FAMILIES for seed in range(20)
    ]
    assert np.mean([heads == () for heads in found]) >= 0.95


def test_random_models_have_none_either_on_prompts_that_they_happen_to_get_right(load_tiny):
    found = []
    for family in FAMILIES:
        for seed in range(20):
            data = random_prompts(96, seed)
            right = (difference(load_tiny(family), data) > 0).nonzero()[:32, 0].tolist()
            found.append(search(load_tiny(family), chosen(data, right), seed))
    assert all("logits" in one.stages for one in found)
    assert np.mean([one.heads == () for one in found]) >= 0.9


# Knocking out, and path patching at positions that differ


@pytest.mark.parametrize("heads", [[(0, 2)], [(1, 3), (0, 0), (1, 1)]], ids=["one", "several"])
def test_knocking_out_is_the_ablation_with_the_mean_of_each_form(heads, tiny):
    data = random_prompts(20, 0)
    with hooks.intervene(
        tiny, *roles.knock_out(roles.average_by_form(roles.capture_reference(tiny, data), data, data), heads)
    ):
        found = difference(tiny, data)
    effects = patching.ablate(
        tiny,
        data.prompts,
        [[Node("head_z", *head) for head in heads]],
        reference=data.corrupted("p_ABC"),
        groups=data.forms,
        answers=data.answers,
    )
    torch.testing.assert_close(found, effects.values[0], atol=1e-4, rtol=0)
    assert effects.effect.abs().max() > 0.1


RECEIVERS = {  # site, query heads, where, key/value heads of a Llama in which two query heads share one
    "queries": ("q", [(1, 3)], "END", [(1, 3)]),
    "queries of two": ("q", [(1, 3), (1, 0)], "END", [(1, 0), (1, 3)]),
    "keys": ("k", [(1, 1)], "S1+1", [(1, 0)]),
    "values": ("v", [(1, 2)], "S2", [(1, 1)]),
    "values of two that share": ("v", [(1, 3), (1, 2)], "S2", [(1, 1)]),
    "values of two that do not": ("v", [(1, 3), (1, 0)], "S2", [(1, 0), (1, 1)]),
}


@pytest.mark.parametrize(("site", "heads", "place", "receivers"), RECEIVERS.values(), ids=RECEIVERS)
def test_paths_to_a_named_position_are_those_of_each_prompt_alone(site, heads, place, receivers, load_tiny):
    loaded, data = load_tiny("llama"), random_prompts(20, 0)
    found = roles.patch_into(loaded, data, site, heads, place)
    assert found.shape == (2, 4, 20)
    assert len(set(data.positions[place])) > 2
    for i, row in enumerate(data.prompts):
        nodes = [Node(site, *head, data.positions[place][i]) for head in receivers]
        source = data.corrupted("p_ABC")[i]
        one = patching.patch_paths(loaded, [row], [source], nodes, answers=[data.answers[i]]).effect
        torch.testing.assert_close(found[:, :, i], one[:, :, 0], atol=1e-4, rtol=0)
    assert found[0].abs().max() > 1e-3
    assert (found[1] == 0).all()


def test_no_heads_are_no_receivers_and_can_not_be_knocked_out(load_tiny, refused):
    loaded, data = load_tiny("llama"), random_prompts(4, 0)
    assert roles.patch_into(loaded, data, "v", (), "S2") is None
    with refused("no heads to knock out", "at least one"):
        roles.knock_out(roles.average_by_form(roles.capture_reference(loaded, data), data, data), [])


def test_paths_between_roles_are_sums_over_senders_of_the_path_to_each_input(load_tiny):
    loaded, data = load_tiny("llama"), random_prompts(12, 0)
    by_role = {"name mover": ((1, 3), (1, 0)), "S-inhibition": ((0, 1),), "induction": ((0, 2), (0, 3)), "backup": ()}
    found = roles.measure_paths(loaded, data, by_role)
    source, options = data.corrupted("p_ABC"), {"answers": data.answers}
    alone = roles.patch_into(loaded, data, "q", by_role["name mover"], "END")
    torch.testing.assert_close(
        found["induction", "name mover", "queries"], alone[0, 2] + alone[0, 3], atol=1e-4, rtol=0
    )
    values = [Node("v", 1, head) for head in (0, 1)]  # of which two query heads each share one
    sent = patching.patch_paths(loaded, data.prompts, source, values, **options).effect
    torch.testing.assert_close(found["S-inhibition", "name mover", "values"], sent[0, 1], atol=1e-4, rtol=0)
    direct = patching.patch_paths(loaded, data.prompts, source, "logits", **options).effect
    torch.testing.assert_close(
        found["name mover", "logits", "directly"], direct[1, 3] + direct[1, 0], atol=1e-4, rtol=0
    )
    assert not [
        ends for ends in found if ends[0] == ends[1] or "backup" in ends or ends[:2] == ("name mover", "induction")
    ]
    assert roles.measure_paths(loaded, data, {"backup": ()}) == {}


# Parts of the data


def test_the_first_prompts_keep_their_parts(embedded):
    data = templates.draw_ioi(embedded, n_prompts=30, seed=0)
    some = data.first(7)
    assert some == chosen(data, range(7))
    assert (some.answers, some.forms) == (data.answers[:7], data.forms[:7])
    assert some.corrupted("p_ABC") == data.corrupted("p_ABC")[:7]
    assert data.first(100) == data.first(30) == data


def test_prompts_of_one_form_have_their_parts_at_the_same_places(embedded):
    data = templates.draw_ioi(embedded, n_prompts=80, seed=0)
    assert data.forms == list(zip(data.template, data.order, strict=True))
    assert len(set(data.forms)) == 40
    layouts = {
        (form, len(row), *places)
        for form, row, *places in zip(data.forms, data.prompts, *data.positions.values(), strict=True)
    }
    assert len(layouts) == 40


def test_the_means_are_those_of_another_sample_of_the_same_forms(load_tiny):
    loaded, data, reference = load_tiny("llama"), random_prompts(6, 0), random_prompts(24, 1)
    means = roles.average_by_form(roles.capture_reference(loaded, reference), data, reference)
    captured = hooks.capture(loaded, reference.corrupted("p_ABC"), "head_z", positions="all")["head_z"]
    for i, form in enumerate(data.forms):
        members = [j for j, other in enumerate(reference.forms) if other == form]
        torch.testing.assert_close(means[i], captured[members].mean(0), equal_nan=True)


def test_a_form_without_reference_is_refused(load_tiny, refused):
    data = random_prompts(6, 0)
    with refused("no reference prompt", "template"):
        roles.average_by_form(roles.capture_reference(load_tiny("llama"), data.first(1)), data, data.first(1))


def test_prompts_of_one_template_count_as_one():
    """A head that helps on one template alone is consistent over its many prompts, and not over templates."""
    template = (0,) * 10 + (1,) * 10 + (2,) * 10 + (3,) * 10
    effect = torch.zeros(1, 2, 40)
    effect[0, 0] = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 0.01 - 1
    effect[0, 1, :10] = -1.0
    by_template = roles.average_by_template(effect, template)
    assert by_template.shape == (1, 2, 4)
    assert roles.measure_consistency(by_template).tolist()[0] == pytest.approx([1.0, 0.5], abs=0.01)
    assert roles.average_by_template(effect, ()) is effect
    stage = roles.Stage(effect, 0.9, 0.01, template=template)
    assert stage.found.tolist() == [[True, False]]
