# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Do TransformerLens and nnsight see the same model?
#
# Two libraries open a model while it runs: TransformerLens {cite:p}`nanda2022transformerlens` gives every model the same
# names, nnsight {cite:p}`fiottokaufman2024nnsight` leaves a model as it is and scales to one that runs elsewhere. Here
# {glue:text}`n_operations` operations are done in both and compared, number by number (all agree:
# **{glue:text}`claim-operations-agree`**). Both have changed a lot, and old habits fail in them, some without a word; each of
# those is shown beside the way that works. What the rest of this project reads from a large model stands on this page.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to load a model in nnsight, and to trace, save, change and generate with it;
# - to say the same thing in TransformerLens and in nnsight, and to check that it is the same;
# - to know the mistakes that raise an error from those that give you a wrong number.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = ""  # "float32", "bfloat16" or "float16"; "" for the registry's
device: str = "cpu"  # cpu, or cuda where there is a GPU
device_map: str = ""  # "auto", "balanced" or "sequential" spreads one of the loads over devices; "" for none
remote: bool = False  # True runs one trace on NDIF; needs a key in the environment variable NDIF_API_KEY
prompt: str = "Mary and John met, and John thanked"  # a text of at least four tokens; its last 24 are used
other_prompt: str = "Mary and John met, and Mary thanked"  # as long; of the longer one the beginning is cut
n_new_tokens: int = 12  # generated after the prompt, 2 to 40
n_measured: int = 32  # prompts in the comparison of costs, 2 to 256
n_rounds: int = 3  # of that comparison, 2 to 50
seed: int = 0  # of all sampling, 0 to 999999

# %%
import dataclasses
import time

import nnsight
import torch
from helpers import InputError, claims, hooks, models, plots, runs
from nnsight import TransformersModel
from nnsight.schema.config import CONFIG
from studies.libraries import names
from transformer_lens.model_bridge import TransformerBridge

run = runs.begin("day8-9_nnsight_setup", globals())
plain = run.loaded

# %% tags=["hide-input"]
if plain.n_layers < 2:
    run.leave("the page needs a model of at least 2 layers")
if reason := names.explain_difference(plain):
    run.leave(reason)
RENAMES = names.gather_renames(plain)
if remote and not CONFIG.API.APIKEY:
    raise InputError(
        "remote = True needs a key of NDIF, and the environment variable "
        "NDIF_API_KEY holds none: set it, or take remote = False"
    )
if remote and (plain.card.hub_id is None or plain.card.embedded):
    raise InputError(
        f"remote = True needs a model of the hub, and {model_name!r} is none: "
        "legal are names such as 'qwen2.5-7b-instruct'"
    )
texts = (prompt, other_prompt)
start = [] if plain.start_token_id is None else [plain.start_token_id]
rows = [plain.encode(text)[len(start) :] for text in texts]
n_kept = min(24, *map(len, rows))  # few, as some tokenizers split into bytes
if n_kept < 4:
    raise InputError(f"the prompts have {n_kept} tokens: legal is at least 4")
ids = torch.tensor([start + row[-n_kept:] for row in rows], device=device)
n_tokens = ids.shape[1]
LAYER, HEAD = (plain.n_layers - 1) // 2, 1
d_head = plain.layout.d_head


def difference(one, other):
    """The largest absolute difference of two tensors."""
    pair = (one.detach().cpu().float(), other.detach().cpu().float())
    if pair[0].shape != pair[1].shape:
        raise InputError(f"shapes {[list(part.shape) for part in pair]} differ")
    return float((pair[0] - pair[1]).abs().max()) or 0


def exactly(value, n, of):
    """A maximum over a known set: there is nothing to sample, so no width."""
    return claims.Estimate(value, value, value, n, of)


qwen = models.REGISTRY["qwen2.5-7b-instruct"]
run.value("layer", LAYER)
run.value("head", HEAD)
run.value("n_layers", plain.n_layers)
run.value("n_tokens", n_tokens)
run.value("qwen_gib", 2 * qwen.parameters / 2**30)
run.value(
    "where",
    f"{device}, "
    + (f"device_map {device_map!r}" if device_map else "no device_map"),
)

# %% [markdown]
# ## Load it
#
# nnsight's `TransformersModel` takes a folder, a hub id, or a model that is in memory already. Four of its arguments decide
# whether its numbers can be compared with anybody else's:
#
# - `dtype`: the default is the checkpoint's own, which for Qwen2.5 is bfloat16;
# - `attn_implementation`: only `"eager"` computes attention patterns that can be read;
# - `device`: without it `transformers` takes the first GPU it finds, whatever the model was loaded on; `device_map="auto"`
#   spreads a model over several GPUs instead, and what does not fit over memory and disk (give one or the other);
# - `dispatch=True`: load the weights now. Without it the modules are there, but empty until the first pass.

# %%
folder = str(models.fetch(model_name))
precision = getattr(torch, plain.dtype)
place = {"device_map": device_map} if device_map else {"device": device}


# %%
def nn_load():
    loaded = TransformersModel(
        folder,
        task="text-generation",
        tokenizer=plain.tokenizer,
        dtype=precision,
        attn_implementation="eager",
        dispatch=True,
        **place,
    )
    with loaded.trace(ids):
        logits = loaded.output.logits.save()
    return logits


# %% [markdown]
# This book reads many models on three backends, so it loads each once, checks the files against their hashes, and wraps it.
# `models.load(name, backend="nnsight")` does that; below is the same by hand, because one argument more, `rename`, gives
# the modules of any family the names that Llama's have. `bridge` is TransformerLens' view of the same weights.

# %%
lm = TransformersModel(
    plain.model,
    tokenizer=plain.tokenizer,
    task="text-generation",
    device=device,
    rename=RENAMES,
)
nn = dataclasses.replace(plain, model=lm, backend="nnsight")
try:
    tl = models.view(plain, "transformer_lens")
except InputError as error:
    run.leave(str(error))
bridge = tl.model
print(lm.model.layers)

# %% [markdown]
# What is printed is the tree of modules. Its names are the names in a trace: `lm.model.layers[3].mlp.output`.
#
# **Qwen2.5-7B-Instruct** is `model_name=qwen2.5-7b-instruct device=cuda`. In bfloat16 its weights are
# {glue:text}`qwen_gib` GiB, which this page holds once, and in the row "load a model" for a moment twice. This run:
# {glue:text}`where`.
#
# **On NDIF** a trace runs on a model that others have loaded: you build the model without `dispatch`, so that you hold no
# weights, and say `remote=True` in the trace. The key comes from the environment variable `NDIF_API_KEY`, never from a
# parameter, since parameters are written into the record. What can be rehearsed with no network at all is the packing:
# `remote="local"` serialises the block as for the server, reads it back with this machine's own modules hidden, and
# runs that.

# %%
import sys

paths = list(sys.path)
with lm.trace(ids, remote="local"):
    rehearsed = lm.model.layers[LAYER].output.save()
sys.path[:] = paths  # the rehearsal leaves them in another order
with lm.trace(ids):
    stream = lm.model.layers[LAYER].output.save()
rehearsal = difference(rehearsed, stream)

# %%
outcome = "not run"
if remote:
    far = TransformersModel(  # no weights here, and no revision: NDIF's own
        plain.card.hub_id,
        task="text-generation",
        tokenizer=plain.tokenizer,
        rename=RENAMES,
    )
    with far.trace(ids.cpu(), remote=True):
        there = far.model.layers[LAYER].output.save()
    apart = difference(there.reshape(stream.shape), stream)
    outcome = f"differs by {claims.shorten(apart)} from the model here"

# %% tags=["hide-input"]
run.value("remote_outcome", outcome)
run.value("rehearsal", rehearsal)
run.claim(
    "a-packed-block-gives-the-same",
    "A block that was packed as for a server, and unpacked, gives the same residual stream.",
    rule="value < 0.0001",
    estimate=exactly(rehearsal, stream.numel(), "numbers"),
    tolerance=1e-4,
)

# %% [markdown]
# Packed and unpacked, the block gives the same stream up to {glue:text}`rehearsal`
# (**{glue:text}`claim-a-packed-block-gives-the-same`**). NDIF itself, in this run: {glue:text}`remote_outcome`.

# %% [markdown]
# ## Trace, save, change, generate
#
# The block under `lm.trace` is not run where it stands. nnsight takes its source and runs it *beside* the forward pass: it
# waits at `.output` until the module has produced it, looks, may change it, and lets the pass go on. What is marked with
# `.save()` is there afterwards, as an ordinary tensor.

# %%
with lm.trace(ids):
    stream = lm.model.layers[LAYER].output.save()
    logits = lm.output.logits.save()

with lm.trace(ids):
    lm.model.layers[LAYER].mlp.output[:] = 0
    without = lm.output.logits.save()

print(list(stream.shape), list(logits.shape))
print(f"without that MLP a logit moves by {difference(logits, without):.2f}")

# %% [markdown]
# `lm.generate` traces all passes of a generation; the loop over `tracer.iter` says in which of them a line takes place. A
# list that is filled inside has to be saved like anything else.

# %%
with lm.generate(
    ids[:1],
    max_new_tokens=n_new_tokens,
    min_new_tokens=n_new_tokens,
    do_sample=False,
) as tracer:
    newest = nnsight.save([])
    for _ in tracer.iter[:n_new_tokens]:
        newest.append(lm.model.layers[LAYER].output[:, -1])
    written = tracer.result.save()

newest = torch.cat(newest)
print(list(newest.shape), repr(plain.tokenizer.decode(written[0, n_tokens:])))

# %% [markdown]
# ## Do everything twice
#
# Each operation below is two small functions, `tl_…` for the bridge and `nn_…` for nnsight; `ids` are two prompts of
# {glue:text}`n_tokens` tokens, `LAYER` is {glue:text}`layer` (of {glue:text}`n_layers`, from zero), `HEAD` is
# {glue:text}`head`. The bridge is in *raw mode*, as it was loaded: nothing folded, nothing centred. Prompts go in as token
# ids, so that neither library adds a start token.
#
# **What we expect.** The bridge calls the modules of `transformers`, and nnsight does too. So there should be no
# difference beyond rounding, at any row. Two no-ops agree as well, though. So every row that changes the model must
# also move its logits.


# %%
block, layer = f"blocks.{LAYER}", lm.model.layers[LAYER]


def cached(site):
    """What the bridge keeps under one name."""
    _, cache = bridge.run_with_cache(ids, names_filter=site)
    return cache[site]


# %%
def tl_load():
    loaded = TransformerBridge.boot_transformers(
        folder, device=device, dtype=precision
    )
    return loaded(ids)


# %%
def tl_tokens():
    return bridge.to_tokens(prompt, prepend_bos=False)


def nn_tokens():
    text = lm.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    return text["input_ids"]


# %%
def tl_logits():
    return bridge(ids)


def nn_logits():
    with lm.trace(ids):
        logits = lm.output.logits.save()
    return logits


# %% [markdown]
# **Read the residual stream, and what is added to it.** Here a layer gives a tensor, its attention a tuple of two: what it
# adds, and the pattern.


# %%
def tl_before():
    return cached(f"{block}.hook_resid_pre")


def nn_before():
    with lm.trace(ids):
        stream = layer.input.save()
    return stream


# %%
def tl_after():
    site = f"{block}.hook_resid_post"
    _, cache = bridge.run_with_cache(ids, names_filter=site)
    return cache[site]


def nn_after():
    with lm.trace(ids):
        stream = layer.output.save()
    return stream


# %%
def tl_attention():
    return cached(f"{block}.hook_attn_out")


def nn_attention():
    with lm.trace(ids):
        added = layer.self_attn.output[0].save()
    return added


# %%
def tl_mlp():
    return cached(f"{block}.hook_mlp_out")


def nn_mlp():
    with lm.trace(ids):
        added = layer.mlp.output.save()
    return added


# %%
def tl_every():
    _, cache = bridge.run_with_cache(
        ids, names_filter=lambda site: site.endswith("hook_resid_post")
    )
    return cache.stack_activation("resid_post")


def nn_every():
    with lm.trace(ids):
        streams = torch.stack([each.output for each in lm.model.layers]).save()
    return streams


# %% [markdown]
# **Read inside attention.** Patterns, queries and the heads' outputs *z* are numbered by query head, keys and values by
# key/value head: with grouped queries there are fewer of those. nnsight sees what the modules pass on, so heads have to be
# unfolded by hand, and *z* is the *input* of the output projection.


# %%
def tl_pattern():
    return cached(f"{block}.attn.hook_pattern")


def nn_pattern():
    with lm.trace(ids):
        pattern = layer.self_attn.output[1].save()
    return pattern


# %%
def tl_queries():
    return cached(f"{block}.attn.hook_q")


def nn_queries():
    with lm.trace(ids):
        flat = layer.self_attn.q_proj.output
        queries = flat.unflatten(-1, (-1, d_head)).save()
    return queries


# %%
def tl_values():
    return cached(f"{block}.attn.hook_v")


def nn_values():
    with lm.trace(ids):
        flat = layer.self_attn.v_proj.output
        values = flat.unflatten(-1, (-1, d_head)).save()
    return values


# %%
def tl_z():
    return cached(f"{block}.attn.hook_z")


def nn_z():
    with lm.trace(ids):
        flat = layer.self_attn.o_proj.input
        z = flat.unflatten(-1, (-1, d_head)).save()
    return z


# %% [markdown]
# **Read the end.** For the logit lens the stream of a middle layer goes through the model's own last norm and unembedding.
# In nnsight modules can be called inside a trace.


# %%
def tl_final():
    return cached("ln_final.hook_in")


def nn_final():
    with lm.trace(ids):
        stream = lm.model.norm.input.save()
    return stream


# %%
def tl_lens():
    stream = cached(f"{block}.hook_resid_post")
    return bridge.unembed(bridge.ln_final(stream))


def nn_lens():
    with lm.trace(ids):
        stream = layer.output
        lens = lm.lm_head(lm.model.norm(stream)).save()
    return lens


# %% [markdown]
# **Change something.** A hook of the bridge gives back what is to go on; in nnsight one assigns, in place or anew.


# %%
def tl_zero():
    def zero(added, hook):
        return torch.zeros_like(added)

    site = f"{block}.hook_mlp_out"
    return bridge.run_with_hooks(ids, fwd_hooks=[(site, zero)])


def nn_zero():
    with lm.trace(ids):
        layer.mlp.output[:] = 0
        logits = lm.output.logits.save()
    return logits


# %%
vector = (stream[0, -1] - stream[1, -1]).detach().clone()


def tl_add():
    site = f"{block}.hook_resid_post"
    push = (site, lambda stream, hook: stream + vector)
    return bridge.run_with_hooks(ids, fwd_hooks=[push])


def nn_add():
    with lm.trace(ids):
        layer.output = layer.output + vector
        logits = lm.output.logits.save()
    return logits


# %%
def tl_head():
    def silence(z, hook):
        z[:, :, HEAD] = 0
        return z

    site = f"{block}.attn.hook_z"
    return bridge.run_with_hooks(ids, fwd_hooks=[(site, silence)])


def nn_head():
    with lm.trace(ids):
        flat = layer.self_attn.o_proj.input
        flat.unflatten(-1, (-1, d_head))[:, :, HEAD] = 0
        logits = lm.output.logits.save()
    return logits


# %% [markdown]
# A patch takes an activation from one prompt to another. The bridge does it in two passes. nnsight can do it in one: both
# prompts run as one batch, each `invoke` sees its own rows, and a *barrier* makes one wait until the other has the value.


# %%
def tl_patch():
    site = f"{block}.hook_resid_post"
    _, cache = bridge.run_with_cache(ids[1:], names_filter=site)

    def patch(stream, hook):
        stream[:, -1] = cache[site][:, -1]
        return stream

    return bridge.run_with_hooks(ids[:1], fwd_hooks=[(site, patch)])


# %%
def nn_patch():
    with lm.trace() as tracer:
        both = tracer.barrier(2)
        with tracer.invoke(ids[1:]):
            donor = layer.output[:, -1]
            both()
        with tracer.invoke(ids[:1]):
            both()
            layer.output[:, -1] = donor
            logits = lm.output.logits.save()
    return logits


# %% [markdown]
# **Go backwards.** The weights are frozen, so the gradient has to be asked for where it is wanted. Here it is that of the
# largest logit at the last token.


# %%
def tl_gradient():
    kept = []

    def watch(stream, hook):
        kept.append(stream.requires_grad_(True))
        stream.retain_grad()

    site = f"{block}.hook_resid_post"
    logits = bridge.run_with_hooks(ids, fwd_hooks=[(site, watch)])
    logits[:, -1].amax(-1).sum().backward()
    return kept[0].grad


# %%
def nn_gradient():
    with lm.trace(ids):
        stream = layer.output
        stream.requires_grad_(True)
        best = lm.output.logits[:, -1].amax(-1).sum()
        with best.backward():
            gradient = stream.grad.save()
    return gradient


# %% [markdown]
# **Stop, pad, generate.** Prompts of different length in one batch are nnsight's business: it pads on the left.


# %%
def tl_stop():
    return bridge(ids, stop_at_layer=LAYER + 1)


def nn_stop():
    with lm.trace(ids) as tracer:
        stream = layer.output.save()
        tracer.stop()
    return stream


# %%
def tl_lengths():
    shorter, longer = bridge(ids[:1, :-2]), bridge(ids[1:])
    return torch.cat([shorter[:, -1], longer[:, -1]])


def nn_lengths():
    with lm.trace() as tracer:
        with tracer.invoke(ids[:1, :-2]):
            shorter = lm.output.logits[:, -1].save()
        with tracer.invoke(ids[1:]):
            longer = lm.output.logits[:, -1].save()
    return torch.cat([shorter, longer])


# %%
n = n_new_tokens
greedy = {"max_new_tokens": n, "do_sample": False}
tl_greedy = greedy | {"stop_at_eos": False, "return_type": "tokens"}
nn_greedy = greedy | {"min_new_tokens": n}


def tl_generate():
    return bridge.generate(ids[:1], **tl_greedy, verbose=False)


def nn_generate():
    with lm.generate(ids[:1], **nn_greedy) as tracer:
        tokens = tracer.result.save()
    return tokens


# %%
def tl_steer():
    site = f"{block}.hook_resid_post"
    push = (site, lambda stream, hook: stream + vector)
    with bridge.hooks(fwd_hooks=[push]):
        return bridge.generate(ids[:1], **tl_greedy, verbose=False)


def nn_steer():
    with lm.generate(ids[:1], **nn_greedy) as tracer:
        for _ in tracer.iter[:n]:
            layer.output += vector
        tokens = tracer.result.save()
    return tokens


# %% [markdown]
# Now all of them are run, and the code in the table is read from the functions that ran.

# %% tags=["hide-input"]
OPERATIONS = {
    "load": "load a model and run it",
    "tokens": "turn a text into tokens",
    "logits": "logits",
    "before": "residual stream before a layer",
    "after": "residual stream after a layer",
    "attention": "attention output",
    "mlp": "MLP output",
    "every": "residual stream after every layer",
    "pattern": "attention pattern (by query head)",
    "queries": "queries (by query head), before any rotation",
    "values": "values (by key/value head)",
    "z": "outputs of heads, z (by query head)",
    "final": "what the final norm reads",
    "lens": "logit lens at a layer",
    "zero": "zero-ablate an MLP",
    "add": "add a vector to the residual stream",
    "head": "ablate one head",
    "patch": "patch the last token from another prompt",
    "gradient": "gradient with respect to the residual stream",
    "stop": "stop early",
    "lengths": "prompts of different length",
    "generate": "generate greedily",
    "steer": "generate, with a vector added at each step",
}
fused = not hasattr(lm.model.layers[LAYER].self_attn, "v_proj")
done = [
    name for name in OPERATIONS if not (fused and name in ("queries", "values"))
]

# %%
theirs = {name: globals()[f"tl_{name}"]().detach() for name in done}
ours = {name: globals()[f"nn_{name}"]().detach() for name in done}
differences = {name: difference(theirs[name], ours[name]) for name in done}

# %% tags=["hide-input"]
import inspect
import textwrap

from IPython.display import HTML, display
from IPython.utils.capture import capture_output


def body(function):
    """The lines of a function, less its first."""
    lines = inspect.getsource(function).splitlines()
    return textwrap.dedent("\n".join(lines[1:])).strip()


baseline = difference(ours["before"], ours["after"])
moved = {
    name: difference(ours[name], ours["logits"])
    for name in ("zero", "add", "head")
}
moved["patch"] = difference(ours["patch"], ours["logits"][:1])
largest = max(differences.values())
n_steered = int((ours["steer"] != ours["generate"]).sum())
with capture_output() as shown:
    run.table(
        "operations",
        [
            {
                "operation": OPERATIONS[name],
                "TransformerLens": body(globals()[f"tl_{name}"]),
                "nnsight": body(globals()[f"nn_{name}"]),
                "largest difference": differences[name],
            }
            for name in done
        ],
        caption=f"Each operation in both libraries, the code that was run, and the largest absolute difference of the two results. The largest of all: {claims.shorten(largest)}; reading one layer off would give {claims.shorten(baseline)}.",
    )
style = """
#table-operations table { table-layout: fixed; width: 100%; min-width: 42rem; font-size: 0.8rem; }
#table-operations :is(th, td) { padding: 0.3rem 0.4rem; }
#table-operations :is(th, td):nth-child(1) { width: 14%; }
#table-operations :is(th, td):nth-child(4) { width: 11%; }
#table-operations td:is(:nth-child(2), :nth-child(3)) { white-space: pre-wrap; overflow-wrap: anywhere; font-family: monospace; font-size: 0.66rem; }
"""
table = shown.outputs[0].data["text/html"].replace("\\n", "\n")
display(HTML(f"<style>{style}</style>{table}"))
run.value("n_operations", len(done))
run.value("largest_difference", largest)
run.value("n_identical", sum(apart == 0 for apart in differences.values()))
run.value("one_layer_off", baseline)
run.value("least_moved", min(moved.values()))
run.value("n_steered", n_steered)
run.value("n_new", n_new_tokens)
run.value("lengths_apart", differences["lengths"])
run.value(
    "rows_left_out",
    "none"
    if not fused
    else "queries and values, which this model computes in one module",
)
run.claim(
    "operations-agree",
    "Every operation gives the same result in TransformerLens and in nnsight, to 0.0001.",
    rule="value < 0.0001",
    estimate=exactly(largest, len(done), "operations"),
    baseline=baseline,
    baseline_is="the residual stream read one layer off",
    tolerance=1e-4,
)
run.claim(
    "every-change-has-an-effect",
    "Every intervention of the side-by-side table moves the logits, so that none agrees because it did nothing.",
    rule="value > 0.001",
    estimate=exactly(min(moved.values()), len(moved), "changes"),
    baseline=0.0,
    baseline_is="no change",
    tolerance=0.05,
)

# %% [markdown]
# **What it means.** Of {glue:text}`n_operations` operations, {glue:text}`n_identical` agree to the last bit, and none differs
# by more than {glue:text}`largest_difference` (to 0.0001: **{glue:text}`claim-operations-agree`**). Rows left out:
# {glue:text}`rows_left_out`. The smallest effect of a change on the logits is {glue:text}`least_moved` (all have one:
# **{glue:text}`claim-every-change-has-an-effect`**), the vector added at each step changes {glue:text}`n_steered` of
# {glue:text}`n_new` generated tokens, and a stream read one layer off would be wrong by {glue:text}`one_layer_off`. So which library to take is a question of convenience: names that hold for every model, many
# ready-made tools and short hooks in one; the model's own names, free code in the middle of a pass, several prompts at
# once and models that run elsewhere in the other.

# %% [markdown]
# ## Step into every pitfall
#
# Both libraries were rewritten in their last major versions, and much of what one finds about them is older. Each
# cell below first does it wrong, under an assertion that it *is* wrong: if a new version mends one, this page stops there.
# Errors are the good case. Look out for those that say nothing.

# %% tags=["hide-input"]
import re
from contextlib import contextmanager

pitfalls = {}


def said(error):
    """The first sentence of a message, without paths."""
    text = " ".join(str(error).split())
    text = re.sub(r"(?<!\w)/[\w./-]+", "…", text)
    text = re.split(r"(?<=[\w)\]])[.;:] ", text)[0]
    return f"{type(error).__name__}: {text[:160]}"


@contextmanager
def fails(kind, habit, instead):
    """The body must raise; what it says is shown and goes into the table."""
    try:
        yield
    except kind as error:
        note(habit, said(error), instead)
    else:
        raise AssertionError(
            f"{habit!r} no longer fails: this page is out of date"
        )


def note(habit, happens, instead):
    row = {"habit": habit, "what happens": happens, "instead": instead}
    pitfalls[habit] = row
    print(happens)


# %% [markdown]
# **Nothing has a `.value` any more.** What was saved *is* the tensor.

# %%
with fails(
    AttributeError, "saved.value", "the saved name itself is the tensor"
):
    _ = stream.value

# %% [markdown]
# **Only what was saved leaves the block.** A name that is new does not exist afterwards. One that existed keeps its old
# value, and nothing tells you.


# %%
def unsaved():
    with lm.trace(ids):
        streams = [layer.output for layer in lm.model.layers]
    return streams


with fails(NameError, "a list made in the block", "nnsight.save([…])"):
    unsaved()

norm = 0.0
with lm.trace(ids):
    norm = lm.model.layers[LAYER].output.norm()
assert norm == 0.0
note("a name that existed before", "silent: it keeps its old value", ".save()")

# %%
with lm.trace(ids):
    streams = nnsight.save([layer.output for layer in lm.model.layers])
    norm = streams[LAYER].norm().save()

assert len(streams) == plain.n_layers and norm > 0

# %% [markdown]
# **`layers[i].output[0]` is the first prompt.** Layers used to give a tuple, and `[0]` took the stream out of it. Since
# transformers 5 they give the stream itself, so `[0]` takes *row 0 of the batch*. Attention modules still give a tuple.

# %%
with lm.trace(ids):
    lm.model.layers[LAYER].output[0][:] = 0  # meant for all prompts
    edited = lm.output.logits.save()

assert difference(edited[0], logits[0]) > 0
assert difference(edited[1], logits[1]) == 0
note(
    "layers[i].output[0]",
    "silent: only the first prompt is changed",
    "layers[i].output",
)

# %%
with lm.trace(ids):
    attended = lm.model.layers[LAYER].self_attn.output.save()
    lm.model.layers[LAYER].output[:] = 0
    edited = lm.output.logits.save()

assert isinstance(attended, tuple)
assert min(difference(edited[row], logits[row]) for row in (0, 1)) > 0

# %% [markdown]
# **The block needs lines of its own, and source.** nnsight reads the source of the block and compiles it anew.


# %%
def on_one_line():
    with lm.trace(ids): late = lm.output.logits.save()  # fmt: skip  # noqa: E701
    return late


with fails(ValueError, "with lm.trace(ids): x = …", "a new line after it"):
    on_one_line()

source = "with lm.trace(ids):\n    late = lm.output.logits.save()"
with fails(
    nnsight.tracing.tracer.WithBlockNotFoundError,
    "exec(text) with a trace in it",
    "a function in a cell or a file",
):
    exec(source)

# %% [markdown]
# **Modules are read in forward order.** The block waits at each `.output`; when it asks for one that the pass has left
# behind, it would wait for ever.


# %%
def backwards():
    with lm.trace(ids):
        late = lm.model.layers[LAYER + 1].output.save()
        early = lm.model.layers[LAYER].output.save()
    return early, late


with fails(
    nnsight.intervention.interleaver.OutOfOrderError,
    "a later layer first",
    "forward order, or two traces",
):
    backwards()

# %% [markdown]
# **What is saved is the tensor itself, not a copy.** An edit in place also changes what was saved before it.

# %%
with lm.trace(ids):
    mlp = lm.model.layers[LAYER].mlp
    before = mlp.output.save()
    copied = mlp.output.clone().save()
    mlp.output[:] = 0

assert before.abs().max() == 0
assert copied.abs().max() > 0
note(
    "save, then edit in place",
    "silent: what was saved is edited too",
    ".clone().save()",
)

# %% [markdown]
# **No patterns without eager attention.** The faster kernels never hold a pattern.

# %%
if plain.layout.plain_attention:  # else the family has no faster one
    plain.model.set_attn_implementation("sdpa")
    with lm.trace(ids):
        attended = lm.model.layers[LAYER].self_attn.output.save()
    plain.model.set_attn_implementation("eager")

    assert attended[1] is None
    note(
        "the default attention, sdpa",
        "silent: the pattern is None",
        'attn_implementation="eager"',
    )

# %% [markdown]
# **After an open loop nothing runs.** `tracer.iter[:]` goes on until the model stops, and takes the rest of the block
# with it. There is a warning, which is easily lost among others.

# %%
import warnings


def open_loop():
    with lm.generate(ids[:1], max_new_tokens=2, do_sample=False) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:]:
            seen.append(lm.model.layers[LAYER].output[:, -1])
        seen.append(tracer.result)
    return seen


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    seen = open_loop()

# %% tags=["hide-input"]
assert len(seen) <= 2 and all(item.ndim == 2 for item in seen)
assert any("was never reached" in str(item.message) for item in caught)
note(
    "tracer.iter[:], then more code",
    "a warning; what follows the loop does not run",
    "a bound: tracer.iter[:n]",
)

# %% [markdown]
# **A load without weights.** Without `dispatch=True` there are modules but no weights until the first pass. With the
# versions of this page even that fails if no tokenizer is given. The old name, `LanguageModel`, still works, and warns.

# %%
bare = "TransformersModel(folder, task=…)"
with fails(Exception, bare, "tokenizer=… or dispatch=True"):
    TransformersModel(folder, task="text-generation")
assert "tokenizer" in pitfalls[bare]["what happens"]

empty = TransformersModel(
    folder, task="text-generation", tokenizer=plain.tokenizer
)

assert empty.device.type == "meta"
note("weights before the first pass", "they are empty", "dispatch=True")

# %% tags=["hide-input"]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    nnsight.LanguageModel(folder, tokenizer=plain.tokenizer)
warned = [
    item.message
    for item in caught
    if issubclass(item.category, nnsight.NNsightDeprecationWarning)
]
assert warned
note("LanguageModel(…)", said(warned[0]), "TransformersModel(…)")
del empty

# %% [markdown]
# **TransformerLens: `HookedTransformer` is gone.** Its place is taken by `TransformerBridge`, which does not copy a model
# into code of its own but wraps the one of transformers.

# %%
with fails(
    ImportError,
    "from transformer_lens import HookedTransformer",
    "TransformerBridge",
):
    from transformer_lens import HookedTransformer  # noqa: F401

# %% [markdown]
# **TransformerLens: a start token that the model never asked for.** Given a *text*, the bridge may put a start token
# before it where the model's own tokenizer puts none.

# %%
by_tokenizer = plain.tokenizer(prompt)["input_ids"]
by_bridge = bridge.to_tokens(prompt)[0].tolist()
n_added = len(by_bridge) - len(by_tokenizer)
next_token = [
    bridge(torch.tensor([some], device=device))[:, -1]
    for some in (by_tokenizer, by_bridge)
]
start_moves = difference(*next_token)
assert n_added == 1 or model_name != models.DEFAULT_MODEL
happens = f"silent: {len(by_bridge)} tokens for the tokenizer's {len(by_tokenizer)}; logits move by {claims.shorten(start_moves)}"
note(
    "bridge(text)",
    happens if n_added else "the same tokens, for this model",
    "token ids",
)

# %% [markdown]
# **TransformerLens: the whole cache.** Without a filter every hook is kept.

# %%
_, everything = bridge.run_with_cache(ids)
kept = {tensor.data_ptr(): tensor.nbytes for tensor in everything.values()}
assert len(everything) > 20 * plain.n_layers
note(
    "run_with_cache(ids)",
    f"{len(everything)} entries, {sum(kept.values()) / 2**20:.0f} MiB",
    "names_filter=…",
)
run.value("n_cached", len(everything))
run.value("cached_mib", sum(kept.values()) / 2**20)
del everything

# %% [markdown]
# **TransformerLens: `stop_at_layer` at the last layer.** It stops *before* the layer with that number. After the last
# layer there is no such layer, and what comes back are logits.

# %%
stopped = bridge(ids, stop_at_layer=plain.n_layers)
assert stopped.shape == logits.shape
note(
    "stop_at_layer=n_layers",
    "silent: logits, not the stream",
    "the hook of the last layer",
)

# %% tags=["hide-input"]
run.table(
    "pitfalls",
    list(pitfalls.values()),
    caption=f"{len(pitfalls)} habits, what each gave in this run, and what to write instead. Each is asserted (the start token: on the default model): if a new version of a library mends one, this page does not build.",
)
run.value("n_pitfalls", len(pitfalls))
run.value(
    "n_silent",
    sum(row["what happens"].startswith("silent") for row in pitfalls.values()),
)

# %% [markdown]
# Of {glue:text}`n_pitfalls` pitfalls {glue:text}`n_silent` are silent. On this model a full cache of two short prompts has
# {glue:text}`n_cached` entries and takes {glue:text}`cached_mib` MiB.

# %% [markdown]
# ## Count what it costs
#
# The residual stream after every layer, for {glue:text}`n_measured` prompts of eight tokens, five ways: the forward
# pass itself with nothing kept is the unit. **What we expect.** Keeping a few tensors costs next to nothing; what costs is
# going through Python at every module or every hook.


# %%
def by_hooks():
    kept = []
    handles = [
        layer._module.register_forward_hook(lambda *call: kept.append(call[2]))
        for layer in lm.model.layers
    ]
    plain.model(batch)
    for handle in handles:
        handle.remove()
    return kept


# %%
def by_nnsight():
    with lm.trace(batch):
        kept = nnsight.save([layer.output for layer in lm.model.layers])
    return kept


# %%
batch = torch.randint(plain.config.vocab_size, (n_measured, 8), device=device)
only = {"names_filter": lambda site: site.endswith("hook_resid_post")}
WAYS = {
    "nothing kept": lambda: plain.model(batch),
    "PyTorch's own hooks": by_hooks,
    "nnsight, one trace": by_nnsight,
    "TransformerLens, names_filter": lambda: bridge.run_with_cache(
        batch, **only
    ),
    "TransformerLens, full cache": lambda: bridge.run_with_cache(batch),
}

# %% tags=["hide-input"]
import weakref

import numpy as np
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still alive."""

    def __init__(self, model):
        super().__init__()
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers(), batch):
            self.known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self.known:
                    self.known[storage] = size = storage.nbytes()
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.free, size)
        return result

    def free(self, size):
        self.now -= size


def seconds(way):
    start = time.perf_counter()
    way()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


peaks, spent = {}, {name: [] for name in WAYS}
order = list(WAYS)
with torch.no_grad():
    for name, way in WAYS.items():
        inside = bridge.original_model if "Lens" in name else plain.model
        with LiveBytes(inside) as counted:
            kept = way()
        peaks[name] = counted.peak
        del kept
    for number in range(n_rounds):
        for name in order if number % 2 else reversed(order):
            spent[name].append(seconds(WAYS[name]))
ratios = {
    name: np.sort(np.array(spent[name]) / np.array(spent["nothing kept"]))
    for name in WAYS
}


def ratio(name):
    found = ratios[name]
    return f"{np.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


run.table(
    "costs",
    [
        {
            "way": name,
            "time": ratio(name),
            "peak of live tensors, MiB": peaks[name] / 2**20,
        }
        for name in WAYS
    ],
    caption=f"Time as a ratio to the same pass with nothing kept, in pairs (median and range of {n_rounds} rounds; machines are noisy, so read no second digit into it), and the most memory that tensors made in the pass took at once, weights not counted. {n_measured} prompts of 8 tokens.",
)
run.value("n_measured", n_measured)
for key, name in {
    "hooks": "PyTorch's own hooks",
    "nnsight": "nnsight, one trace",
    "bridge": "TransformerLens, names_filter",
    "full": "TransformerLens, full cache",
}.items():
    run.value(f"time_{key}", ratio(name))
    run.value(f"memory_{key}", peaks[name] / peaks["nothing kept"])
logit_bytes = logits[0, 0].nbytes * batch.numel()
run.value("logits_share", logit_bytes / peaks["nothing kept"])

# %% [markdown]
# **What it means.** Against the pass alone, PyTorch's own hooks take {glue:text}`time_hooks` times as long, nnsight
# {glue:text}`time_nnsight`, the bridge with a filter {glue:text}`time_bridge` and with a full cache
# {glue:text}`time_full`; the brackets hold the range. In memory it is {glue:text}`memory_hooks`,
# {glue:text}`memory_nnsight`, {glue:text}`memory_bridge` and {glue:text}`memory_full` times the pass alone, of whose
# peak the logits are a share of {glue:text}`logits_share`: a capture does not need them, so stop before them where you can.

# %% [markdown]
# ## Check it
#
# The same quantities a third time, through this book's `hooks.capture` and `hooks.intervene`, on plain transformers and on
# both libraries. They go other ways: module hooks for one, hook points for the second, stored edits instead of traces for
# the third.

# %%
READ = {
    "before": "resid_pre",
    "after": "resid_post",
    "attention": "attn_out",
    "mlp": "mlp_out",
    "pattern": "pattern",
    "queries": "q",
    "values": "v",
    "z": "head_z",
}

# %%
CHANGED = {
    "logits": (),
    "zero": (hooks.Edit("mlp_out", LAYER),),
    "add": (hooks.Edit("resid_post", LAYER, vector.cpu(), "add"),),
    "head": (hooks.Edit("head_z", LAYER, head=HEAD),),
}

# %%
checked = {name: {} for name in (*READ, *CHANGED) if name in done}
for loaded in (plain, tl, nn):
    sites = [READ[name] for name in checked if name in READ]
    options = {"layers": [LAYER], "positions": "all"}
    found = hooks.capture(loaded, ids, sites, **options)
    for name in checked:
        if name in READ:
            value = found[READ[name]][:, 0]
        else:
            with hooks.intervene(loaded, *CHANGED[name]):
                value = hooks.capture(loaded, ids, "logits", **options)[
                    "logits"
                ]
        checked[name][loaded.backend] = difference(value, ours[name])

# %% tags=["hide-input"]
run.table(
    "backends",
    [
        {"operation": OPERATIONS[name]} | apart
        for name, apart in checked.items()
    ],
    caption="The largest absolute difference of what the book's own hooks give on each backend to the nnsight column of the table above.",
)
check_apart = max(max(apart.values()) for apart in checked.values())
run.value("check_apart", check_apart)
run.claim(
    "backends-agree",
    "Through the book's own hooks the three backends give what the traces gave, to 0.0001.",
    rule="value < 0.0001",
    estimate=exactly(check_apart, 3 * len(checked), "comparisons"),
    baseline=baseline,
    baseline_is="the residual stream read one layer off",
    tolerance=1e-4,
)

# %% [markdown]
# The largest difference is {glue:text}`check_apart` (the three backends agree: **{glue:text}`claim-backends-agree`**).

# %% [markdown]
# ## Where this breaks
#
# **Another mode of the bridge.** `enable_compatibility_mode()` rewrites the weights as `HookedTransformer` used to: norms
# are folded into what follows, what is written to the stream is centred, and so are the logits. It is said that cached
# streams and the logit lens then differ, and logit differences don't. So we ask, of this model's first two layers with its
# unembedding (the rewriting takes two copies more of whatever it rewrites), and of a random GPT-2 of two layers, whose
# norms are LayerNorms.

# %%
INSIDE = {
    "attention output": "hook_attn_out",
    "MLP output": "hook_mlp_out",
    "what the norm gives to attention": "ln1.hook_out",
    "attention pattern": "attn.hook_pattern",
    "outputs of heads, z": "attn.hook_z",
}
if "blocks.1.ln1.hook_out" not in bridge.hook_dict:  # as in OLMo 2
    INSIDE.pop("what the norm gives to attention")


def wanted(site):
    return site.startswith("blocks.") and (
        site.endswith("hook_resid_post")
        or site.split(".", 2)[2] in INSIDE.values()
    )


# %%
@torch.no_grad()
def readings(bridge):
    """What two layers give; logits also less that of the first token."""
    lg, cache = bridge.run_with_cache(ids, names_filter=wanted)
    every = torch.stack([cache["resid_post", layer] for layer in (0, 1)])
    lens = bridge.unembed(bridge.ln_final(every[0]))
    inside = {k: cache[f"blocks.1.{v}"] for k, v in INSIDE.items()}
    return {
        "residual stream after both layers": every,
        **inside,
        "logits": lg,
        "differences of logits": lg - lg[..., :1],
        "logit lens": lens,
        "differences in the logit lens": lens - lens[..., :1],
    }


# %%
import tempfile

import transformers

small = {"n_embd": 32, "n_layer": 2, "n_head": 4}
ends = {"bos_token_id": 0, "eos_token_id": 0}
sizes = {"vocab_size": plain.config.vocab_size, "n_positions": 64, **small}
config = transformers.GPT2Config(**sizes, **ends)
with tempfile.TemporaryDirectory() as scratch:
    gpt2 = transformers.GPT2LMHeadModel(config).to(device).eval()
    gpt2.save_pretrained(scratch)
    plain.tokenizer.save_pretrained(scratch)
    layernormed = TransformerBridge.boot_transformers(scratch, device=device)
with torch.no_grad():
    gpt2_apart = difference(layernormed(ids), gpt2(ids).logits)

# %%
first_two = transformers.AutoModelForCausalLM.from_pretrained(
    folder, num_hidden_layers=2, dtype=precision, attn_implementation="eager"
)
first_two = TransformerBridge.boot_transformers(
    folder, hf_model=first_two.to(device), dtype=precision, device=device
)
bridges = {"this model": first_two, "a random GPT-2": layernormed}

# %%
raw = {name: readings(some) for name, some in bridges.items()}
for some in bridges.values():
    some.enable_compatibility_mode(disable_warnings=True)
folded = {name: readings(some) for name, some in bridges.items()}
changes = {
    name: {
        what: difference(raw[name][what], folded[name][what])
        for what in raw[name]
    }
    for name in bridges
}

# %% tags=["hide-input"]


def share(name, what):
    """A change as a share of the largest entry."""
    return changes[name][what] / float(raw[name][what].abs().max())


run.table(
    "compatibility",
    [
        {"what is read": what} | {name: share(name, what) for name in bridges}
        for what in raw["this model"]
    ],
    caption="The largest change by compatibility mode in two layers, as a share of the largest entry in raw mode. What is not below a thousandth or so is another quantity under the same name.",
)
STREAM = "residual stream after both layers"
without_change = hooks.capture(plain, ids, "resid_post", positions="all")
without_change = without_change["resid_post"].transpose(0, 1)


def by_layer(streams):
    streams = streams.detach().cpu().float()
    apart = (streams - without_change[: len(streams)]).abs()
    return apart.flatten(1).amax(1).numpy()


lines = {
    "nnsight": by_layer(ours["every"]),
    "TransformerLens, raw": by_layer(theirs["every"]),
    "TransformerLens, compatibility mode": by_layer(
        folded["this model"][STREAM]
    ),
}
off = (
    (without_change[1:] - without_change[:-1]).abs().flatten(1).amax(1).numpy()
)
with plots.draw_figure(
    "by-layer",
    caption="Against plain transformers the residual stream differs by at most "
    + ", ".join(
        f"{claims.shorten(float(line.max()))} ({name})"
        for name, line in lines.items()
    )
    + f"; reading one layer off would cost at least {claims.shorten(float(off.min()))}. "
    f"Largest absolute difference after each layer, {ids.numel()} tokens; the scale is logarithmic, with zero at the bottom.",
    alt="Largest difference of the residual stream against layer, one line for each library and mode, on a logarithmic scale.",
    height=3.8,
) as (drawing, axes):
    styles = {
        "nnsight": {
            "color": plots.BLUE,
            "marker": "o",
            "fillstyle": "none",
            "markersize": 9,
        },
        "TransformerLens, raw": {"color": plots.ORANGE, "marker": "x"},
        "TransformerLens, compatibility mode": {
            "color": plots.ORANGE,
            "linestyle": "--",
            "marker": "s",
            "fillstyle": "none",
        },
    }
    for name, line in lines.items():
        axes.plot(range(len(line)), line, label=name, **styles[name])
    axes.plot(
        range(1, plain.n_layers),
        off,
        color=plots.GREY,
        linestyle=":",
        label="one layer off",
    )
    axes.set_yscale("symlog", linthresh=1e-8)
    axes.set(xlabel="layer", ylabel="largest difference", ylim=(-2e-9, None))
    axes.set_yticks([0, *(10.0**power for power in range(-8, 7, 2))])
    drawing.legend(loc="outside lower center", ncols=2)

for key, what in {
    "stream": STREAM,
    "logits": "logits",
    "differences": "differences of logits",
    "lens": "logit lens",
    "lens_differences": "differences in the logit lens",
}.items():
    run.value(f"compatibility_{key}", changes["this model"][what])
run.value("stream_share", share("this model", STREAM))
run.value("stream_share_gpt2", share("a random GPT-2", STREAM))
run.value("gpt2_apart", gpt2_apart)
n_logits, exact = logits.numel(), plain.dtype == "float32"


def measured(value, n, of):
    """Nothing in half precision, where rounding would decide."""
    return exactly(value, n, of) if exact else None


run.claim(
    "compatibility-keeps-differences",
    "Compatibility mode leaves every difference of two logits as it was, to 0.001.",
    rule="value < 0.001",
    estimate=measured(
        changes["this model"]["differences of logits"], n_logits, "logits"
    ),
    tolerance=1e-3,
)
run.claim(
    "compatibility-moves-the-logits",
    "Compatibility mode moves the logits themselves, by more than 0.1.",
    rule="value > 0.1",
    estimate=measured(changes["this model"]["logits"], n_logits, "logits"),
    tolerance=0.1,
)
run.claim(
    "compatibility-moves-the-stream",
    "Compatibility mode makes the cached residual stream another one: some entry changes by more than a thousandth of the largest.",
    rule="value > 0.001",
    estimate=measured(
        share("this model", STREAM), without_change[:2].numel(), "numbers"
    ),
    baseline=share("a random GPT-2", STREAM),
    baseline_is="a random GPT-2 with LayerNorm",
    tolerance=1e-3,
)

# %% [markdown]
# Logits move by {glue:text}`compatibility_logits` (**{glue:text}`claim-compatibility-moves-the-logits`**), their
# differences by {glue:text}`compatibility_differences` (they stay: **{glue:text}`claim-compatibility-keeps-differences`**);
# in the logit lens it is {glue:text}`compatibility_lens` and {glue:text}`compatibility_lens_differences`. The stream
# changes by {glue:text}`stream_share` of its largest entry, in the random GPT-2 by {glue:text}`stream_share_gpt2` (it
# becomes another one: **{glue:text}`claim-compatibility-moves-the-stream`**). The reason is in the norms. LayerNorm
# subtracts the mean, so nobody misses it when what is written to the stream has none, and it is taken out; RMSNorm does
# not, so in Llama and Qwen2 the stream must stay as it is; there it is the norm's output that changes, as its weights go
# into what follows. In half precision these three claims are not run, since rounding would decide them. This book reads
# raw mode.
#
# - **Equal is not right.** Both libraries run the code of transformers. What that computes wrongly, both compute wrongly,
#   and this page would not notice.
# - **Equal to the last bit is luck.** It holds where the bridge calls the very same modules on the very same rows. Padding
#   may change the last bits (prompts of different length: {glue:text}`lengths_apart`). In GPT-2 the bridge splits one
#   projection into three, and on the random GPT-2 its logits are {glue:text}`gpt2_apart` off. On a GPU that chooses other
#   kernels, expect more.
# - **Not run here.** This run was on {glue:text}`where`; NDIF: {glue:text}`remote_outcome`. When the page was written
#   neither a GPU nor NDIF was at hand: the code for them follows nnsight's source and is untested. Issue `#581` of nnsight
#   says that a remote trace drops a batch axis of one, so the cell above compares after a reshape.
# - **Not every family.** The code above takes a layer and an MLP to give one tensor, as Llama's do; where they don't, as in
#   BLOOM or OPT, the page says so and stops. In Gemma a norm stands between a module and the stream, and what a module gives
#   is not what is added: [sites](../../reference/sites) has the difference.
# - **Versions.** Every line of this page belongs to the versions listed below it.

# %% [markdown]
# ## Summary
#
# - TransformerLens and nnsight give the same numbers in every operation tried (`operations-agree`:
#   {glue:text}`claim-operations-agree`), and the changes among them do change something (`every-change-has-an-effect`:
#   {glue:text}`claim-every-change-has-an-effect`). The book's own hooks give them on three backends (`backends-agree`:
#   {glue:text}`claim-backends-agree`).
# - A block packed as for a server gives the same (`a-packed-block-gives-the-same`:
#   {glue:text}`claim-a-packed-block-gives-the-same`).
# - Compatibility mode keeps differences of logits (`compatibility-keeps-differences`:
#   {glue:text}`claim-compatibility-keeps-differences`) and moves logits (`compatibility-moves-the-logits`:
#   {glue:text}`claim-compatibility-moves-the-logits`). That it makes the cached stream another one
#   (`compatibility-moves-the-stream`): {glue:text}`claim-compatibility-moves-the-stream`.

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. All MLPs at once** (10 minutes). Keep the output of every MLP in both libraries, in one pass each, without writing a
# loop inside the trace. *Hint: nnsight has a cache too, `tracer.cache(modules=…)`.*
#
# ````{dropdown} Solution
# ```python
# with lm.trace(ids) as tracer:
#     cache = tracer.cache(modules=[layer.mlp for layer in lm.model.layers])
# mlps = torch.stack([cache[layer.mlp.path].output for layer in lm.model.layers])
# _, cache = bridge.run_with_cache(
#     ids, names_filter=lambda site: site.endswith("hook_mlp_out")
# )
# print(difference(mlps, cache.stack_activation("mlp_out")))
# ```
# The cache holds what the modules gave *after* any change of yours, and is declared before anything is read.
# ````
#
# **2. The order of gradients** (15 minutes). Gradient times activation of every MLP's output, in one backward pass. *Hint:
# in a backward block, too, things are asked for in the order in which they come.*
#
# ````{dropdown} Solution
# ```python
# with lm.trace(ids):
#     lm.model.layers[0].input.requires_grad_(True)
#     added = [layer.mlp.output for layer in lm.model.layers]
#     best = lm.output.logits[:, -1].amax(-1).sum()
#     with best.backward():
#         effects = nnsight.save(
#             [(out.grad * out).sum(-1) for out in reversed(added)]
#         )
# ```
# Gradients arrive from the last layer to the first, so the list has to be reversed; in forward order it raises an
# `OutOfOrderError`. The weights are frozen, so the first layer's input has to ask for a gradient, *before* anything is
# computed from it; after the list it would be too late.
# ````
#
# **3. Leave a layer out** (15 minutes). Skip a whole layer in both libraries. *Hint: `layer.skip(…)` in nnsight does not
# even run it; the bridge has no such thing, but a hook can put back what went in.*
#
# ````{dropdown} Solution
# ```python
# with lm.trace(ids):
#     layer = lm.model.layers[LAYER]
#     layer.skip(layer.input)
#     skipped = lm.output.logits.save()
# went_in = {}
# by_bridge = bridge.run_with_hooks(
#     ids,
#     fwd_hooks=[
#         (f"blocks.{LAYER}.hook_resid_pre", lambda x, hook: went_in.update(x=x)),
#         (f"blocks.{LAYER}.hook_resid_post", lambda x, hook: went_in["x"]),
#     ],
# )
# print(difference(skipped, by_bridge))
# ```
# The logits agree. In nnsight the layer's work is saved, and a module inside it can't be read in that pass.
# ````

# %% [markdown]
# ## References
#
# {cite:t}`fiottokaufman2024nnsight` and {cite:t}`nanda2022transformerlens`, in full in the
# [bibliography](../../reference/bibliography).
