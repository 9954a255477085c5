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
# # How does a model know who gets the drink?
#
# "When Mary and John went to the store, John gave a drink to": the sentence wants "Mary". To say so a model has to find
# two names, notice which one came twice, and name the other. {cite:t}`wang2022interpretability` took this apart in
# GPT-2 small and found twenty-six heads in seven roles. Here the same questions are put to whatever model is given, by
# criteria that are the same for all, so that the answer may be another circuit, or none:
# **{glue:text}`outcome`**.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to trace a circuit backwards from the logits by path patching, and to say when a head has a role;
# - to tell what a head writes from what would happen without it;
# - to test a circuit on sentences it was not chosen on, against random circuits.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
templates_of: str = (
    ""  # "own", "paper"; "" for the paper's on gpt2-small and our own elsewhere
)
n_prompts: int = 60  # of each sample, for behaviour and attribution, 20 to 2000
n_patched: int = 20  # of these, for patching and ablation, 10 to 2000
n_reference: int = 80  # prompts behind the means of knock-outs, 40 to 2000
n_random_sets: int = 10  # random sets to compare with, 10 to 200
seed: int = 0  # of all sampling, 0 to 999999
device: str = "cpu"  # cpu, or cuda where there is a GPU
dtype: str = ""  # of the weights: "float32", "bfloat16" or "float16"; "" for the model's own

# %%
import numpy as np
import torch
from helpers import (
    InputError,
    attribution,
    baselines,
    claims,
    hooks,
    models,
    patching,
    plots,
    prompts,
    runs,
)
from studies import exercises
from studies.ioi import figures, knock_outs, roles, templates

run = runs.begin("IOI_notebook", globals())
model = run.loaded

# %% [markdown]
# ## Look at one sentence
#
# **What we expect.** After the sentence the other name, by a wide margin; after *p_ABC*, the same sentence with three
# different names, none in particular.

# %%
on_gpt2 = model.card.name == "gpt2-small"
whose = templates_of or ("paper" if on_gpt2 else "own")
sentences, held_out = templates.SENTENCES[whose]
chosen = templates.draw_ioi(
    model, n_prompts=n_prompts, seed=2 * seed, templates=sentences
)
abc = chosen.corrupted("p_ABC")
one, other = chosen.prompts[0], abc[0]

# %% tags=["hide-input"]
run.table(
    "next_words",
    figures.list_next(model, {"the sentence": one, "p_ABC": other}),
    caption=f'The five likeliest next tokens. The sentence: "{figures.join(model, one)}"; p_ABC: "{figures.join(model, other)}".',
)

# %%
attention = roles.measure_attention(model, chosen)
shown = [
    divmod(int(place), model.n_heads)
    for name in ("IO", "S2")
    for place in attention["END", name].flatten().topk(2).indices
]
pattern = hooks.capture(model, [one], "pattern", positions="all")["pattern"]
plots.show_attention(
    "first-look",
    model.token_labels(list(one)),
    torch.stack([pattern[0][head] for head in shown]),
    [figures.name_heads([head]) for head in shown],
    caption="From the last token the first two heads look most at the other name, the last two most at the repeated one "
    f"(chosen by their means over {n_prompts} prompts). Hover over a token to see where it looks.",
    alt="Attention patterns of four heads over one sentence.",
)


# %%
def measure(rows, data=chosen):
    """By prompt: logit of IO less that of S, P(IO), is IO the likeliest?"""
    logits = hooks.capture(model, rows, "logits")["logits"][:, 0]
    right, wrong = logits.gather(1, torch.tensor(data.answers)).T
    chance = (right - logits.logsumexp(-1)).exp()
    found = right - wrong, chance, (right == logits.amax(-1)).float()
    return [values.numpy() for values in found]


def over(values, data):
    """The mean over templates, which differ more than their prompts do."""
    return knock_outs.average_templates(values, data, seed=seed)


# %%
difference, p_io, likeliest = measure(chosen.prompts)
difference_abc, p_io_abc, likeliest_abc = measure(abc)
run.value("likeliest", over(likeliest, chosen))
run.value("likeliest_abc", over(likeliest_abc, chosen))

# %% [markdown]
# The other name is the likeliest next token of all in a share of {glue:text}`likeliest` of the prompts; on p_ABC,
# where that name does not occur, in {glue:text}`likeliest_abc`.
#
# ## Measure the behaviour
#
# Each sentence has two names of which one, the subject S, is named again; the other is the indirect object IO, named
# first (ABBA) or second (BABA). Heads are *chosen* on a first sample, and the circuit is *tested* on a second with
# other names in *other sentences*. The measure is the *logit difference*: the logit of IO less that of S at the last
# position, END.
#
# **What we expect.** Well above zero in every template and order; on p_ABC, where neither name occurs, zero on
# average.

# %% tags=["hide-input"]
run.table(
    "prompts",
    [{"prompt": "as drawn", "text": figures.join(model, one)}]
    + [
        {"prompt": kind, "text": figures.join(model, chosen.corrupted(kind)[0])}
        for kind in templates.CORRUPTIONS
    ],
    caption="The first prompt and its corruptions.",
)
measures = {"logit difference": difference, "accuracy": difference > 0}
measures |= {"P(IO)": p_io, "IO is the likeliest": likeliest}
measures |= {"logit difference on p_ABC": difference_abc}
run.table(
    "behaviour",
    figures.list_behaviour(chosen, measures, seed=seed),
    caption="What the model does, by template and order: mean over n prompts of the first sample, 95 % interval in brackets (within a template by bootstrap, else over templates).",
)

# %%
run.value("difference_abc", over(difference_abc, chosen))
run.value("p_io", over(p_io, chosen))
run.value("n_templates", len(set(chosen.template)))
accuracy = claims.share(difference > 0)
run.value("accuracy", accuracy)
run.claim(
    "names-the-indirect-object",
    estimate=over(difference, chosen),
    baseline=over(difference_abc, chosen).value,
)
run.claim("published-logit-difference", estimate=over(difference, chosen))
run.claim("published-accuracy", estimate=accuracy)

# %% [markdown]
# Sentences stand in `studies/ioi/templates.py`: {glue:text}`n_templates` templates for this sample, in turn, in both
# orders in turn, filled with names, places and objects that are one token each. Prompts of one template are no
# independent ones, so intervals are Student's over templates (a share of prompts has Wilson's). The English is simple
# and the names are common in English-speaking countries; nothing here speaks for others.
#
# ## Find where the answer is
#
# Put what the stream of layer after layer holds at one position on a prompt with the *other* answer into the run, and
# see which share of the answer turns around. Two prompts have the other answer: one in which the other name is
# repeated, one in which the two names change places throughout.
#
# **What we expect.** What S2 says is needed there until some layer hands it on to END; names are needed where they
# stand, until the heads that write the answer have read them. S1+1 is there to compare with: nothing about the answer
# has to pass it.

# %%
searched = chosen.first(n_patched)
TURNED = {
    "the other name is repeated": "S2_is_IO",
    "the names change places": "order_swapped_S2_is_IO",
}
maps = {}
for title, kind in TURNED.items():
    maps[title] = patching.patch_positions(
        model,
        searched.prompts,
        searched.corrupted(kind),
        answers=searched.answers,
        positions=searched.positions,
    ).recovered

# %%
repeated, exchanged = maps.values()
places = list(searched.positions)
figures.show_where(
    maps,
    places,
    caption="Information moves right, from where names stand to END. Share of the logit difference that turns when the stream before a "
    f"layer is patched at one position: 1, blue, is all of it. Means over {n_patched} prompts.",
)
at_end, at_s2 = (
    repeated[:, places.index("END")],
    repeated[:, places.index("S2")],
)
run.value("leaves_s2", figures.find_first(1 - at_s2))
run.value("arrives_at_end", figures.find_first(at_end))
run.value("names_arrive", figures.find_first(exchanged[:, places.index("END")]))
at_next = exchanged[:, places.index("S1+1")]
run.value("most_at_next", float(at_next.abs().max()))

# %% [markdown]
# Who is repeated has left S2 by layer {glue:text}`leaves_s2` and is at END from layer {glue:text}`arrives_at_end` (more
# than half of the answer turns there); the names themselves are from layer {glue:text}`names_arrive`. Beside that, S1+1
# never turns more than {glue:text}`most_at_next`.
#
# ## Split the answer into what each part writes
#
# The stream at END is a sum: the embedding, what every head and every MLP wrote, and biases. With the last norm's scale
# frozen, each part has its own share of the logit difference (*direct logit attribution*). The *logit lens* reads the
# sum after each layer instead, as if the model stopped there.
#
# **What we expect.** Nothing for most of the layers, then a few late heads that write towards IO, some perhaps against
# it. On p_ABC the lens stays at zero.

# %%
parts = attribution.attribute_logits(model, chosen.prompts, chosen.answers)
mismatch = float((parts.total - torch.tensor(difference)).abs().max())
assert mismatch < 1e-2 or model.dtype != "float32", mismatch
by_layer = parts.heads.sum(1) + parts.mlps
accumulated = parts.embedding + by_layer.cumsum(0)


# %%
def read_early(rows):
    """The logit difference, by layer and prompt, if no later layer ran."""
    resid = hooks.capture(model, rows, "resid_post")["resid_post"][:, :, 0]
    last = model.n_layers - 1
    stop = hooks.Edit("resid_post", last, resid.flatten(0, 1), position=-1)
    ends = [row[-1:] for row in rows for _ in range(model.n_layers)]
    with hooks.intervene(model, stop):  # whatever ran, this leaves it
        logits = hooks.capture(model, ends, "logits")["logits"][:, 0]
    names = torch.tensor(searched.answers).repeat_interleave(model.n_layers, 0)
    right, wrong = logits.gather(1, names).view(len(rows), -1, 2).unbind(-1)
    return (right - wrong).T.numpy()


# %%
lens = read_early(searched.prompts)
curves = {"logit lens": lens, "attribution, accumulated": accumulated}
curves["logit lens on p_ABC"] = read_early(searched.corrupted("p_ABC"))
written = parts.heads.mean(-1)
order = written.abs().flatten().argsort(descending=True)[:5]
writers = [divmod(int(place), model.n_heads) for place in order]
figures.show_writing(
    written,
    curves,
    caption=f"The five heads that write most are {figures.name_heads(writers)}. Left: direct attribution of each head in logits, mean over {n_prompts} prompts; blue "
    f"is towards IO, red towards S. Right: the logit difference read after each layer ({n_patched} prompts), and what heads and MLPs have written by then.",
)
run.value("heads_write", float(written.sum()))
run.value("mlps_write", float(parts.mlps.mean(-1).sum()))
run.value("attribution_mismatch", mismatch)
half = np.mean(lens, 1) / np.mean(difference[:n_patched])
run.value("lens_half", figures.find_first(half))

# %% [markdown]
# All heads together write {glue:text}`heads_write`, all MLPs {glue:text}`mlps_write`; the parts add up to the logit
# difference to within {glue:text}`attribution_mismatch`. The lens passes half of it at layer {glue:text}`lens_half`. But
# what a head writes is not what would be missing without it: others may make up for it, and a head that writes nothing
# of the answer may tell another one where to look. So we must intervene.
#
# ## Trace the circuit backwards
#
# *Path patching* replaces one head's output by what it is on p_ABC and lets the change travel along one path only: all
# other heads keep what they had, MLPs and norms are recomputed, and what arrives at the receiver is put into an
# otherwise intact run. Receivers are the logits first; then the queries of the heads found there, the values of those
# that feed these, and the keys of induction heads among those. A head has a role where
#
# 1. the logit difference moves the right way, and its mean, relative to its spread, exceeds what the largest of all
#    heads reaches in 95 % of cases when every prompt's sign is drawn at random;
# 2. it moves by at least a hundredth of the logit difference;
# 3. its attention, or what it does to a name, is above the 95th percentile of the heads that fail 1 or 2; names it must
#    raise or lower it does so for more than half of them; a backup must write towards IO once the movers are gone.
#
# The criteria were written before any head had a role and mended five times: one strong head hid all others from the
# first test; a backup planted in a toy was missed; most heads raise no name, so that a percentile was zero; "backups"
# wrote against IO before and after; and part of their gain was the last norm's scale, now held.

# %% tags=["hide-input"]
run.table(
    "criteria",
    figures.list_criteria(),
    caption="Roles and their criteria. A head raises (lowers) a name if, attending to it, it puts the name among the five highest (lowest) of all logits.",
)

# %%
reference, fresh_reference = (
    templates.draw_ioi(
        model, n_prompts=n_reference, seed=2_000_000 + seed, templates=some
    )
    for some in (sentences, held_out)
)
found = roles.search(model, searched, reference, seed=seed)
circuit = list(found.heads)
filled = {name: list(heads) for name, heads in found.roles.items() if heads}
unnamed = figures.list_unnamed(found)

# %%
outcome = f"a circuit of {len(circuit)} head{'s' * (len(circuit) != 1)}"
run.value("outcome", outcome if circuit else "no circuit found")
run.value("circuit_heads", figures.name_heads(circuit))
run.value("circuit_share", len(circuit) / (model.n_layers * model.n_heads))
run.value("unnamed_heads", figures.name_heads(unnamed))
run.table(
    "roles",
    figures.list_roles(found, lambda values: over(values, searched)),
    caption=f"Every head that meets the criteria of a role, with the change of the logit difference when its path is patched (mean over {n_patched} "
    "prompts of the first sample, 95 % interval over templates in brackets; for backups: the fall of its attribution when the movers are "
    "knocked out) and the scores that put it there.",
)
if found.stages:
    figures.show_stages(
        found,
        caption=f"{outcome.capitalize()}. Change of the logit difference, as a share of it, when the path from a head to the receivers is patched from p_ABC, mean over "
        f"{n_patched} prompts; red: the head helps (backup: it writes more). Less than a hundredth is left blank; circles mark heads with a role at that stage.",
    )
else:
    print("no circuit found: the model does not do the task")

# %% [markdown]
# This is {glue:text}`outcome`, a share of {glue:text}`circuit_share` of all heads. Direct effects that no role explains
# have {glue:text}`unnamed_heads`. A *negative* head writes against the answer; an *S-suppressor* attends to the
# subject and lowers it, a role the published circuit has no name for; {cite:t}`mcdougall2023copy` describe a head of
# GPT-2 small that suppresses whatever it attends to.
#
# Which role feeds which? Every path is measured for itself.

# %%
few = searched.first(max(2, n_patched // 2))
into_queries = {
    (name, "queries"): roles.patch_into(
        model, few, "q", found.roles[name], "END"
    )
    for name in figures.FINAL_ROLES
    if found.roles[name]
}
edges = figures.list_edges(
    found, into_queries, lambda values: over(values, searched)
)

# %% tags=["hide-input"]
if circuit:
    figures.show_circuit(
        found,
        edges,
        caption=f"The circuit that this run found: {outcome}. Boxes are roles with at most four heads, from left to right at the position where they act. An arrow is a measured "
        "path, its number and width the change of the logit difference in logits when what the senders give to the receivers is patched from p_ABC, one at a time and summed; left out "
        "are paths below a hundredth of the logit difference or with an interval that reaches zero. Tried were those of the table, and no others.",
    )
    run.table(
        "edges",
        [
            dict(zip(("from", "to", "through", "effect"), edge, strict=True))
            for edge in edges
        ],
        caption=f"Every path between roles that was tried, in logits: mean over {n_patched} prompts of the first sample (into queries: {len(few.prompts)}), 95 % interval over templates in brackets.",
    )

# %% [markdown]
# ## Look at what the last heads look at
#
# **What we expect.** If a head moves or suppresses the name it attends to, then from prompt to prompt more attention to
# a name means more (or less) of it in what the head writes, relative to a name that is not in the prompt.

# %%
pattern = hooks.capture(model, chosen.prompts, "pattern")["pattern"][:, :, :, 0]
absent = [names[0] for names in chosen.others]
looks, writes = {}, {}
for name, token in (("IO", chosen.io), ("S", chosen.subject)):
    pairs = list(zip(token, absent, strict=True))
    split = attribution.attribute_logits(model, chosen.prompts, pairs)
    writes[name] = split.heads
    looks[name] = sum(
        pattern[range(n_prompts), :, :, list(chosen.positions[place])]
        for place in {"IO": ("IO",), "S": ("S1", "S2")}[name]
    ).movedim(0, -1)

# %%
last_heads = [
    head for name in figures.FINAL_ROLES for head in found.roles[name]
]
if last_heads:
    direct = found.stages["logits"].mean  # of the first sample
    loudest = max(last_heads, key=lambda head: abs(float(direct[head])))
    run.table(
        "last_heads",
        figures.list_last_heads(found, looks, writes),
        caption=f"The heads that write the answer: attention at END ({n_patched} prompts), the share of names that they raise or lower into the extreme five of all logits "
        f"({min(roles.COPIED, n_patched)} prompts), and the correlation of attention and projection from prompt to prompt, within IO and within S ({2 * n_prompts} names).",
    )
    figures.show_projection(
        loudest,
        looks,
        writes,
        caption=f"Head {figures.name_heads([loudest])}: attention to a name and what is written of it correlate with {claims.shorten(figures.correlate(looks, writes, loudest))} within IO and "
        f"within S (that it looks at one more than at the other is not counted). Two points for each of {n_prompts} prompts. A name mover's points rise, those of the others fall.",
    )

# %% [markdown]
# ## Knock out one role at a time
#
# From here on everything is measured on the second sample. *Knocked out* means: replaced, position by position, by the
# mean over p_ABC prompts of the same template and order, which keeps the sentence and takes away who is who.
#
# **What we expect.** Each knock-out costs logit difference, that of negative heads gains some, each more than random
# heads of the same layers outside the circuit. But name movers have *backups* in GPT-2, so a small loss is no proof of
# a small role.

# %%
tested = templates.draw_ioi(
    model, n_prompts=n_patched, seed=2 * seed + 1, templates=held_out
)
out = knock_outs.KnockOuts(
    model, tested, fresh_reference, circuit, n_sets=n_random_sets, seed=seed
)
controls = {name: out.draw_controls(heads) for name, heads in filled.items()}
sets = {name: [filled[name], *controls[name].sets] for name in filled}
whole = out.without([[], *(heads for some in sets.values() for heads in some)])[
    0
]
lost = {
    name: out.compare(whole - out.without(some), below=name == "negative")
    for name, some in sets.items()
}
leads = {name: one.lead for name, one in lost.items() if one.lead}
beyond = [name for name, lead in leads.items() if lead.low > 0]

# %% tags=["hide-input"]
LEFT_IN_GPT2 = {"S-inhibition": 0.24, "induction": 0.97}
LEFT_IN_GPT2 |= {"duplicate token": 0.60, "previous token": 1.31}
LEFT_IN_GPT2 |= {"negative": 4.07}
if filled:
    run.table(
        "knock_outs",
        [
            {
                "knocked out": name,
                "heads": figures.name_heads(filled[name]),
                "left": out.average(out.without([filled[name]])[0]),
                "beyond the strongest control": against.lead or "–",
                "controls": f"{len(controls[name].sets)} of {controls[name].n_possible}",
                "left in GPT-2 small, published": LEFT_IN_GPT2.get(name, "–"),
            }
            for name, against in lost.items()
        ],
        caption=f"What is left of the logit difference without one role: mean over {n_patched} prompts of the second sample, 95 % interval over templates in brackets. Controls are "
        "other heads of the same layers (of neighbouring ones where a layer has too few), none of the circuit; the strongest is compared prompt by prompt.",
    )
    plots.show_against_controls(
        "knock-outs",
        lost,
        unit="logit difference lost",
        own="the role",
        caption=f"Beyond every control: {', '.join(beyond) or 'none'}. What each knock-out costs, mean over {n_patched} prompts, with its 95 % interval over templates.",
        alt="Loss of logit difference by role, beside random heads.",
    )

# %%
run.value("whole_difference", out.average(whole))
shared = max((one.shared for one in controls.values()), default=0)
run.value("most_shared", shared)
borrowed = max((one.n_borrowed for one in controls.values()), default=0)
run.value("most_borrowed", borrowed)


def where_filled(names, sample):
    """An estimate where all these roles have heads, else none."""
    there = all(found.roles[name] for name in names)
    return out.average(sample()) if there else None


run.claim(
    "published-s-inhibition-knock-out",
    estimate=where_filled(
        ["S-inhibition"], lambda: out.without([filled["S-inhibition"]])[0]
    ),
)

# %% [markdown]
# The whole model has a logit difference of {glue:text}`whole_difference` here. Two controls of a role share at most
# {glue:text}`most_shared` of their heads; at most {glue:text}`most_borrowed` heads of one come from neighbouring
# layers.
#
# ### Is IO raised, or S lowered?
#
# A logit difference can't say. So what heads write of each name is compared with three names that are *not* in the
# prompt. **What we expect.** Both names above absent ones, as any name that was mentioned, and IO more so.

# %%
before = attribution.attribute_logits(model, tested.prompts, tested.answers)
against_absent = []
for names in zip(*tested.others, strict=True):
    pairs = list(zip(tested.io, names, strict=True))
    split = attribution.attribute_logits(model, tested.prompts, pairs)
    against_absent.append(split.heads)
WRITERS = (*figures.FINAL_ROLES, "backup")
raised = sum(against_absent) / len(against_absent)  # layer, head, prompt
# IO less S is IO less an absent name, and that name less S
lowered = before.heads - raised

# %% tags=["hide-input"]
if filled:
    groups = {name: filled[name] for name in filled if name in WRITERS}
    groups["all heads"] = list(np.ndindex(model.n_layers, model.n_heads))
    run.table(
        "split",
        [
            {
                "role": name,
                "raises IO by": out.average(sum(raised[h] for h in heads)),
                "lowers S by": out.average(sum(lowered[h] for h in heads)),
            }
            for name, heads in groups.items()
        ],
        caption=f"Direct writing of each name, less that of names that are not in the prompt, in logits: mean over {n_patched} prompts of the second sample, 95 % interval over templates in brackets.",
    )

# %%
movers = [*found.roles["name mover"], *found.roles["S-suppressor"]]
run.value("io_raised", out.average(raised.sum((0, 1))))
run.value("s_raised", out.average(-lowered.sum((0, 1))))
excess = lowered - raised
last = [head for name in WRITERS for head in found.roles[name]]
run.claim(
    "lowers-s-more-than-raises-io",
    estimate=out.average(sum(excess[head] for head in last))
    if movers
    else None,
)

# %% [markdown]
# ### What does S-inhibition do to the last heads?
#
# **What we expect.** Without it their attention moves. If it falls on S, these heads *pointed* to S, which helps a head
# that suppresses S; if it rises, they *inhibited* it, as the published ones do.

# %%
means = roles.average_by_form(model, tested, fresh_reference)
if found.roles["S-inhibition"]:
    blinding = roles.knock_out(means, found.roles["S-inhibition"])
    with hooks.intervene(model, *blinding):
        blind = roles.measure_attention(model, tested)
    sighted = roles.measure_attention(model, tested)
    run.table(
        "s_inhibition",
        figures.list_attention(found, {"whole": sighted, "without": blind}),
        caption=f"Attention from END in the whole model and without S-inhibition: mean over {n_patched} prompts of the second sample.",
    )

# %% [markdown]
# ### Do others take over?
#
# Two things would look like help and are none. With less in the stream the last norm lets more of *everything* through;
# so its scale is held to that of the intact run. And a negative head that finds less to write against "rises"; so
# negative heads are told apart. Others count that rise *and* write towards IO once the movers are gone, as judged on
# half of the templates and measured on the other half. **What we expect.** More than when a control is knocked out.


# %%
def rise_without(heads, **options):
    """By how much each head writes more: layer, head, prompt."""
    with hooks.intervene(model, *roles.knock_out(means, heads)):
        after = attribution.attribute_logits(
            model, tested.prompts, tested.answers, **options
        )
    return after.heads - before.heads


def taken_over(heads, rise):
    """By prompt, the rise of the others that count by the other half."""
    apart = {*heads, *movers, *found.roles["negative"]}
    return knock_outs.sum_takers(before.heads, rise, tested.template, apart)


# %%
taking, noted = {"estimate": None}, {}
if movers:
    drawn = [movers, *out.draw_controls(movers).sets]
    rises = [rise_without(heads, scale_of=before.resid) for heads in drawn]
    effects = torch.stack([*map(taken_over, drawn, rises)])
    taking = out.compare(effects).evidence
    rise, gone = rises[0], sum(rises[0][place] for place in movers)
    loose = rise_without(movers) - rise
    negative = found.roles["negative"]
    noted["movers_write"] = -gone
    noted["taken_over"] = effects[0]
    noted["by_scale"] = sum(loose[place] for place in out.complement(movers))
    if negative:
        noted["negative_before"] = sum(before.heads[h] for h in negative)
        noted["negative_after"] = sum(
            (before.heads + rise)[h] for h in negative
        )

# %%
for key in (
    "movers_write",
    "taken_over",
    "by_scale",
    "negative_before",
    "negative_after",
):
    known = key in noted
    run.value(key, out.average(noted[key]) if known else "not measured")
if movers:
    run.table(
        "backup",
        figures.list_risers(before.heads, rise, out.average),
        caption=f"The four heads whose direct attribution (logits) rises most when name movers and S-suppressors are knocked out, the norm's scale held: means over {n_patched} prompts of the "
        "second sample, 95 % interval over templates in brackets.",
    )
run.claim("others-take-over", **taking)

# %% [markdown]
# ## Ask what S-inhibition says
#
# It could say *which name* to avoid (a token signal), or *which place*, the first name's or the second's (a position
# signal). Corrupted prompts pull the two apart: into the S-inhibition heads, at END, goes what they write on a prompt with
# the same or the other place repeated, and the same name, a random one, or the other. **What we expect**, from GPT-2:
# both count, the place for more.

# %%
CELLS = {
    (1, 1): None,  # position, token: as they are
    (1, 0): "random_names",
    (1, -1): "order_swapped_S2_is_IO",
    (-1, 1): "order_swapped",
    (-1, 0): "order_swapped_random_names",
    (-1, -1): "S2_is_IO",
}
PUBLISHED_CELLS = 3.55, 2.45, 1.77, -0.99, -1.96, -3.16


def fit(values):
    """Coefficients of position and token, and the constant."""
    design = np.array([(*cell, 1) for cell in CELLS], dtype=float)
    return np.linalg.lstsq(design, np.stack(values), rcond=None)[0]


# %%
signals = {}
receivers = [
    patching.Node("head_z", layer, head, -1)
    for layer, head in found.roles["S-inhibition"]
]
for cell, kind in CELLS.items() if receivers else ():
    signals[cell] = whole
    if kind is not None:
        signals[cell] = (
            patching.patch_sets(
                model,
                tested.prompts,
                tested.corrupted(kind),
                [receivers],
                answers=tested.answers,
            )
            .values[0]
            .numpy()
        )

# %%
position = signed_token = None
if signals:
    position, token, constant = fit(list(signals.values()))
    signed_token = token * np.sign(token.mean())
    names = ("position_signal", "token_signal", "signal_constant")
    published = dict(zip(names, fit(PUBLISHED_CELLS), strict=True))
    for name, values in zip(names, (position, token, constant), strict=True):
        run.value(name, out.average(values))
        run.value(f"published_{name}", float(published[name]))
    gaps = {
        "the constant" if name == "signal_constant" else f"the {name}": abs(
            run.values[name]["value"] - published[name]
        )
        for name in names
    }
    run.value("main_contrast", max(gaps, key=gaps.get).replace("_", " "))
    run.table(
        "signals",
        figures.list_signals(signals, out.average),
        caption=f"Logit difference with the S-inhibition heads' output replaced: mean over {n_patched} prompts of the second sample, 95 % interval over templates in brackets. "
        f"Published for GPT-2 small, row by row: {', '.join(map(str, PUBLISHED_CELLS))}.",
    )

# %%
run.claim(
    "position-outweighs-token",
    estimate=where_filled(["S-inhibition"], lambda: position - signed_token),
)
run.claim(
    "published-position-signal",
    estimate=where_filled(["S-inhibition"], lambda: position),
)

# %% [markdown]
# ## Test the circuit as a whole
#
# *Keep only*: with every head outside the circuit knocked out, how much is left? *Knock out*: with just the circuit
# knocked out, how much? As {cite:t}`miller2024transformer` show, such a figure depends on six choices at least. Ours: (1)
# nodes, not edges; (2) heads, while MLPs stay; (3) means over p_ABC by template and order fill the gap, or, in other
# rows, single p_ABC prompts (resampled); (4) all positions; (5) p_ABC goes into the clean run; (6) the set ablated is
# the complement of the circuit, or the circuit.
#
# **What we expect.** Kept alone, the circuit does most of the task and random circuits of its shape do none of it;
# without it little is left.

# %%
evidence = {"costs": {"estimate": None}, "keeps": {"estimate": None}}
if circuit:
    random_circuits = out.draw_controls(circuit)
    subsets = knock_outs.list_subsets(found, seed=seed)
    plan = knock_outs.plan_tests(found, random_circuits, subsets, seed=seed)
    several = [circuit, *random_circuits.sets]
    everything = out.complement([])
    # measured in one go, since the means are taken anew each time
    at_once = [circuit, *random_circuits.sets, *subsets.values(), everything]
    out.without([*at_once, *map(out.complement, plan)])
    kept, knocked = out.only(several), out.without(several)
    (empty,) = out.without([everything])
    evidence["costs"] = out.compare(whole - knocked).evidence
    evidence["keeps"] = out.compare(kept).evidence

# %% tags=["hide-input"]
if circuit:
    resampled = patching.patch_sets(
        model,
        tested.prompts,
        tested.corrupted("p_ABC"),
        [
            knock_outs.list_nodes(out.complement(circuit)),
            knock_outs.list_nodes(circuit),
        ],
        answers=tested.answers,
    ).values.numpy()
    run.table(
        "faithfulness",
        figures.list_faithfulness(
            {
                "all but the circuit, means": (
                    kept[0],
                    out.compare(kept).spread,
                ),
                "all but the circuit, resampled": (resampled[0], "–"),
                "the circuit, means": (
                    knocked[0],
                    out.compare(knocked, below=True).spread,
                ),
                "the circuit, resampled": (resampled[1], "–"),
                "all heads, means": (empty, "–"),
            },
            whole,
            tested,
            out.average,
        ),
        caption=f"What is left of the logit difference, over {n_patched} prompts of the second sample: mean (95 % interval over templates), and its share of the whole model's in several definitions. "
        f"Controls: {random_circuits}.",
    )
    run.value("kept_share", out.average_ratio(kept[0], whole))
    run.value("knocked_share", out.average_ratio(knocked[0], whole))
    run.value(
        "kept_of_possible", out.average_ratio(kept[0] - empty, whole - empty)
    )

# %%
suffices = faithful = None
if circuit:
    possible = whole - empty  # what there is to keep
    faithful = out.average_ratio(kept[0], whole)
    if out.average(possible).low > 0:
        suffices = out.average(kept[0] - empty - 0.5 * possible)
run.claim("circuit-is-necessary", **evidence["costs"])
run.claim("circuit-beats-random", **evidence["keeps"])
run.claim(
    "circuit-suffices",
    estimate=suffices,
    baseline=out.average(possible).value / 2 if circuit else None,
)
run.claim("published-faithfulness", estimate=faithful)

# %% [markdown]
# How many heads does it take? The circuit's are added in the order of their effect on the first sample, random circuits'
# in any order.

# %%
if circuit:
    sizes, grown = knock_outs.grow(knock_outs.rank_heads(found))
    own = [*map(out.average, out.only(grown))]
    random_growth = [
        out.only(knock_outs.grow(knock_outs.shuffle(heads, seed))[1]).mean(1)
        for heads in random_circuits.sets[:3]
    ]
    reach = [
        n
        for n, one in zip(sizes, own, strict=True)
        if 2 * one.value > whole.mean()
    ]
    figures.show_sizes(
        sizes,
        own,
        random_growth,
        {"the whole model": whole.mean(), "no head at all": empty.mean()},
        caption=f"Half of the logit difference is there with {reach[0] if reach else 'no number of'} heads of those tried. What is left when only so many heads are kept, mean over {n_patched} prompts, 95 % interval over templates.",
    )

# %% [markdown]
# *Completeness* asks whether circuit and model react alike: knock the same heads out of both, and the logit differences
# should stay within a tenth of the whole one. *Minimality* asks what each head adds to the circuit without the rest of its
# role.

# %%
short = needed = None
if circuit:
    less = [knock_outs.take_away(circuit, some) for some in subsets.values()]
    in_model, in_circuit = out.without(subsets.values()), out.only(less)
    gaps = in_model - in_circuit
    gaps *= np.sign(gaps.mean(1, keepdims=True))
    worst = int(np.argmax([out.average(gap).value for gap in gaps]))
    short = claims.bound([out.average(0.1 * whole - gap) for gap in gaps])
    role_of, adds = knock_outs.measure_additions(out, found)
    over_bar = [out.average(one - 0.01 * whole) for one in adds]
    needed = claims.bound(over_bar)
    least = int(np.argmin([out.average(one).value for one in adds]))

# %%
if circuit:
    idle = [
        place
        for (_, place), one in zip(role_of, over_bar, strict=True)
        if one.high < 0
    ]
    run.value("worst_set", list(subsets)[worst])
    run.value("worst_model", out.average(in_model[worst]))
    run.value("worst_circuit", out.average(in_circuit[worst]))
    run.value("least_needed", figures.name_heads([role_of[least][1]]))
    run.value("idle_heads", figures.name_heads(idle))
run.claim(
    "circuit-is-complete",
    estimate=short,
    baseline=out.average(gaps[worst]).value if circuit else None,
)
run.claim(
    "circuit-is-minimal",
    estimate=needed,
    baseline=out.average(adds[least]).value if circuit else None,
)

# %% tags=["hide-input"]
if circuit:
    run.table(
        "completeness",
        [
            {
                "knocked out of both": name,
                "model": out.average(in_model[i]),
                "circuit": out.average(in_circuit[i]),
                "apart": out.average(gaps[i]),
            }
            for i, name in enumerate(subsets)
        ],
        caption=f"Completeness: logit difference of model and circuit with the same heads knocked out of both, over {n_patched} prompts of the second sample, 95 % interval over templates in brackets.",
    )
    run.table(
        "minimality",
        [
            {
                "head": figures.name_heads([place]),
                "role": name,
                "adds": out.average(adds[i]),
            }
            for i, (name, place) in enumerate(role_of)
        ],
        caption="Minimality: what a head adds to the circuit without the rest of its role (a negative head: takes away), in logits; same prompts, 95 % interval over templates in brackets.",
    )

# %% [markdown]
# ## Compare with GPT-2 small
#
# {cite:t}`wang2022interpretability` find that knocking out all name movers costs little, since backups take over, and that
# their circuit keeps 87 % of the logit difference. Two questions are left: does one head, that with the largest direct
# effect on the first sample, carry more than a third of it all, and do heads have the published roles?

# %%
largest, alone = [], None
if "logits" in found.stages:
    direct = found.stages["logits"].mean
    largest = [divmod(int(direct.argmin()), model.n_heads)]
    alone = out.average(whole - out.without([largest])[0] - whole / 3)
run.value("largest_head", figures.name_heads(largest))
run.claim(
    "one-head-dominates", estimate=alone, baseline=out.average(whole).value / 3
)
hits = [
    head in found.roles[name]
    for name, heads in figures.PUBLISHED_HEADS.items()
    for head in heads
]
same = claims.average(hits, seed=seed, of="heads") if on_gpt2 else None
run.claim("published-heads", estimate=same)

# %% [markdown]
# The head asked about is {glue:text}`largest_head`.
#
# ## One circuit, two tasks
#
# An [induction head](../project-1-induction-heads/induction_heads_notebook) looks at what followed the present token last
# time, on any text. In GPT-2 small the circuit's induction heads do so on random tokens as well
# {cite:p}`wang2022interpretability`. **What we expect.** On random tokens that come twice, this circuit's induction heads
# match prefixes, and its name movers copy what they look at, more than any control.

# %%
tokens = prompts.draw_segments(
    model, n_sequences=8, segment_length=25, n_segments=1, seed=seed
)[:, 0]
twice = prompts.prepend_start_token(model, tokens.repeat(1, 2))
repeats = attribution.score_attention_to_repeats(model, twice)
matching = repeats["induction"]
once = prompts.prepend_start_token(model, tokens)
resid = hooks.capture(model, once, "resid_pre", positions="all")["resid_pre"]
resid = resid[:, :, once.shape[1] - tokens.shape[1] :]  # less a start token
copying = attribution.score_copying(model, tokens, resid)
two_tasks = {"induction": matching, "name mover": copying}


# %%
def score_beside_controls(name, score):
    """The mean score of a role's heads and of their controls, by sequence."""
    drawn = [filled[name], *controls[name].sets]
    means = [
        sum(score[:, layer, head] for layer, head in one) / len(one)
        for one in drawn
    ]
    return baselines.compare_with_controls(torch.stack(means), seed=seed)


twofold = {
    name: score_beside_controls(name, score)
    for name, score in two_tasks.items()
    if name in filled
}
for name, against in twofold.items():
    run.value(f"score_{name.replace(' ', '_')}", against.own)
leads = [against.lead for against in twofold.values() if against.lead]
run.claim(
    "one-circuit-two-tasks",
    estimate=claims.bound(leads) if len(leads) == len(two_tasks) else None,
    baseline=max((one.strongest for one in twofold.values()), default=None),
)

# %% tags=["hide-input"]
if twofold:
    run.table(
        "two_tasks",
        [
            {
                "role": name,
                "heads": figures.name_heads(filled[name]),
                "score": {
                    "induction": "prefix matching",
                    "name mover": "copying",
                }[name],
            }
            | against.row
            for name, against in twofold.items()
        ],
        caption="Scores on 8 sequences of 25 random tokens that come twice, 95 % interval over sequences in brackets (bootstrap). Prefix matching goes from 0 to 1, copying from -1 to 1.",
    )

# %% [markdown]
# And what does the strongest head *without* a role do? It meets the first two criteria and no third one.

# %%
strange = unnamed[0] if unnamed else None
on_prompts = {f"END attends {name}": share for name, share in looks.items()}
on_prompts["END attends the first token"] = pattern[..., 0].movedim(0, -1)
on_prompts["writes IO less S"] = parts.heads
for name, one in writes.items():
    on_prompts[f"writes {name} less an absent name"] = one
rates = {
    key: found.scores[key] for key in ("raises IO", "lowers IO", "lowers S")
}
on_tokens = {
    "prefix matching": matching.movedim(0, -1),
    "attention to the same token": repeats["duplicate token"].movedim(0, -1),
    "copying": copying.movedim(0, -1),
}

# %% tags=["hide-input"]
if strange:
    averages = dict.fromkeys(on_prompts, lambda values: over(values, chosen))
    averages |= dict.fromkeys(
        on_tokens, lambda values: claims.average(values, seed=seed)
    )
    written = claims.shorten(float(parts.heads[strange].mean()))
    share = claims.shorten(
        float(sum(looks[name][strange] for name in looks).mean())
    )
    run.table(
        "strange",
        figures.list_head(strange, on_prompts | rates | on_tokens, averages),
        caption=f"Head {figures.name_heads([strange])} writes {written} logits of IO less S, with a share of {share} of its attention on the names. Means over {n_prompts} prompts (rates: {min(roles.COPIED, n_patched)} names; "
        "last three rows: 8 sequences of random tokens), 95 % interval in brackets.",
    )
run.value("strange_head", figures.name_heads([strange] if strange else []))

# %% [markdown]
# That head is {glue:text}`strange_head`. The table says where it looks and what it writes, not why.
#
# ## Check it
#
# The effect of patching one head once more in TransformerLens itself: its bridge runs the same weights through its own
# hooks.

# %%
layer, head = max(
    last_heads or [(model.n_layers - 1, 0)],
    key=lambda place: abs(float(parts.heads[place].mean())),
)
first = tested.first(1)
pair = [first.prompts[0], first.corrupted("p_ABC")[0]]
rows = torch.tensor(pair, device=device)


# %%
def patch_again(bridge):
    site = f"blocks.{layer}.attn.hook_z"
    options = {"prepend_bos": False}
    _, cache = bridge.run_with_cache(rows[1:], names_filter=site, **options)

    def put_in(z, hook):
        z[:, :, head] = cache[site][:, :, head]
        return z

    hooked = {"fwd_hooks": [(site, put_in)]} | options
    logits = bridge.run_with_hooks(rows[:1], **hooked)[0, -1]
    return (logits[first.io[0]] - logits[first.subject[0]]).item()


# %%
ours = patching.patch_sets(
    model,
    *([row] for row in pair),
    [knock_outs.list_nodes([(layer, head)])],
    answers=first.answers,
)
try:
    theirs = patch_again(models.view(model, "transformer_lens").model)
    check_difference = abs(theirs - float(ours.values))
    assert check_difference < 1e-2 or model.dtype != "float32"
except InputError as error:  # a family that TransformerLens can't run
    check_difference = f"not measured, as {error}"
run.value("check_difference", check_difference)
run.value("check_head", f"{layer}.{head}")

# %% [markdown]
# Head {glue:text}`check_head` patched, the two libraries differ by {glue:text}`check_difference` logits.
#
# ## Where this breaks
#
# How firm are the roles? The test of the effect once more on forty random halves of the prompts.

# %%
survives = {}
generator = np.random.default_rng(seed)
for _ in range(40):
    half = generator.permutation(n_patched)[: n_patched // 2]
    for name, heads in filled.items():
        stage = found.stages[roles.ROLES[name].stage]
        effect = stage.effect[..., half]
        passes = roles.measure_consistency(effect) > roles.bound_consistency(
            effect, seed=seed
        )
        passes &= effect.mean(-1).abs() >= stage.smallest
        for place in heads:
            survives.setdefault((name, place), []).append(bool(passes[place]))

# %%
firm = {key: float(np.mean(passed)) for key, passed in survives.items()}
weak = [place for (_, place), share in firm.items() if share < 0.5]
run.value("infirm_heads", figures.name_heads(weak))
run.value("n_infirm", len(weak))
run.value("n_with_role", len(firm))

# %% [markdown]
# - **Few prompts.** Effects of {glue:text}`infirm_heads` ({glue:text}`n_infirm` of {glue:text}`n_with_role` roles) pass in
#   fewer than half of the halves. Half the prompts make a weaker test, and with more prompts more heads would pass: the
#   test finds what is *consistent*; only the second criterion keeps out what is consistent and tiny.
# - **The null is about signs.** It supposes that a head without a role moves the logit difference up as easily as down. A
#   skewed effect can pass it.
# - **Heads only.** MLPs stay as they are in every test, and some of what they do belongs to the task. What the norm's
#   scale adds is summed over heads too.
# - **Order.** A head missed at one stage hides all that feeds it. With grouped-query attention what feeds one of the query
#   heads that share a key seems to feed all.
# - **Means are not neutral.** A mean over p_ABC still holds the sentence; compare the rows of the table.
# - **Few sentences.** An interval over ten says how much another ten would move it, not what other tasks would.
# - **Models that can't.** With random weights nothing is traced and the page says *no circuit found*.
#
# ## Summary
#
# - {glue:text}`found-names-the-indirect-object` (**{glue:text}`claim-names-the-indirect-object`**)
# - {glue:text}`found-lowers-s-more-than-raises-io` (**{glue:text}`claim-lowers-s-more-than-raises-io`**)
# - {glue:text}`found-one-head-dominates` (**{glue:text}`claim-one-head-dominates`**)
# - {glue:text}`found-others-take-over` (**{glue:text}`claim-others-take-over`**)
# - {glue:text}`found-position-outweighs-token` (**{glue:text}`claim-position-outweighs-token`**)
# - {glue:text}`found-circuit-is-necessary` (**{glue:text}`claim-circuit-is-necessary`**)
# - {glue:text}`found-circuit-beats-random` (**{glue:text}`claim-circuit-beats-random`**)
# - {glue:text}`found-circuit-suffices` (**{glue:text}`claim-circuit-suffices`**)
# - {glue:text}`found-circuit-is-complete` (**{glue:text}`claim-circuit-is-complete`**)
# - {glue:text}`found-circuit-is-minimal` (**{glue:text}`claim-circuit-is-minimal`**)
# - {glue:text}`found-one-circuit-two-tasks` (**{glue:text}`claim-one-circuit-two-tasks`**)
# - Beside GPT-2 small: logit difference **{glue:text}`claim-published-logit-difference`**, accuracy
#   **{glue:text}`claim-published-accuracy`**, heads **{glue:text}`claim-published-heads`**, S-inhibition knocked out
#   **{glue:text}`claim-published-s-inhibition-knock-out`**, position signal
#   **{glue:text}`claim-published-position-signal`**, faithfulness **{glue:text}`claim-published-faithfulness`**.

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. Guess first, then run** (easy, 5 minutes). Which role, knocked out alone, costs most? And what is left of the logit
# difference when every head is knocked out? *Hint: one answer is in a figure, the other in the last row of a table.*

# %%
my_role, my_rest = None, None  # such as "negative", and a number of logits
costliest = max(lost, key=lambda name: lost[name].own.value, default="none")
rest = float(out.without([out.complement([])])[0].mean())
print(exercises.check(my_role, costliest, "the figure of knock-outs"))
print(exercises.check(my_rest, rest, "the table of ablations"))

# %% [markdown]
# ```{dropdown} Solution
# The blue point farthest right; and the row "all heads, means", which is not zero, since MLPs and embeddings stay. So a
# share kept is also given of what heads add.
# ```
#
# **2. Another null** (medium, 20 minutes). Replace the sign flips by the effects of path patching between two *different*
# p_ABC corruptions of each prompt. Is the largest mean effect of any head above or below our smallest effect that counts?
# *Hint: draw a second data set with another seed and swap its `others` in.*

# %%
my_null = None  # the largest absolute mean effect, in logits
smallest = roles.SMALLEST_SHARE * float(found.logit_difference.mean())
if my_null is None:
    print(exercises.check(None, None, ""))
else:
    print(
        "the size criterion decides"
        if my_null < smallest
        else "noise is larger than our bound"
    )

# %% [markdown]
# ```{dropdown} Solution
# `dataclasses.replace(chosen, others=...)` gives other corruptions; `patch_paths(model, first, second, "logits",
# answers=chosen.answers)` patches between them. Neither prompt contains the task, so no effect there is due to it. Leave
# out prompts whose new names are among the two of the task.
# ```
#
# **3. Positions** (hard, 20 minutes). Knock the circuit out only where each role acts (S1+1, S2 or END) and compare with
# the table. *Hint: `hooks.Edit` takes a position for each prompt.*
#
# ```{dropdown} Solution
# Build edits as `roles.knock_out` does, with `position=torch.tensor(tested.positions["S2"])` and the means at those
# positions. If the roles are right, little changes for the knock-out; for *keep only*, losing the circuit's own heads at
# all other positions costs more, as {cite:t}`miller2024transformer` warn.
# ```
#
# ## References
#
# {cite:t}`wang2022interpretability`, {cite:t}`miller2024transformer` and {cite:t}`mcdougall2023copy`, in full in the
# [bibliography](../../reference/bibliography).
