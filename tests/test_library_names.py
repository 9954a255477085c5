"""Llama's names for modules of other families."""

import pytest
from shared.tiny import DECODERS

from studies.libraries import names

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

OTHERWISE = {
    **dict.fromkeys(("gptj", "bloom", "falcon", "falcon-grouped", "falcon-alibi", "mpt", "gpt_neo"), "the layer of"),
    "gpt_oss": "the MLP of",
    "opt": "the MLP of",
}


@pytest.mark.parametrize("name", DECODERS)
def test_under_llamas_names_a_trace_finds_the_modules_of_any_family_or_says_why_not(name, load_decoder):
    from nnsight import TransformersModel

    loaded = load_decoder(name)
    why_not = names.explain_difference(loaded)
    if why_not is not None:
        assert why_not.startswith(OTHERWISE[name]) and loaded.layout.model_type in why_not
        return
    assert name not in OTHERWISE
    renames = names.gather_renames(loaded)
    assert bool(renames) == (name.partition("-")[0] in ("gpt2", "gpt_neox", "llama4_text"))
    view = TransformersModel(
        loaded.model, tokenizer=loaded.tokenizer, task="text-generation", device="cpu", rename=renames
    )
    layer, block = view.model.layers[1], loaded.model.base_model.get_submodule(loaded.layout.blocks)[1]
    assert layer._module is block
    assert layer.self_attn._module is block.get_submodule(loaded.layout.layers[1].attention)
    assert layer.self_attn.o_proj._module is block.get_submodule(loaded.layout.layers[1].points["head_z"].module)
    assert layer.mlp._module is getattr(block, "mlp", None) or name == "llama4_text"
    assert view.model.norm._module is loaded.model.base_model.get_submodule(loaded.layout.final_norm)
    assert view.lm_head._module is loaded.model.get_output_embeddings()
