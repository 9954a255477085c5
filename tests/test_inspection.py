"""Models of many families: what is found in them is true, and what can't be read is refused.

Each mechanism is held against another one that shares nothing with it but the points that were found: packed patches
against whole hooked passes, shared beginnings against transformers' own generation, hooks against TransformerLens.
"""

import pytest
import torch
from shared.tiny import DECODERS, FAMILIES, save_tiny, tiny_config

from helpers import InputError, attribution, hooks, models, patching
from helpers.engine import backends, generation, inspection
from helpers.hooks import SITES, Edit
from helpers.patching import Node

pytestmark = pytest.mark.usefixtures("one_thread")

RANDOM = torch.Generator().manual_seed(0)
BASE = [torch.randint(250, (length,), generator=RANDOM).tolist() for length in (20, 20, 7)]  # beyond 16 and 8 tokens
SOURCE = [[*row[:3], (row[3] + 1) % 250, *row[4:]] for row in BASE]
ANSWERS = [(1, 2), (30, 4), (5, 60)]
BEGINNING = torch.randint(250, (90,), generator=RANDOM).tolist()
by_decoder = pytest.mark.parametrize("name", DECODERS)


def given_sites(loaded):
    return [site for site in SITES if backends.explain_missing(loaded, site) is None]


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3, equal_nan=True)


def untouched(name, folder):
    """The model as transformers alone has it, with the attention that adds linear biases once."""
    import transformers

    attention = "sdpa" if name == "falcon-alibi" else "eager"
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()


@by_decoder
def test_a_model_says_what_it_says_without_us_alone_and_padded(name, load_decoder):
    loaded = load_decoder(name)
    plain = untouched(name, loaded.card.name)
    together = hooks.capture(loaded, BASE, "logits", positions="all")["logits"]
    for i, row in enumerate(BASE):
        with torch.no_grad():
            wanted = plain(torch.tensor([row])).logits[0]
        close(together[i, : len(row)], wanted)
        close(hooks.capture(loaded, [row], "logits", positions="all")["logits"][0], wanted)
        assert wanted.std() > 0.01
    losses = hooks.measure_losses(loaded, BASE[:2])
    wanted = torch.nn.functional.cross_entropy(
        together[:2, :-1].transpose(1, 2), torch.tensor(BASE[:2])[:, 1:], reduction="none"
    )
    close(losses, wanted)


@by_decoder
def test_the_parts_of_each_layer_add_up(name, load_decoder):
    loaded = load_decoder(name)
    sites = given_sites(loaded)
    found = hooks.capture(loaded, BASE[:2], sites, positions="all")
    if "resid_mid" in sites:
        close(found["resid_mid"], found["resid_pre"] + found["attn_out"])
        close(found["resid_post"], found["resid_mid"] + found["mlp_out"])
    close(found["resid_post"], found["resid_pre"] + found["attn_out"] + found["mlp_out"])
    assert found["attn_out"].std() > 1e-3 and found["mlp_out"].std() > 1e-3
    if {"v", "pattern"} <= set(sites):
        value = found["v"].repeat_interleave(loaded.n_heads // loaded.layout.n_kv_heads, dim=3)
        close(found["head_z"], torch.einsum("nlqhk,nlkhd->nlqhd", found["pattern"].transpose(2, 3), value))
    assert "pattern" not in sites or found["pattern"].triu(1).abs().max() == 0


@by_decoder
def test_patches_equal_hooked_passes(name, load_decoder):
    loaded = load_decoder(name)
    sites = given_sites(loaded)
    source = hooks.capture(loaded, SOURCE, sites, positions="all")
    n_last = loaded.n_layers - 1
    nodes = [Node(site, layer, None, position) for site in sites for layer in (0, n_last) for position in (4, -1)]
    nodes += [Node(site, 0, hooks.count_heads(loaded, site) - 1) for site in sites if SITES[site][-1] != "d_model"]
    found = patching.patch_sets(loaded, BASE, SOURCE, [[node] for node in nodes], answers=ANSWERS).values
    for node, values in zip(nodes, found, strict=True):
        for i, row in enumerate(BASE):
            value = source[node.site][i : i + 1, node.layer]
            value = (
                value.transpose(1, 2)[:, : len(row), :, : len(row)] if node.site == "pattern" else value[:, : len(row)]
            )
            value = value if node.head is None else value[:, :, node.head]
            value = value if node.position is None else value[:, node.position]
            with hooks.intervene(loaded, Edit(node.site, node.layer, value, head=node.head, position=node.position)):
                logits = hooks.capture(loaded, [row], "logits")["logits"][0, 0]
            close(values[i], logits[ANSWERS[i][0]] - logits[ANSWERS[i][1]])
    assert (found - found[0]).abs().max() > 1e-3


@by_decoder
def test_paths_equal_two_hooked_passes(name, load_decoder):
    loaded = load_decoder(name)
    if backends.explain_missing(loaded, "q"):
        receivers = "logits"
    else:
        receivers = [Node("q", 1, 1, -1), Node("k", 1, 0)]
    row, answer = BASE[0], ANSWERS[0]
    found = patching.patch_paths(loaded, [row], [SOURCE[0]], receivers, answers=[answer]).values
    base, source = (hooks.capture(loaded, [prompt], "head_z", positions="all")["head_z"] for prompt in (row, SOURCE[0]))
    frozen = [Edit("head_z", layer, base[:, layer]) for layer in range(2)]
    for head in range(loaded.n_heads):
        edits = [*frozen, Edit("head_z", 0, source[:, 0, :, head], head=head)]
        with hooks.intervene(loaded, *edits):
            reached = hooks.capture(loaded, [row], "logits" if receivers == "logits" else ["q", "k"], positions="all")
        if receivers != "logits":
            edits = [
                Edit("q", 1, reached["q"][:, 1, -1, 1], head=1, position=-1),
                Edit("k", 1, reached["k"][:, 1, :, 0], head=0),
            ]
            with hooks.intervene(loaded, *edits):
                reached = hooks.capture(loaded, [row], "logits", positions="all")
        logits = reached["logits"][0, -1]
        close(found[0, head, 0], logits[answer[0]] - logits[answer[1]])


@by_decoder
def test_beginnings_that_are_shared_change_no_token(name, load_decoder):
    loaded = load_decoder(name)
    plain = untouched(name, loaded.card.name)
    begun = BEGINNING[: min(40, loaded.context_length or 40)]
    rows = [[*begun, *row[-3:]] for row in BASE] + [[*begun, 5]]
    wide = min(generation.find_window(loaded.config), generation.find_original_length(loaded.config))
    if wide < 50:  # then nothing is shared, whatever is asked for
        assert generation.explain_unshareable(loaded, rows, 6)
    for prompts in (rows, [row[:2] + row[3:8] for row in BASE]):
        new = hooks.generate(loaded, prompts, max_new_tokens=6)
        for row, tokens in zip(prompts, new, strict=True):
            with torch.no_grad():
                wanted = plain.generate(
                    torch.tensor([row]), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None
                )
            assert tokens == generation.cut_at_end(loaded, wanted[0, len(row) :].tolist(), ())


@by_decoder
def test_half_precision_hides_nothing(name, load_decoder):
    loaded = load_decoder(name)
    half = models.load(loaded.card.name, dtype="bfloat16").layout
    assert half.layers == loaded.layout.layers and half.missing == loaded.layout.missing
    assert half.logit_scale == pytest.approx(loaded.layout.logit_scale, rel=1e-2)


def test_nor_in_a_real_model_whose_stream_is_large_in_places(embedded):
    half = models.load(embedded.card.name, dtype="bfloat16").layout
    assert half == embedded.layout and len(half.layers) == 30


@by_decoder
def test_a_layout_is_found_once_for_given_weights(name, load_decoder, monkeypatch):
    loaded = load_decoder(name)
    monkeypatch.setattr(inspection, "inspect", lambda model: pytest.fail("looked again"))
    again = inspection.find_layout(loaded.model, loaded.weights_sha256)
    assert again == loaded.layout


@by_decoder
def test_what_the_parts_write_sums_to_the_logit_difference(name, load_decoder):
    loaded = load_decoder(name)
    logits = hooks.capture(loaded, BASE, "logits")["logits"][:, 0].gather(1, torch.tensor(ANSWERS))
    try:
        parts = attribution.attribute_logits(loaded, BASE, ANSWERS)
    except InputError:
        assert name == "gemma2"  # which bounds its logits
    else:
        close(parts.total, logits[:, 0] - logits[:, 1])


MISSING = {
    "llama4_text": {"q", "k"},
    "granite_swa": {"pattern"},
    "gpt2": {"rot_q", "rot_k"},
    "opt": {"rot_q", "rot_k"},
    "bloom": {"rot_q", "rot_k"},
    "mpt": {"rot_q", "rot_k"},
    "gpt_neo": {"rot_q", "rot_k"},
    "falcon-alibi": {"rot_q", "rot_k"},
    "gpt_neox": {"resid_mid"},
    "gptj": {"resid_mid"},
    "falcon": {"resid_mid"},
    "falcon-grouped": {"resid_mid"},
    "stablelm-parallel": {"resid_mid"},
    "cohere": {"resid_mid"},
    "deepseek_v3": {"q", "k", "v"},
}


@by_decoder
def test_only_what_a_family_does_not_have_is_missing(name, load_decoder, refused):
    loaded = load_decoder(name)
    assert set(loaded.layout.missing) == MISSING.get(name, set())
    for site in loaded.layout.missing:
        with refused(site, loaded.layout.model_type):
            hooks.capture(loaded, BASE, site)


@pytest.mark.rare
@pytest.mark.parametrize("name", [name for name in DECODERS if name not in FAMILIES])
def test_the_bridge_agrees_wherever_it_has_a_hook(name, load_decoder):
    loaded = load_decoder(name)
    try:
        bridge = load_decoder(name, "transformer_lens")
    except InputError as error:
        pytest.skip(str(error))
    sites = given_sites(bridge)
    ours, theirs = (hooks.capture(one, BASE, [*sites, "logits"], positions="all") for one in (loaded, bridge))
    for site in [*sites, "logits"]:
        close(theirs[site], ours[site])
    assert {"resid_pre", "resid_post"} <= set(sites), bridge.layout.hooks
    for site in sites:
        edit = Edit(site, 1, 0.5, "scale", position=3)
        changed = []
        for one in (loaded, bridge):
            with hooks.intervene(one, edit):
                changed.append(hooks.capture(one, BASE, "logits")["logits"])
        close(*changed)


@pytest.mark.rare
@pytest.mark.parametrize("name", [name for name in DECODERS if name not in FAMILIES])
def test_nnsight_agrees(name, load_decoder):
    loaded, traced = load_decoder(name), load_decoder(name, "nnsight")
    sites = given_sites(traced)
    ours, theirs = (hooks.capture(one, BASE, [*sites, "logits"], positions="all") for one in (loaded, traced))
    for site in [*sites, "logits"]:
        close(theirs[site], ours[site])
    assert len(sites) >= len(given_sites(loaded)) - 3
    for site in sites:
        changed = []
        for one in (loaded, traced):
            with hooks.intervene(one, Edit(site, 1, 0.5, "scale", position=3)):
                changed.append(hooks.capture(one, BASE, "logits")["logits"])
        close(*changed)


REASONS = {
    "deepseek_v32": ["hands indices to its attention"],
    "bert": ["sees what follows"],
    "bert-causal": ["norm after the sum"],
    "opt-350m": ["norm after the sum"],
    "mamba": ["no attention"],
    "lfm2": ["layer 1", "attention 0 times"],
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_no_decoder_of_this_kind_is_refused_in_a_sentence(name, tmp_path, refused):
    save_tiny(name, tmp_path / name)
    with refused(repr(tiny_config(name).model_type), *REASONS[name], "legal"):
        models.load(str(tmp_path / name))


def test_an_encoder_decoder_is_refused_in_a_sentence(tmp_path, refused):
    import transformers

    for name in ("BartForConditionalGeneration", "T5ForConditionalGeneration"):
        config = (
            tiny_config("bart")
            if name.startswith("Bart")
            else transformers.T5Config(vocab_size=300, d_model=16, d_ff=32, d_kv=4, num_layers=1, num_heads=4)
        )
        getattr(transformers, name)(config).save_pretrained(tmp_path / name)
        with refused("encoder", "legal"):
            models.load(str(tmp_path / name))


def test_a_model_whose_block_does_more_than_its_parts_is_refused(load_decoder, refused, monkeypatch):
    """A third part that nobody knows of: what is left over in the residual stream."""
    model = load_decoder("llama").model
    block = type(model.model.layers[0])
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda self, *args, **options: forward(self, *args, **options) + 0.1)
    with refused("layer 0", "residual stream"):
        inspection.inspect(model)


def test_a_layer_whose_attention_writes_nothing_is_read_as_the_others_are(load_decoder, tmp_path):
    model = load_decoder("llama").model
    weights = model.model.layers[1].self_attn.o_proj.weight
    before = weights.clone()
    weights.zero_()
    layout = inspection.inspect(model)
    weights.copy_(before)
    assert not layout.missing and not any(layer.parallel for layer in layout.layers)


def test_weights_that_give_no_numbers_are_refused_as_such(load_decoder, refused):
    model = load_decoder("llama").model
    weights = model.model.layers[1].mlp.down_proj.weight
    before = weights.clone()
    weights[0, 0] = torch.nan
    with refused("gives NaN or infinity", "legal"):
        inspection.inspect(model)
    weights.copy_(before)


def test_a_decoder_that_counts_positions_itself_shares_no_beginning(tmp_path):
    import transformers

    config = transformers.MBartConfig(
        vocab_size=300,
        d_model=16,
        decoder_layers=2,
        encoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        is_decoder=True,
        is_encoder_decoder=False,
        add_cross_attention=False,
    )
    transformers.MBartForCausalLM(config).save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path))
    assert "counts positions itself" in generation.explain_unshareable(loaded, [[1, 2]], 1)
    assert not hooks.capture(loaded, BASE, "resid_post")["resid_post"].isnan().any()


@pytest.mark.parametrize("text", ["[]", "{}", '{"layers": []}', "null", "3", '{"layers": null, "hooks": {}}', "{"])
def test_a_cache_that_holds_something_else_is_written_anew(text, load_decoder, tmp_path, monkeypatch):
    loaded = load_decoder("gpt2")
    monkeypatch.setattr(inspection, "_locate_cache", lambda: tmp_path)
    assert inspection.find_layout(loaded.model, "some weights") == loaded.layout
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    file.write_text(text)
    assert inspection.find_layout(loaded.model, "some weights") == loaded.layout
    assert file.read_text() == whole


@pytest.mark.parametrize("name", ["olmo2", "gemma3_text", "gpt2"])
def test_logits_are_taken_apart_in_half_precision_too(name, load_decoder):
    half = models.load(load_decoder(name).card.name, dtype="bfloat16")
    parts = attribution.attribute_logits(half, BASE, ANSWERS)
    logits = hooks.capture(half, BASE, "logits")["logits"][:, 0].gather(1, torch.tensor(ANSWERS))
    torch.testing.assert_close(parts.total, logits[:, 0] - logits[:, 1], atol=0.2, rtol=0.1)


def test_a_norm_that_is_none_is_refused(load_decoder, refused):
    loaded = load_decoder("llama")
    with refused("Tanh", "LayerNorm"):
        attribution.pull_through_norm(torch.nn.Tanh(), torch.randn(2, 16), torch.randn(2, 16))
    assert loaded.layout.final_norm == "norm"
