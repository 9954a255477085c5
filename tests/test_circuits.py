"""What the parts of a model write adds up to what it says."""

import copy
import dataclasses

import pytest
import torch

from helpers import circuits, hooks, models, prompts


def difference(loaded, rows, answers):
    logits = hooks.capture(loaded, rows, "logits")["logits"][:, 0].gather(1, torch.tensor(answers))
    return logits[:, 0] - logits[:, 1]


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(250, (length,), generator=generator).tolist() for length in (5, 9, 7)]
    return rows, [(1, 2), (30, 4), (5, 60)]


def test_the_parts_sum_to_the_logit_difference(tiny, data):
    parts = circuits.logit_attribution(tiny, *data)
    assert parts.heads.shape == (2, 4, 3)
    assert parts.mlps.shape == (2, 3)
    torch.testing.assert_close(parts.total, difference(tiny, *data), atol=1e-4, rtol=1e-4)
    assert parts.heads.abs().max() > 0.1


def test_a_part_is_what_is_missing_when_the_norm_stays_and_the_part_goes(tiny, data):
    """The second way: take a head's output out of the last residual stream, and leave the norm's scale."""
    rows, answers = data
    parts = circuits.logit_attribution(tiny, rows, answers)
    layer = circuits.layers(tiny.model)[1]
    captured = hooks.capture(tiny, rows, ["head_z", "resid_post"])
    z, resid = captured["head_z"][:, 1, 0], captured["resid_post"][:, 1, 0]
    norm = getattr(tiny.model.base_model, circuits.family_of(tiny.config).final_norm)
    unembed = tiny.model.get_output_embeddings().weight
    direction = torch.stack([unembed[a] - unembed[b] for a, b in answers])
    for head in range(4):
        without = z.clone()
        without[:, head] = 0
        if layer.family.after_attention:
            continue  # its norm would change as well
        written = layer.attn_out(z) - layer.attn_out(without)
        centred, whole = written, resid
        if isinstance(norm, torch.nn.LayerNorm):
            centred, whole = (part - part.mean(-1, keepdim=True) for part in (written, resid))
        scaled = centred / (whole.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        torch.testing.assert_close(parts.heads[1, head], (scaled * direction).sum(-1), atol=1e-3, rtol=1e-3)


def test_the_parts_of_the_real_model_sum_and_single_out_few_heads(embedded):
    names = [(" Mary", " John"), (" Tom", " Anna")]
    texts = [f"When{a} and{b} went to the store,{b} gave a drink to" for a, b in names]
    parts = circuits.logit_attribution(embedded, texts, names)
    tokens = circuits.answer_tokens(embedded, names).tolist()
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
    raised, lowered = circuits.copy_rates(loaded, tokens, resid, top=30)
    assert raised.shape == lowered.shape == (2, 4)
    assert raised[1, 2] == raised.max() > 0.5
    assert lowered[1, 3] == lowered.max() > 0.5
    others = torch.ones(2, 4, dtype=torch.bool)
    others[1, 2:] = False
    assert raised[others].max() < 0.4  # by chance 0.1


def test_heads_of_the_real_model_copy_names(embedded):
    drawn = prompts.ioi(embedded, n_prompts=20, seed=0)
    resid = hooks.capture(embedded, drawn.prompts, "resid_post", layers=[0], positions={"IO": drawn.positions["IO"]})
    raised, lowered = circuits.copy_rates(embedded, torch.tensor(drawn.io), resid["resid_post"][:, 0, 0])
    chance = 5 / embedded.config.vocab_size
    assert raised.max() > 0.5 > 1000 * chance
    assert (raised * lowered).max() < 0.25  # no head does both


def test_bad_input_is_refused(load_tiny, data, refused):
    rows, answers = data
    loaded = load_tiny("llama")
    with refused("2 answers for 3 prompts"):
        circuits.logit_attribution(loaded, rows, answers[:2])
    with refused("'nnsight'", "'huggingface'"):
        circuits.logit_attribution(load_tiny("llama", "nnsight"), rows, answers)
    capped = models.load(loaded.card.name)
    capped.model.config.final_logit_softcapping = 30.0
    with refused("llama bounds its logits"):
        circuits.logit_attribution(capped, rows, answers)
    with refused("BatchNorm1d", "RMSNorm"):
        circuits.before_norm(torch.nn.BatchNorm1d(4), torch.ones(1, 4), torch.ones(1, 4))
