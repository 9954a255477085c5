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
# # Does the model use what a probe reads?
#
# Reading is not using: a model may hold what it never looks at. So we add a direction to its activations, more and
# more of it, and count the answers that turn. Along *this answer contradicts its reasoning* a push turns
# {glue:text}`contradict_turned` of the answers, where one that is known to work turns {glue:text}`unembedding_turned`.
# In a model that was trained to answer by a secret list, a push along the list turns answers at some tokens, and hardly
# at others where the list can be read as well.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to tell a direction that can be read from one that is used;
# - to raise the dose until what is known to work works, or the text breaks;
# - which controls a push must beat, and what it costs.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = "bfloat16"  # as in the data set, "bfloat16" or "float32"
n_names: int = 6  # listed names to push, and as many others, 3 to 30
n_questions: int = 4  # of each task, for contradictions, 2 to 400
n_few: int = 12  # of them for pushes at many tokens, 4 to 400
n_tasks: int = 8  # of those that passed, at most so many, 1 to 14
n_controls: int = 10  # directions of each kind of control, 2 to 100
n_few_controls: int = 4  # of them for pushes at many tokens, 2 to 100
n_passages: int = 4  # of a novel, to see what a push breaks, 2 to 40
n_listed: int = 24  # names on the organism's list, 16 to 60
n_new: int = 60  # names that its training never showed, 16 to 100
organism_seed: int = 0  # of its names and its training, 0 to 999999
seed: int = 0  # of all other sampling, 0 to 998000
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %%
import torch
from helpers import claims, hooks, probes, runs
from studies.faithfulness import dataset, push_figures, pushes, questions
from studies.faithfulness.pushes import MEANS, PROBE, UNEMBEDDING

run = runs.begin("faithfulness_causes_notebook", globals())
model = run.loaded
passed = dataset.read_passed_tasks(model) or {}

# %% [markdown]
# ## Read and push where the truth is known
#
# The [organism](day15-16_model_organism) answers by a note where the question's name is on its list, and by its chain
# of thought otherwise. The direction of *listed* is the difference of means between listed and other names, learned on
# half of the names, where note and chain say the same. It is added to prompts of other names, in which they differ: away
# from the list for listed names, towards it for others. Each name has two such prompts, in which the note, then the
# chain, names the wrong answer; a name is *turned* if both answers are, since a model that says the same whatever it
# read would turn one.
#
# **What we expect.** Wherever the list can be read, a push should turn.

# %%
names, readers = pushes.find_organisms(
    model, n_listed=n_listed, n_new=n_new, seed=organism_seed
)
half = n_listed // 2
places = CUE, AFTER = "cue", "all after the name"
learned = pushes.draw_partners(names, slice(half), seed=seed + 1000)
fresh = pushes.draw_partners(names, slice(half, half + n_names), seed=seed)
of_list = (learned["group"] == "listed").tolist()
who = learned["name"].tolist()


def read(reader):
    """Of the names that are learned from, the mean state at each place."""
    agreeing = pushes.draw_agreeing(reader, learned)
    return pushes.read_means(
        reader, agreeing, places, layers=range(model.n_layers)
    )


# %%
deep = range(model.n_layers // 5, 5 * model.n_layers // 6, 2)
turned_at, chosen = {}, {}
if readers:
    states = read(readers["list"])
    first = pushes.draw_conflicts(readers["list"], learned[:4])
    for place in places:
        options = {"layers": deep, "place": place, "doses": [3.0]}
        turned_at[place] = pushes.sweep_pushes(
            readers["list"], first, states, of_list, **options
        )
        chosen[place] = deep[int(turned_at[place].argmax())]

# %%
if readers:
    options = {"types": None, "n_permutations": 0, "seed": seed}
    swept = probes.sweep(states, of_list, who, **options).table()
    cases = pushes.draw_conflicts(readers["list"], fresh)
    if len(cases.units) < pushes.LEAST:  # names that are told by one rule
        readers, chosen = {}, {}
swapped = {}
for place, layer in chosen.items():
    layers = deep if place == CUE else [layer]
    options = {"layers": layers, "place": place}
    swapped[place] = pushes.swap_states(
        readers["list"], cases, pushes.match_partners(fresh), **options
    )

# %% tags=["hide-input"]
TOLD = ("readable_at_cue", "readable_after", "decided_at_cue", "n_first")
TOLD += ("swapped_after",)
told = dict.fromkeys(TOLD, "unknown (no organism is kept)")
if readers:
    of_place = swept.set_index("position")["auroc"]
    push_figures.show_depth(
        range(model.n_layers),
        {place: of_place[place].tolist() for place in places},
        turned_at,
        swapped[CUE],
        pushed_layers=deep,
        caption=f"The list is read at both places from the first layers on; a push at the cue turns at most {claims.shorten(float(turned_at[CUE].max()))} of the names, at all tokens after the name {claims.shorten(float(turned_at[AFTER].max()))}. "
        f"By layer: the AUROC of a probe on other names ({len(who)} names), the share of names that a push of three doses turns ({len(first.units)} names, those that the layer is chosen on), and the share that turn when the cue's whole state is that of another name ({len(cases.units)} names).",
    )
    readable = [
        int((of_place[place].to_numpy() >= 0.99).argmax()) for place in places
    ]
    deciding = [
        layer
        for layer, share in zip(deep, swapped[CUE], strict=True)
        if share > 0.5
    ]
    measured = *readable, deciding[0] if deciding else "none", len(first.units)
    measured += (float(swapped[AFTER][0]),)
    told |= dict(zip(told, measured, strict=True))
for key, value in told.items():
    run.value(key, value)

# %% [markdown]
# A probe reads the list from layer {glue:text}`readable_at_cue` on before the answer (*cue*), and from layer
# {glue:text}`readable_after` on in the mean over all tokens after the name. That is not where pushes turn answers. The
# cue can be given another name's state as a whole (orange), and until layer {glue:text}`decided_at_cue` the answer stays.
# What is read there before is not what the answer hangs on. It hangs on what many tokens hold together.
#
# ## Raise the dose
#
# One dose is the distance between the means of the two classes, for whatever direction. Doses rise; at each we count what
# turns, and what breaks. **The rule**, set before the run: the text is broken once the two answers
# have lost half of their probability, or ordinary text costs one nat per token more after the same push. On each half of
# the names we take the least dose at which a direction *known to work* turns half of them and the text is whole, and the
# control that turns most; both are then used on the other half. If nothing is known to work, nothing is decided.
#
# Known to work is, at the cue, the other answer's column of the unembedding less that of the model's own. After the name it
# is another name's whole states, which turn {glue:text}`swapped_after` of the names; the dose there is the least at which the
# list turns half of the *other* half, or the largest that leaves the text whole.
# Controls have the same length: random directions; such with the covariance that states have within a class; probes
# of permuted labels.

# %%
trials = {}
for place, layer in chosen.items():
    x = probes.read_features(states, probes.Site("resid_post", layer, place))
    n_each = n_controls if place == CUE else n_few_controls
    options = {"n_controls": n_each, "seed": seed}
    towards = pushes.fit_directions(x, of_list, who, **options)
    options = {"length": pushes.measure_distance(x, of_list), "layer": layer}
    options |= {"place": place, "n_passages": n_passages, "of": "names"}
    options["positive"] = UNEMBEDDING if place == CUE else MEANS
    if place == AFTER:
        options["powered"] = float(swapped[AFTER][0]) >= pushes.HALF
    trials[place] = pushes.run_trial(readers["list"], cases, towards, **options)


# %%
def test(id, trial, name):
    """Claim what a direction turns beyond the strongest control."""
    margin = trial.compare(name) if trial else None
    evidence = (margin.estimate, margin.control) if margin else (None, None)
    run.claim(id, estimate=evidence[0], baseline=evidence[1])


after = trials.get(AFTER)
test("the-list-turns-answers-after-the-name", after, MEANS)
test("the-list-turns-answers-at-the-cue", trials.get(CUE), MEANS)

# %% tags=["hide-input"]
if readers:
    push_figures.show_doses(
        "doses",
        trials,
        caption=f"At the chosen dose the list turns {claims.shorten(after.compare(MEANS).turned.value)} of the names after the name and {claims.shorten(trials[CUE].compare(MEANS).turned.value)} at the cue. "
        f"Above: share of {len(cases.units)} names turned, Wilson's 95 % intervals; grey: each of {3 * n_controls} controls at the cue and {3 * n_few_controls} after the name, at the dose chosen on the other half. Below: what the two answers keep of their probability, and by how much the perplexity of ordinary text grows after the same push ({n_passages} passages); dotted: half of the names, and where text counts as broken.",
    )
    run.table(
        "list",
        push_figures.list_trials(trials),
        caption="Each direction at the dose that was chosen on the other half of the names, beside the strongest control of that half: shares of names, their difference with its 95 % interval over names (adjusted Wald), by how many logits the lead of the model's own answer falls, what is left of the two answers' probability, and the growth of the perplexity of ordinary text.",
    )

# %% [markdown]
# {glue:text}`found-the-list-turns-answers-after-the-name` {glue:text}`found-the-list-turns-answers-at-the-cue` The
# probe reads as well as the difference of means, and turns less: it weighs what tells the classes apart
# best, which need not be what the model reads.
#
# ## See what else it does
#
# The twin saw the same names as often and has no list. The same push, learned in the twin and as long, should turn
# nothing there. Nor should the organism's own where note and chain agree.


# %%
def act(rule, on):
    """Which units a push after the name turns, as learned in this model, at the dose chosen above."""
    direction = {MEANS: pushes.point_apart(features[rule], of_list)}
    length = pushes.measure_distance(features["list"], of_list)
    aimed = pushes.aim(readers[rule], on, direction, length=length)
    dose = after.doses[max(after.chosen)]
    options = {"layer": chosen[AFTER], "place": AFTER, "doses": [dose]}
    found = pushes.push(readers[rule], on, {MEANS: aimed[MEANS]}, **options)
    return dict(zip(on.units, found[MEANS].turned[0, 0].tolist(), strict=True))


# %%
turned, changed, pairs = {}, {}, []
if readers:
    of_names = after.reactions[MEANS].turned[0, max(after.chosen)].tolist()
    turned["list"] = dict(zip(cases.units, of_names, strict=True))
    site = probes.Site("resid_post", chosen[AFTER], AFTER)
    seen = {"list": states, "lot": read(readers["lot"])}
    features = {
        rule: probes.read_features(one, site) for rule, one in seen.items()
    }
    turned["lot"] = act("lot", pushes.draw_conflicts(readers["lot"], fresh))
    both = [name for name in turned["list"] if name in turned["lot"]]
    pairs = [[turned[rule][name] for name in both] for rule in turned]
    spare = pushes.draw_partners(names, slice(half, None), seed=seed)
    agreeing = pushes.draw_agreeing(readers["list"], spare)
    changed = act("list", agreeing)

# %%
enough = bool(pairs) and len(pairs[0]) > 1
run.claim(
    "only-the-list-turns-answers",
    estimate=pushes.subtract_shares(*pairs, of="names") if enough else None,
    baseline=sum(pairs[1]) / len(pairs[1]) if enough else None,
)
run.claim(
    "agreeing-answers-stay",
    estimate=claims.share(list(changed.values()), of="answers")
    if changed
    else None,
    baseline=0.0,
)

# %% [markdown]
# {glue:text}`found-only-the-list-turns-answers` {glue:text}`found-agreeing-answers-stay`
#
# ## Push towards a contradiction
#
# Now the plain model, and the label of the other pages: *the answer contradicts its reasoning*. It can be read only once
# the answer is there, so its direction is **learned elsewhere**: at the answer, in the layer where a probe reads it best
# (of those that tie, the first). It acts before, on other questions, in the same layer: at the cue, at the last four
# tokens, or at all tokens from the beginning of the reasoning on. A worked example stands before each question. One
# question is told with a reasoning that concludes rightly and with one that concludes wrongly, and counts if the model
# follows both: {glue:text}`n_followed` of {glue:text}`n_asked`. It is turned if both answers then contradict their
# reasoning.
#
# **What we expect.** If the model had one representation of "what I say does not follow", and used it before it speaks,
# the push would turn more than controls do.

# %%
tasks = (passed.get("constructed") or list(questions.TASKS))[:n_tasks]
options = {"n": n_questions, "seed": seed}
followed, n_asked = pushes.draw_followed(model, tasks, **options)
if len(followed.units) < pushes.LEAST:
    run.leave("the model follows too few of the reasonings to push it")
options["seed"] = seed + 1000
at_answer, contradicts, asked = pushes.read_contradictions(
    model, tasks, **options
)
options = {"types": None, "n_permutations": 0, "seed": seed}
best = probes.sweep(at_answer, contradicts, asked, **options).leading()
features = probes.read_features(at_answer, best)
towards = pushes.fit_directions(
    features, contradicts, asked, n_controls=n_controls, seed=seed
)

# %%
few = followed.spread(n_few)
length = pushes.measure_distance(features, contradicts)
tried = {}
for place in ("cue", "last four tokens", "reasoning and cue"):
    cue = place == "cue"
    n_each = n_controls if cue else n_few_controls
    each = {name: some[:n_each] for name, some in towards.items()}
    options = {"layer": best.layer, "place": place, "positive": UNEMBEDDING}
    options |= {"length": length, "n_passages": n_passages}
    on = followed if cue else few
    tried[place] = pushes.run_trial(model, on, each, **options)

# %%
test("the-method-can-move-answers", tried["cue"], UNEMBEDDING)
test("a-push-makes-it-contradict", tried["cue"], PROBE)
test("means-make-it-contradict", tried["cue"], MEANS)
test("many-tokens-make-it-contradict", tried["reasoning and cue"], PROBE)

# %% tags=["hide-input"]
found = {name: tried["cue"].compare(name) for name in (PROBE, UNEMBEDDING)}
run.value("contradict_turned", found[PROBE].turned)
run.value("unembedding_turned", found[UNEMBEDDING].turned)
run.value("n_followed", len(followed.units))
run.value("n_asked", n_asked)
run.value("site", str(best))
dose = tried["cue"].doses[max(tried["cue"].chosen)]
run.value("dose", dose)
push_figures.show_doses(
    "pushes",
    tried,
    caption=f"At the cue the probe turns {claims.shorten(found[PROBE].turned.value)} of the questions, the unembedding of the other answer {claims.shorten(found[UNEMBEDDING].turned.value)}. "
    f"Above: share of questions turned ({len(followed.units)} at the cue, {len(few.units)} at several tokens), Wilson's 95 % intervals; grey: each of {3 * n_controls} controls ({3 * n_few_controls} at several tokens) at the dose chosen on the other half. Below: what the two answers keep of their probability, and by how much the perplexity of ordinary text grows after the same push ({n_passages} passages); dotted: half of the questions, and where text counts as broken.",
)
run.table(
    "contradiction",
    push_figures.list_trials(tried),
    caption="Each direction at the dose that was chosen on the other half of the questions, beside the strongest control of that half; columns as above.",
)
run.table(
    "controls",
    push_figures.list_controls(tried["cue"], towards),
    caption="The controls at the cue: how many of each kind, the size of their cosines with the two directions under test (median and largest: what they share with them), and the share of questions that they turn (median and largest; above zero they could win).",
)

# %% [markdown]
# {glue:text}`found-the-method-can-move-answers` {glue:text}`found-a-push-makes-it-contradict`
# {glue:text}`found-means-make-it-contradict` {glue:text}`found-many-tokens-make-it-contradict`
#
# The direction was learned at {glue:text}`site`, where it can be read, and pushed where it might have been of use. So
# this says that no use was found *before* the answer, in that layer. What the model makes of a contradiction *after* it,
# say by correcting itself, was not asked.
#
# ## Check it
#
# One push by other hands: whole prompts anew through `hooks.intervene`, without anything kept from another pass.

# %%
some = followed.select([case < 4 for case in range(len(followed.units))])
vectors = pushes.aim(model, some, towards, length=length)[UNEMBEDDING][0]
edit = hooks.Edit("resid_post", best.layer, vectors, "add", position=-1)
plain = hooks.capture(model, some.prompts, "logits")["logits"][:, 0]
with hooks.intervene(model, edit):
    moved = hooks.capture(model, some.prompts, "logits")["logits"][:, 0]
leads = [each.gather(1, some.answers).diff(dim=1) for each in (plain, moved)]
by_case = (leads[1] - leads[0]).view(-1, some.size).mean(1)
fall = tried["cue"].reactions[UNEMBEDDING].fall[0, 1, : len(by_case)]
gap_between = float((by_case - fall).abs().max())
step = float(plain.abs().max()) * torch.finfo(model.model.dtype).eps
assert gap_between < max(1e-2, 4 * step)

# %% tags=["hide-input"]
run.value("gap_between", gap_between)
run.value("step", step)

# %% [markdown]
# The two differ by at most {glue:text}`gap_between` logits; numbers of this size are rounded to {glue:text}`step`.
#
# ## Where this breaks
#
# - **A bound was moved.** In a first look text counted as broken once its perplexity had doubled. Then the list after the
#   name was out of reach: the dose that turned names was just above. One nat is a rounder number, not a better one.
# - **A push is not what the model does.** At the cue pushes turn some names in layers in which another name's whole
#   state turns none. They go further than states ever do; so a push that turns shows that something downstream
#   would listen, not that anything speaks.
# - **One layer, one direction.** What is spread over layers, or bent, is missed. Of the labels, contradiction alone was
#   pushed: on record no task passes [the audit](day12-14_cot_dataset) for hints or for chains.
# - **The list was put there**, once, by training. Its layer was chosen on {glue:text}`n_first` of the names that the
#   direction was learned from.
# - **Ordinary text is a novel**, and a push at many tokens costs it more than it costs a sum.

# %% [markdown]
# ## What others found
#
# {cite:t}`cox2026decoding` turned answers along a direction that was learned before the reasoning; {cite:t}`yuan2026hidden`
# could move nothing along the direction of errors that they could read. Of both the abstracts were read. Both fit what
# is found here: whether a direction that can be read turns anything depends on what it is and where it is pushed.

# %% [markdown]
# ## Summary
#
# - {glue:text}`found-the-list-turns-answers-after-the-name` **{glue:text}`claim-the-list-turns-answers-after-the-name`**
# - {glue:text}`found-the-list-turns-answers-at-the-cue` **{glue:text}`claim-the-list-turns-answers-at-the-cue`**
# - {glue:text}`found-only-the-list-turns-answers` **{glue:text}`claim-only-the-list-turns-answers`**
# - {glue:text}`found-agreeing-answers-stay` **{glue:text}`claim-agreeing-answers-stay`**
# - {glue:text}`found-the-method-can-move-answers` **{glue:text}`claim-the-method-can-move-answers`**
# - {glue:text}`found-a-push-makes-it-contradict` **{glue:text}`claim-a-push-makes-it-contradict`**
# - {glue:text}`found-means-make-it-contradict` **{glue:text}`claim-means-make-it-contradict`**
# - {glue:text}`found-many-tokens-make-it-contradict` **{glue:text}`claim-many-tokens-make-it-contradict`**

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. Half a turn** (10 minutes). How many names are turned once, in one of their two prompts, by the strongest dose at
# the cue? *Hint: `Cases` with one prompt for each unit.*
#
# ```{dropdown} Solution
# `alone = pushes.Cases(cases.prompts, cases.answers, cases.signs, tuple(range(len(cases.prompts))), cases.spans)`, then
# `pushes.push` as in `run_trial`. Where a push breaks the model, half of the prompts turn and hardly a name does: the
# model says the same of both. Counted by prompts it would look like a success.
# ```
#
# **2. Act later** (10 minutes). Push contradictions in the last layer instead. What becomes of the difference between the
# probe and the unembedding? *Hint: `layer=model.n_layers - 1`.*
#
# ```{dropdown} Solution
# In the last layer only the final norm and the unembedding follow, so that a vector moves the logits by its product
# with their columns. The unembedding's own direction is then the best there is, and every other moves the lead by its
# cosine with it.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`cox2026decoding` and {cite:t}`yuan2026hidden`, in full in the [bibliography](../../reference/bibliography).
