"""What the parts of a model write adds up to what it says."""

import copy
import dataclasses

import pytest
import torch
from shared import by_hand
from shared.tiny import VOCABULARY

from helpers import InputError, attribution, hooks, models, patching, prompts
from helpers.engine.architectures import get_final_norm, list_layers
from studies.ioi import templates

pytestmark = pytest.mark.usefixtures("one_thread")


def difference(loaded, rows, answers):
    logits = hooks.capture(loaded, rows, "logits")["logits"][:, 0].gather(1, torch.tensor(answers))
    return logits[:, 0] - logits[:, 1]


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(250, (length,), generator=generator).tolist() for length in (5, 9, 7)]
    return rows, [(1, 2), (30, 4), (5, 60)]


def test_the_parts_sum_to_the_logit_difference(tiny, data):
    parts = attribution.attribute_logits(tiny, *data)
    assert parts.heads.shape == (2, 4, 3)
    assert parts.mlps.shape == (2, 3)
    torch.testing.assert_close(parts.total, difference(tiny, *data), atol=1e-4, rtol=1e-4)
    assert parts.heads.abs().max() > 0.1


def test_a_part_is_what_is_missing_when_the_norm_stays_and_the_part_goes(tiny, data):
    """The second way: take a head's output out of the last residual stream, and leave the norm's scale."""
    rows, answers = data
    parts = attribution.attribute_logits(tiny, rows, answers)
    layer = list_layers(tiny.model, tiny.layout)[1]
    captured = hooks.capture(tiny, rows, ["head_z", "resid_post"])
    z, resid = captured["head_z"][:, 1, 0], captured["resid_post"][:, 1, 0]
    norm = get_final_norm(tiny.model, tiny.layout)
    unembed = tiny.model.get_output_embeddings().weight
    direction = torch.stack([unembed[a] - unembed[b] for a, b in answers])
    for head in range(4):
        without = z.clone()
        without[:, head] = 0
        if layer.layout.after_attention:
            continue  # its norm would change as well
        written = layer.add_to_stream(z) - layer.add_to_stream(without)
        centred, whole = written, resid
        if isinstance(norm, torch.nn.LayerNorm):
            centred, whole = (part - part.mean(-1, keepdim=True) for part in (written, resid))
        scaled = centred / (whole.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        torch.testing.assert_close(parts.heads[1, head], (scaled * direction).sum(-1), atol=1e-3, rtol=1e-3)


def test_with_the_scale_held_only_what_is_written_changes(tiny, data):
    whole = attribution.attribute_logits(tiny, *data)
    torch.testing.assert_close(
        attribution.attribute_logits(tiny, *data, scale_of=whole.resid).heads, whole.heads, atol=1e-5, rtol=1e-5
    )
    with hooks.intervene(tiny, hooks.Edit("head_z", 1, torch.zeros(tiny.layout.d_head), head=2)):
        own, held = (
            attribution.attribute_logits(tiny, *data, scale_of=scale) for scale in (None, whole.resid.tolist())
        )
    intact = torch.ones(2, 4, dtype=torch.bool)
    intact[1, 2] = False
    if not tiny.layout.layers[1].after_attention:  # else the norm of the sum has another scale
        torch.testing.assert_close(held.heads[intact], whole.heads[intact], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(held.heads[1, 2], torch.zeros(3), atol=1e-6, rtol=0)
    ratio = own.heads[0] / whole.heads[0]  # the scale alone, the same for all that is written
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), atol=1e-3, rtol=1e-3)
    assert (ratio - 1).abs().max() > 1e-3
    torch.testing.assert_close(own.total, _zeroed_difference(tiny, data), atol=1e-4, rtol=1e-4)


def _zeroed_difference(tiny, data):
    with hooks.intervene(tiny, hooks.Edit("head_z", 1, torch.zeros(tiny.layout.d_head), head=2)):
        return difference(tiny, *data)


def test_the_parts_of_the_real_model_sum_and_single_out_few_heads(embedded):
    names = [(" Mary", " John"), (" Tom", " Anna")]
    texts = [f"When{a} and{b} went to the store,{b} gave a drink to" for a, b in names]
    parts = attribution.attribute_logits(embedded, texts, names)
    tokens = patching.encode_answers(embedded, names).tolist()
    torch.testing.assert_close(parts.total, difference(embedded, texts, tokens), atol=1e-3, rtol=1e-4)
    largest = parts.heads.mean(-1).flatten().sort(descending=True).values
    assert largest[:5].sum() > 3 * largest[5:50].mean() * 5


# Copying


def with_heads_that_copy(loaded):
    """A copy of a Llama in which head 1.2 writes what it reads and head 1.3 its negative; both share one value head."""
    model = copy.deepcopy(loaded.model)
    attention = model.model.layers[1].self_attn
    basis = torch.linalg.qr(model.lm_head.weight.T @ model.lm_head.weight)[0][:, :4]  # the widest directions
    attention.v_proj.weight[4:8] = basis.T
    attention.o_proj.weight[:, 8:12] = basis
    attention.o_proj.weight[:, 12:16] = -basis
    return dataclasses.replace(loaded, model=model)


def test_planted_copying_heads_are_found_with_their_sign(load_tiny):
    loaded = with_heads_that_copy(load_tiny("llama"))
    tokens = torch.arange(0, 250, 5)
    resid = loaded.model.get_output_embeddings().weight[tokens]  # what would make the model say the token
    raised, lowered = attribution.measure_copy_rates(loaded, tokens, resid, top=30)
    assert raised.shape == lowered.shape == (2, 4)
    assert raised[1, 2] == raised.max() > 0.5
    assert lowered[1, 3] == lowered.max() > 0.5
    others = torch.ones(2, 4, dtype=torch.bool)
    others[1, 2:] = False
    assert raised[others].max() < 0.4  # by chance 0.1


@pytest.mark.parametrize("piece", [7, 64, 10_000])
def test_copy_rates_read_in_pieces_are_those_of_all_logits_at_once(load_tiny, monkeypatch, piece):
    monkeypatch.setattr(attribution, "VOCABULARY_PIECE", piece)
    loaded = with_heads_that_copy(load_tiny("llama"))
    vocabulary = loaded.model.get_output_embeddings().weight
    tokens = torch.arange(0, len(vocabulary), 3)
    attention, resid = loaded.model.model.layers[1].self_attn, vocabulary[tokens]
    value = attention.v_proj(loaded.model.model.layers[1].input_layernorm(resid))[:, 4:8]  # of heads 1.2 and 1.3
    written = torch.stack([value @ attention.o_proj.weight[:, 4 * head : 4 * head + 4].T for head in (2, 3)])
    logits = loaded.model.lm_head(loaded.model.model.norm(written))
    own = logits[:, range(len(tokens)), tokens, None]
    for top in (1, 5, 30):
        rates = attribution.measure_copy_rates(loaded, tokens, resid, top=top)
        for rate, beyond in zip(rates, (logits >= own, logits <= own), strict=True):
            torch.testing.assert_close(rate[1, 2:], (beyond.sum(2) <= top).float().mean(1), atol=0.02, rtol=0)


@pytest.mark.slow
def test_heads_of_the_real_model_copy_names(embedded):
    drawn = templates.draw_ioi(embedded, n_prompts=20, seed=0)
    resid = hooks.capture(embedded, drawn.prompts, "resid_post", layers=[0], positions={"IO": drawn.positions["IO"]})
    raised, lowered = attribution.measure_copy_rates(embedded, torch.tensor(drawn.io), resid["resid_post"][:, 0, 0])
    chance = 5 / embedded.config.vocab_size
    assert raised.max() > 0.5 > 1000 * chance
    assert (raised * lowered).max() < 0.25  # no head does both


def with_heads_that_copy_four_tokens(loaded, tokens):
    """The same with an unembedding in which these four tokens have nothing in common but what those heads write."""
    copied = with_heads_that_copy(loaded)
    basis = copied.model.model.layers[1].self_attn.o_proj.weight[:, 8:12]
    copied.model.lm_head.weight[tokens] = basis.T
    return copied


def test_planted_heads_that_copy_and_that_suppress_have_the_highest_and_the_lowest_score(load_tiny):
    tokens = torch.tensor([[7, 100, 3, 250], [250, 3, 100, 7]])
    loaded = with_heads_that_copy_four_tokens(load_tiny("llama"), tokens[0])
    resid = loaded.model.lm_head.weight[tokens][:, None].repeat(1, 2, 1, 1)
    scores = attribution.score_copying(loaded, tokens, resid)
    assert scores.shape == (2, 2, 4)
    torch.testing.assert_close(scores[:, 1, 2], torch.ones(2))
    torch.testing.assert_close(scores[:, 1, 3], -torch.ones(2))
    others = torch.cat([scores[:, 0], scores[:, 1, :2]], dim=1)
    assert others.max() < 0.5


def test_planted_heads_stand_out_among_tokens_that_have_much_in_common(load_tiny):
    loaded = with_heads_that_copy(load_tiny("llama"))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:20] for _ in range(30)])
    resid = loaded.model.lm_head.weight[tokens][:, None].repeat(1, 2, 1, 1)
    scores = attribution.score_copying(loaded, tokens, resid).mean(0)
    others = torch.cat([scores[0], scores[1, :2]])
    assert scores[1, 2] > others.max() + 0.1
    assert float(scores[1, 3]) == pytest.approx(-1, abs=0.01)
    assert others.min() > -0.98


@pytest.mark.parametrize("n_tokens", [4, 12])
def test_heads_that_read_something_else_score_as_by_chance(tiny, n_tokens):
    generator = torch.Generator().manual_seed(n_tokens)
    tokens = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:n_tokens] for _ in range(300)])
    resid = torch.randn(300, 2, n_tokens, 16, generator=generator)
    scores = attribution.score_copying(tiny, tokens, resid)
    spread = scores.std(0).max() / 300**0.5
    torch.testing.assert_close(scores.mean(0), torch.full((2, 4), 2 / n_tokens - 1), atol=float(4 * spread), rtol=0)
    assert spread < 0.03


def test_copying_scores_are_those_computed_by_hand(tiny):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:6] for _ in range(3)])
    resid = torch.randn(3, 2, 6, 16, generator=generator)
    kind, base = tiny.config.model_type, tiny.model.base_model
    d_head, plus = 8 if kind == "gemma3_text" else 4, float(kind == "gemma3_text")
    final = get_final_norm(tiny.model, tiny.layout)
    bias = final.bias if isinstance(final, torch.nn.LayerNorm) else 0
    unembed = tiny.model.get_output_embeddings().weight
    scores = attribution.score_copying(tiny, tokens, resid)
    for layer, block in enumerate(base.h if kind == "gpt2" else base.layers):
        parts = by_hand.PARTS[kind](block, d_head)
        for i, row in enumerate(tokens):
            values = parts.qkv(resid[i, layer])[2]
            for head in range(4):
                shares = []
                for place in range(6):
                    z = torch.zeros(4, d_head)
                    z[head] = values[place, head * values.shape[1] // 4]
                    written = parts.out(z.flatten()[None]) - parts.out(torch.zeros(1, 4 * d_head))
                    logits = unembed[row] @ (by_hand.norm(final, written, plus)[0] - bias)
                    raised = (logits - logits.mean()).clamp(min=0)
                    shares.append(raised[place] / raised.sum())
                torch.testing.assert_close(scores[i, layer, head], 2 * torch.stack(shares).mean() - 1)


def test_copying_is_scored_by_default_in_a_run_of_the_sequences(tiny):
    tokens = torch.tensor([[1, 2, 3], [6, 5, 4]])
    rows = prompts.prepend_start_token(tiny, tokens)
    resid = hooks.capture(tiny, rows, "resid_pre", positions="all")["resid_pre"][:, :, -3:]
    expected = attribution.score_copying(tiny, tokens, resid)
    torch.testing.assert_close(attribution.score_copying(tiny, tokens), expected, atol=0, rtol=0)


def test_against_several_tokens_what_is_written_is_the_mean_of_what_is_written_against_each(tiny, data):
    rows, answers = data
    against = [[7, 8, 9], [10, 11, 12], [13, 14, 7]]
    found = attribution.attribute_logits(tiny, rows, answers, against=against)
    pairs = [[(right, many[i]) for (right, _), many in zip(answers, against, strict=True)] for i in range(3)]
    each = [attribution.attribute_logits(tiny, rows, some) for some in pairs]
    for name in ("embedding", "heads", "mlps", "biases", "total"):
        expected = torch.stack([getattr(one, name) for one in each]).mean(0)
        torch.testing.assert_close(getattr(found, name), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("against", [[[1]], [[1], [2], [3, 4]], [[], [], []], [[1], [2], [10_000]]])
def test_tokens_to_compare_with_that_do_not_fit_are_refused(against, load_tiny, data, refused):
    with refused("against", "as many tokens", "3 prompts"):
        attribution.attribute_logits(load_tiny("llama"), *data, against=against)


def test_sequences_in_which_a_token_repeats_have_no_copying_scores(load_tiny, refused):
    tokens = torch.tensor([[1, 2, 3], [4, 5, 4]])
    with refused("twice", "legal", "different"):
        attribution.score_copying(load_tiny("llama"), tokens, torch.zeros(2, 2, 3, 16))
    with refused("'nnsight'", "'huggingface'"):
        attribution.score_copying(load_tiny("llama", "nnsight"), tokens[:1], torch.zeros(1, 2, 3, 16))


def test_bad_input_is_refused(load_tiny, data, refused):
    for bad in (torch.ones(2, 3), torch.full((3, load_tiny("llama").config.hidden_size), torch.nan)):
        with refused("scale_of of shape", "finite"):
            attribution.attribute_logits(load_tiny("llama"), *data, scale_of=bad)
    rows, answers = data
    loaded = load_tiny("llama")
    with refused("2 answers for 3 prompts"):
        attribution.attribute_logits(loaded, rows, answers[:2])
    with refused("'nnsight'", "'huggingface'"):
        attribution.attribute_logits(load_tiny("llama", "nnsight"), rows, answers)
    capped = models.load(loaded.card.name)
    capped.model.config.final_logit_softcapping = 30.0
    with refused("llama bounds its logits"):
        attribution.attribute_logits(capped, rows, answers)
    with refused("BatchNorm1d", "RMSNorm"):
        attribution.pull_through_norm(torch.nn.BatchNorm1d(4), torch.ones(1, 4), torch.ones(1, 4))


def test_attention_to_repeats_is_read_off_the_pattern(load_tiny):
    """By hand: weights after earlier copies, and on them, over the queries that have one."""
    tiny = load_tiny("llama")
    tokens = torch.tensor([[3, 4, 5, 3, 4, 5, 3, 4], [6, 7, 6, 8, 7, 9, 6, 1]])
    found = attribution.score_attention_to_repeats(tiny, tokens)
    pattern = hooks.capture(tiny, tokens, "pattern", positions="all")["pattern"]
    for i, row in enumerate(tokens.tolist()):
        after, on, n_queries = 0.0, 0.0, 0
        for query, token in enumerate(row):
            copies = [key for key in range(query) if row[key] == token]
            n_queries += bool(copies)
            after += sum(pattern[i, :, :, query, key + 1] for key in copies)
            on += sum(pattern[i, :, :, query, key] for key in copies)
        torch.testing.assert_close(found["induction"][i], after / n_queries)
        torch.testing.assert_close(found["duplicate token"][i], on / n_queries)


def test_attention_at_the_places_of_other_sequences_is_that_of_a_head_that_goes_by_distance(load_tiny):
    tiny = load_tiny("gpt2")
    repeating, new = torch.tensor([[3, 4, 3, 4]]), torch.tensor([[5, 6, 7, 8]])
    found = attribution.score_attention_to_repeats(tiny, new, places_of=repeating)
    pattern = hooks.capture(tiny, new, "pattern", positions="all")["pattern"][0]
    torch.testing.assert_close(found["induction"][0], (pattern[:, :, 2, 1] + pattern[:, :, 3, 2]) / 2)
    with pytest.raises(InputError, match="no token occurs twice"):
        attribution.score_attention_to_repeats(tiny, new)
    with pytest.raises(InputError, match="different lengths"):
        attribution.score_attention_to_repeats(tiny, new[:, :3], places_of=repeating)
    with pytest.raises(InputError, match="1 sequences as places_of for 2"):
        attribution.score_attention_to_repeats(tiny, new.expand(2, -1), places_of=repeating)
