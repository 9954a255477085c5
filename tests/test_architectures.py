import dataclasses

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from shared import by_hand
from shared.tiny import FAMILIES, tiny_config

from helpers import hooks
from helpers.engine import architectures, backends

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = torch.randint(300, (13,), generator=torch.Generator().manual_seed(0))


def sites_by_hand(loaded):
    seen = {}
    by_hand.run(loaded.model, TOKENS, lambda site, layer, tensor: seen.update({(site, layer): tensor}))
    return seen


def assert_close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_pieces_of_a_layer_are_those_computed_by_hand(tiny):
    seen = sites_by_hand(tiny)
    tables = architectures.compute_rotary_tables(tiny.model, len(TOKENS))
    for i, (layer, table) in enumerate(zip(architectures.list_layers(tiny.model), tables, strict=True)):
        q, k, v = layer.qkv(seen["resid_pre", i])
        for site, found in zip("qkv", (q, k, v), strict=True):
            assert_close(found, seen[site, i])
        for site, found in zip(("rot_q", "rot_k"), layer.rotate(q, k, table), strict=True):
            assert_close(found, seen[site if table is not None else site[-1], i])
        assert_close(layer.attn_out(seen["head_z", i]), seen["attn_out", i])
        assert layer.parallel == (("resid_mid", i) not in seen)
        assert_close(layer.mlp_out(seen["resid_pre" if layer.parallel else "resid_mid", i]), seen["mlp_out", i])


def test_leading_axes_of_the_pieces_are_free(tiny):
    layer = architectures.list_layers(tiny.model)[0]
    resid = torch.randn((2, 3, 16), generator=torch.Generator().manual_seed(0))
    for found, one in zip(layer.qkv(resid), layer.qkv(resid[1, 2]), strict=True):
        assert_close(found[1, 2], one)
    assert_close(layer.mlp_out(resid)[1, 2], layer.mlp_out(resid[1, 2]))
    z = layer.qkv(resid)[0]
    assert_close(layer.attn_out(z)[1, 2], layer.attn_out(z[1, 2]))


@given(family=st.sampled_from(["gpt2", "gpt_neox"]), seed=st.integers(0, 100))
def test_joining_is_the_inverse_of_splitting(load_tiny, family, seed):
    layer = architectures.list_layers(load_tiny(family).model)[1]
    fused = torch.randn((5, 48), generator=torch.Generator().manual_seed(seed))
    parts = layer.split_qkv(fused)
    assert [part.shape[-1] for part in parts] == [16, 16, 16]
    assert torch.equal(layer.join_qkv(list(parts)), fused)


def test_only_gemmas_local_layer_has_a_window(tiny):
    windows = [layer.sliding_window for layer in architectures.list_layers(tiny.model)]
    assert windows == ([8, None] if tiny.config.model_type == "gemma3_text" else [None, None])


def test_rotary_tables_do_not_depend_on_how_many_positions_are_asked_for(tiny):
    short, long = (architectures.compute_rotary_tables(tiny.model, n) for n in (3, 40))
    for a, b in zip(short, long, strict=True):
        assert (a is None) == (b is None) == (tiny.config.model_type == "gpt2")
        if a is not None:
            assert all(torch.equal(one, other[:3]) for one, other in zip(a, b, strict=True))


def test_gpt_neox_without_parallel_blocks_has_a_resid_mid(load_tiny):
    config = tiny_config("gpt_neox")
    config.use_parallel_residual = False
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM._from_config(config, attn_implementation="eager").eval()
    loaded = dataclasses.replace(load_tiny("gpt_neox"), model=model.requires_grad_(False))
    assert not architectures.is_parallel(config) and backends.explain_missing(loaded, "resid_mid") is None
    seen = sites_by_hand(loaded)
    captured = hooks.capture(loaded, TOKENS[None], ["resid_mid", "mlp_out", "resid_post"], positions="all")
    for site in captured.values:
        for i in (0, 1):
            assert_close(captured[site][0, i], seen[site, i])
    edit = hooks.Edit("resid_mid", 0, torch.randn(16, generator=torch.Generator().manual_seed(1)), position=4)
    with hooks.intervene(loaded, edit):
        logits = hooks.capture(loaded, TOKENS[None], "logits", positions="all")["logits"]
    assert_close(logits[0], by_hand.run(model, TOKENS, by_hand.edits(edit)))


@pytest.mark.parametrize("family", ["bert", "opt", "mamba"])
def test_an_unknown_family_is_refused_by_its_name_with_those_that_are_known(family, refused):
    with refused(repr(family), *FAMILIES):
        architectures.find_family(tiny_config(family))
