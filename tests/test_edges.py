"""An edge's exact effect equals hooked forward passes, and its attribution is the slope of that."""

import random
import re

import pytest
import torch
from scipy.stats import spearmanr
from shared.tiny import FAMILIES

from helpers import attribution, hooks, models, patching
from helpers.engine import propagation
from helpers.engine.edges import Graph
from helpers.hooks import Edit
from studies.ioi import templates

FURTHER = ("falcon", "falcon-grouped", "bloom", "granite", "gpt_oss", "mixtral")
"""In which attention is added in place, embeddings are normed, what is added is scaled, and experts are chosen."""
EVERY = [*FAMILIES, *(pytest.param(family, marks=pytest.mark.rare) for family in FURTHER)]
PLAIN = [family for family in EVERY if family != "gemma3_text"]
"""Those without a norm behind attention."""
ALL = {"positions": "all"}


def see(loaded, row, site, layer):
    return hooks.capture(loaded, [row], site, layers=[layer], **ALL)[site][0, 0]


def send(loaded, row, other, sender):
    """What a sender adds to the stream on another prompt, less what it adds on this one."""
    if sender == "input":
        return see(loaded, other, "resid_pre", 0) - see(loaded, row, "resid_pre", 0)
    if sender[0] == "m":
        layer = int(sender[1:])
        return see(loaded, other, "mlp_out", layer) - see(loaded, row, "mlp_out", layer)
    layer, head = map(int, sender[1:].split(".h"))
    with hooks.intervene(loaded, Edit("head_z", layer, see(loaded, other, "head_z", layer)[:, head], head=head)):
        return see(loaded, row, "attn_out", layer) - clean(loaded, row, "attn_out", layer)


def clean(loaded, row, site, layer):
    """As without the edits that are in place."""
    key = (id(loaded), tuple(row), site, layer)
    return SEEN[key]


SEEN: dict = {}


def look(loaded, row):
    """Remember the clean run."""
    sites = [site for site in ("resid_pre", "resid_mid", "attn_out", "q", "pattern") if has(loaded, site)]
    found = hooks.capture(loaded, [row], sites, **ALL)
    for site in sites:
        for layer in range(loaded.n_layers):
            SEEN[id(loaded), tuple(row), site, layer] = found[site][0, layer]


def has(loaded, site):
    return not (site == "resid_mid" and loaded.layout.layers[0].parallel)


def read_by_hand(loaded, row, receiver, sent, grouped):
    """The edit that gives the model what a receiver makes of what it is sent."""
    last = loaded.n_layers - 1
    if receiver == "logits":
        return Edit("resid_post", last, see(loaded, row, "resid_post", last) + sent)
    if receiver[0] == "m":
        layer = int(receiver[1:])
        stream = "resid_mid" if has(loaded, "resid_mid") else "resid_pre"
        with hooks.intervene(loaded, Edit(stream, layer, clean(loaded, row, stream, layer) + sent)):
            return Edit("mlp_out", layer, see(loaded, row, "mlp_out", layer))
    layer, head, site = re.fullmatch(r"a(\d+)\.[gh](\d+)<(.)>", receiver).groups()
    layer, head = int(layer), int(head)
    arrives = Edit("resid_pre", layer, clean(loaded, row, "resid_pre", layer) + sent)
    if grouped or site == "q":
        with hooks.intervene(loaded, arrives):
            return Edit(site, layer, see(loaded, row, site, layer)[:, head], head=head)
    if site == "k":
        with hooks.intervene(loaded, arrives, Edit("q", layer, clean(loaded, row, "q", layer))):
            return Edit("pattern", layer, see(loaded, row, "pattern", layer)[head], head=head)
    pattern = clean(loaded, row, "pattern", layer).transpose(0, 1)  # an edit takes queries first
    with hooks.intervene(loaded, arrives, Edit("pattern", layer, pattern)):
        return Edit("head_z", layer, see(loaded, row, "head_z", layer)[:, head], head=head)


def difference(loaded, row, pair):
    logits = hooks.capture(loaded, [row], "logits")["logits"][0, 0]
    return float(logits[pair[0]] - logits[pair[1]])


def do_by_hand(loaded, row, other, pair, edge, grouped, share=1.0):
    look(loaded, row)
    sent = share * send(loaded, row, other, edge[0])
    with hooks.intervene(loaded, read_by_hand(loaded, row, edge[1], sent, grouped)):
        return difference(loaded, row, pair)


@pytest.fixture
def load(load_tiny, load_decoder):
    return lambda family: (load_tiny if family in FAMILIES else load_decoder)(family)


@pytest.fixture(scope="module")
def data():
    """Prompts of two lengths that differ late, from the start, and in several places; one pair does not differ."""
    generator = torch.Generator().manual_seed(0)
    base = [torch.randint(250, (length,), generator=generator).tolist() for length in (11, 11, 6, 11)]
    source = [list(row) for row in base]
    for row, places in zip(source, ((7,), (2, 9), (0,), ()), strict=True):
        for place in places:
            row[place] = (row[place] + 1 + place) % 250
    return base, source, [(3, 4), (5, 6), (7, 8), (9, 10)]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("family", EVERY)
def test_every_kind_of_edge_equals_two_hooked_passes(family, grouped, load, data):
    loaded, (base, source, answers) = load(family), data
    every = patching.list_edges(loaded, grouped=grouped)
    some = [edge for kind in "qkv" for edge in every if f"<{kind}>" in edge[1]][::7]
    some += [edge for edge in every if "<" not in edge[1]][::3]
    effects = patching.patch_edges(loaded, base, source, some, grouped=grouped, answers=answers)
    assert effects.axes == ("edge", "example") and effects.edges == tuple(some)
    expected = [
        [do_by_hand(loaded, *pair, edge, grouped) for pair in zip(base, source, answers, strict=True)] for edge in some
    ]
    torch.testing.assert_close(effects.values, torch.tensor(expected), atol=1e-4, rtol=0)
    assert effects.effect[:, :3].abs().max() > 0.1 and effects.effect[:, 3].abs().max() < 1e-5


def test_edges_are_the_same_however_few_are_run_at_once(load_tiny, data, monkeypatch):
    loaded, (base, source, answers) = load_tiny("llama"), data
    twice = [*patching.list_edges(loaded), *patching.list_edges(loaded)[::9]]
    found = patching.patch_edges(loaded, base, source, twice, answers=answers).values
    first = {edge: value for edge, value in zip(twice, found, strict=True)}
    assert all(torch.equal(first[edge], value) for edge, value in zip(twice, found, strict=True))
    for module in (patching, propagation):
        monkeypatch.setattr(module, "TOKENS_AT_ONCE", 40)
    monkeypatch.setitem(propagation.TOKENS_PER_STEP, "cpu", 12)
    again = patching.patch_edges(loaded, base, source, twice, answers=answers).values
    torch.testing.assert_close(again, found, atol=1e-5, rtol=0)


def test_all_edges_are_those_asked_for_one_by_one(load_tiny, data):
    loaded, (base, source, answers) = load_tiny("llama"), data
    every = patching.patch_edges(loaded, base, source, answers=answers)
    assert list(every.edges) == patching.list_edges(loaded)
    chosen = random.Random(0).sample(range(len(every.edges)), 12)
    again = patching.patch_edges(loaded, base, source, [every.edges[i] for i in chosen], answers=answers)
    torch.testing.assert_close(again.values, every.values[chosen], atol=1e-5, rtol=0)


def test_a_sender_reaches_what_reads_after_it_and_nothing_else():
    edges = Graph(2, 4, 2, (False, True)).list_edges()
    assert len(edges) == len(set(edges))
    assert ("a0.h3", "m0") in edges and ("a1.h3", "m1") not in edges, "MLP 1 reads beside its attention"
    assert ("m0", "a1.g1<k>") in edges and ("m0", "a1.g2<k>") not in edges, "two key/value heads"
    assert ("m0", "a1.h2<k>") in Graph(2, 4, 2, (False, True), grouped=False).list_edges()
    assert ("m0", "a1.h2<k>") in Graph(2, 4, 4, (False, True)).list_edges()
    assert ("a0.h0", "a0.h1<q>") not in edges and ("m1", "logits") in edges


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ([("a1.h0", "a0.h0<q>")], ("a1.h0", "sender before receiver")),
        ([("a0.h0", "a1.h9<q>")], ("a1.h9<q>",)),
        ([("a0.h0", "a1.h0<k>")], ("by group (a1.g0<k>)",)),
        ([("a0.h0",)], ("legal are pairs",)),
        ([], ("at least one",)),
        ("a0.h0", ("legal are pairs",)),
    ],
)
def test_edges_that_are_none_are_refused(edges, words, load_tiny, data, refused):
    base, source, answers = data
    with refused(*words):
        patching.patch_edges(load_tiny("llama"), base, source, edges, answers=answers)


@pytest.mark.parametrize("family", PLAIN)
def test_a_circuit_of_all_edges_is_the_base_run_and_one_of_none_the_source(family, load, data):
    loaded, (base, source, answers) = load(family), data
    found = patching.run_circuits(loaded, base, source, [patching.list_edges(loaded), []], answers=answers)
    assert found.axes == ("circuit", "example")
    torch.testing.assert_close(found.values, torch.stack([found.base, found.source]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", PLAIN)
def test_all_edges_but_one_are_that_ones_patch(family, load, data):
    loaded, (base, source, answers) = load(family), data
    every = patching.list_edges(loaded)
    some = random.Random(5).sample(every, 12)
    without = [[edge for edge in every if edge != one] for one in some]
    found = patching.run_circuits(loaded, base, source, without, answers=answers)
    exact = patching.patch_edges(loaded, base, source, some, answers=answers)
    torch.testing.assert_close(found.values, exact.values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", PLAIN)
def test_a_chain_of_edges_carries_what_hooked_passes_one_after_the_other_do(family, load, data):
    loaded, (base, source, answers) = load(family), data
    chain = [("input", "m0"), ("m0", "a1.h2<q>"), ("a1.h2", "logits")]
    found = patching.run_circuits(loaded, base, source, [chain], answers=answers)
    for i, (row, other, pair) in enumerate(zip(base, source, answers, strict=True)):
        look(loaded, other)
        with hooks.intervene(loaded, read_by_hand(loaded, other, "m0", send(loaded, other, row, "input"), True)):
            mlp = see(loaded, other, "mlp_out", 0)
        arrives = mlp - see(loaded, other, "mlp_out", 0)
        with hooks.intervene(loaded, read_by_hand(loaded, other, "a1.h2<q>", arrives, True)):
            z = see(loaded, other, "head_z", 1)[:, 2]
        with hooks.intervene(loaded, Edit("head_z", 1, z, head=2)):
            arrives = see(loaded, other, "attn_out", 1) - clean(loaded, other, "attn_out", 1)
        with hooks.intervene(loaded, read_by_hand(loaded, other, "logits", arrives, True)):
            assert float(found.values[0, i]) == pytest.approx(difference(loaded, other, pair), abs=1e-4)


def test_circuits_that_can_not_be_run_are_refused(load_tiny, data, refused):
    base, source, answers = data
    with refused("norms behind attention"):
        patching.run_circuits(load_tiny("gemma3_text"), base, source, [[]], answers=answers)
    with refused("at least one list"):
        patching.run_circuits(load_tiny("llama"), base, source, [], answers=answers)
    with refused("sender before receiver"):
        patching.run_circuits(load_tiny("llama"), base, source, [[("m1", "m0")]], answers=answers)


@pytest.mark.parametrize("family", EVERY)
def test_an_attribution_is_the_slope_of_the_exact_effect(family, load, data):
    loaded, (base, source, answers) = load(family), data
    some = random.Random(2).sample(patching.list_edges(loaded), 20)
    effects = attribution.attribute_edges(loaded, base, source, some, answers=answers)
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(
        effects.base, patching.patch_sets(loaded, base, source, [], answers=answers).base, **close
    )
    for number, edge in enumerate(some):
        for i, given in enumerate(zip(base, source, answers, strict=True)):
            up, down = (do_by_hand(loaded, *given, edge, True, share) for share in (0.01, -0.01))
            assert float(effects.effect[number, i]) == pytest.approx((up - down) / 0.02, rel=0.05, abs=2e-3)


@pytest.mark.parametrize("family", EVERY[:-2])  # where experts are chosen, the metric jumps
def test_integrated_edges_of_the_input_sum_to_what_the_metric_changes(family, load, data):
    loaded, (base, source, answers) = load(family), data
    from_input = [edge for edge in patching.list_edges(loaded) if edge[0] == "input"]
    gaps = {}
    for steps in (1, 128):
        found = attribution.attribute_edges(loaded, base, source, from_input, steps=steps, answers=answers)
        gaps[steps] = (found.effect.sum(0) - (found.source - found.base)).abs().max()
    assert gaps[128] < 0.1 * gaps[1] and gaps[128] < 0.1 * (found.source - found.base).abs().max()


def test_the_order_of_prompts_and_the_metric_make_no_difference(load_tiny, data):
    loaded, (base, source, answers) = load_tiny("llama"), data
    found = attribution.attribute_edges(loaded, base, source, answers=answers)
    tokens = torch.tensor(answers)

    def metric(logits, examples):
        return logits.gather(1, tokens[examples]) @ torch.tensor([1.0, -1.0])

    again = attribution.attribute_edges(loaded, base, source, metric=metric)
    back = attribution.attribute_edges(loaded, base[::-1], source[::-1], answers=answers[::-1])
    torch.testing.assert_close(again.values, found.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.values.flip(1), found.values, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 0}, ("steps = 0",)),
        ({"edges": []}, ("at least one",)),
        ({"answers": None, "metric": "losses"}, ("'losses' is no function",)),
        ({"answers": None, "metric": lambda logits, examples: logits.sum()}, ("the metric gave shape []",)),
        ({"edges": [("m1", "a0.h0<q>")]}, ("sender before receiver",)),
        ({"answers": None}, ("missing or given twice",)),
        ({"answers": [(1, 2)]}, ("1 answers for 4 prompts",)),
        ({"source": [[1], [2], [3], [4]]}, ("equally long pairs",)),
    ],
)
def test_what_can_not_be_attributed_is_refused(changed, words, load_tiny, data, refused):
    base, source, answers = data
    with refused(*words):
        attribution.attribute_edges(
            load_tiny("llama"), **{"base": base, "source": source, "answers": answers} | changed
        )


def test_edits_in_place_are_refused(load_tiny, data, refused):
    loaded, (base, source, answers) = load_tiny("llama"), data
    for ask in (patching.patch_edges, attribution.attribute_edges):
        with refused("edits are in place"), hooks.intervene(loaded, Edit("head_z", 0, 0.0)):
            ask(loaded, base, source, answers=answers)


def test_in_half_precision_attributions_are_near(data, copy_of):
    base, source, answers = data
    folder = str(copy_of("llama"))
    both = [models.load(folder, dtype=dtype) for dtype in ("float32", "bfloat16")]
    found = [attribution.attribute_edges(one, base, source, answers=answers).effect for one in both]
    assert spearmanr(*(one.flatten() for one in found)).statistic > 0.9


@pytest.mark.slow
def test_attributions_of_the_real_model_rank_edges_as_their_exact_effects_do(embedded):
    drawn = templates.draw_ioi(embedded, n_prompts=1, seed=0)
    given = (drawn.prompts, drawn.corrupted("p_ABC"), random.Random(3).sample(patching.list_edges(embedded), 100))
    exact = patching.patch_edges(embedded, *given, answers=drawn.answers).effect[:, 0]
    found = attribution.attribute_edges(embedded, *given, answers=drawn.answers).effect[:, 0]
    assert spearmanr(found, exact).statistic > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["S2_is_IO", "p_ABC"])
def test_edges_of_the_real_model_equal_hooked_passes(kind, embedded):
    drawn = templates.draw_ioi(embedded, n_prompts=1, seed=0)
    (row,), (other,), answers = drawn.prompts, drawn.corrupted(kind), drawn.answers
    every = patching.list_edges(embedded)
    kinds = [[edge for edge in every if part in edge[1]] for part in ("<q>", "<k>", "<v>", "m", "logits")]
    some = [edge for of_kind in kinds for edge in random.Random(1).sample(of_kind, 4)]
    effects = patching.patch_edges(embedded, [row], [other], some, answers=answers)
    expected = [do_by_hand(embedded, row, other, answers[0], edge, True) for edge in some]
    torch.testing.assert_close(effects.values[:, 0], torch.tensor(expected), atol=1e-4, rtol=0)
