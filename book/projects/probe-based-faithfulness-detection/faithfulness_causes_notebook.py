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
# more of it, and count whose answers turn. Along *this answer contradicts its reasoning* a push turns
# {glue:text}`contradict_turned` of the questions, along one that is known to work {glue:text}`unembedding_turned`. In a model
# that was trained to answer by a secret list, a push along the list turns {glue:text}`list_turned_after` of the names at all
# tokens after the name, where the strongest of the controls turns {glue:text}`list_control_after`, and
# {glue:text}`list_turned_cue` at the last token, where the list can be read as well.
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
n_names: int = 12  # to push towards the list, 4 to 30
n_questions: int = 4  # of each task, for contradictions, 2 to 400
n_few: int = 12  # of them for pushes at many tokens, 4 to 400
n_tasks: int = 8  # of those that passed, at most so many, 1 to 14
n_controls: int = 10  # directions of each kind of control, 2 to 100
n_few_controls: int = 7  # of them for pushes at many tokens, 2 to 100
n_passages: int = 4  # of a novel, to see what a push breaks, 2 to 40
n_listed: int = 24  # names on the organism's list, 16 to 60
n_new: int = 60  # names that its training never showed, 16 to 100
learned_half: int = 0  # of the listed names, the half that is learned from, 0 to 1; the other is pushed
organism_seed: int = 0  # of its names and its training, 0 to 999999
seed: int = 0  # of all other sampling, 0 to 998000
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %%
from dataclasses import replace

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
# half of the names, where note and chain say the same. It is added to prompts of names that are not listed, in which they
# differ: it should turn the answer from chain to note. (The other way round shows little: nearly anything that disturbs a
# model keeps it from what it was trained to do.) Each name has two such prompts, in which the note, then the chain, names
# the wrong answer, and counts only if both answers turn: a broken model that always says the same turns one of two.
#
# **What we expect.** Wherever the list can be read, a push should turn.

# %%
names, readers = pushes.find_organisms(
    model, n_listed=n_listed, n_new=n_new, seed=organism_seed
)
half = n_listed // 2
halves = slice(half), slice(half, 2 * half)
places = CUE, AFTER = "cue", "all after the name"
learned = pushes.draw_partners(names, halves[learned_half], seed=seed + 1000)
fresh = pushes.draw_partners(names, halves[1 - learned_half], seed=seed)
fresh = fresh[: 2 * n_names]  # a listed one and another take turns
of_list = (learned["group"] == "listed").tolist()
who = learned["name"].tolist()


# %%
def read(reader):
    """Of the names that are learned from, the mean state at each place."""
    agreeing = pushes.draw_agreeing(reader, learned)
    every = range(model.n_layers)
    return pushes.read_means(reader, agreeing, places, layers=every)


if readers:
    states = read(readers["list"])
    options = {"types": None, "n_permutations": 0, "seed": seed}
    swept = probes.sweep(states, of_list, who, **options).table()

# %% tags=["hide-input"]
readable = "No organism is kept for this model, so nothing was read or pushed where the truth is known."
if readers:
    read_from = push_figures.show_reading(
        swept,
        caption=f"Where the list can be read: AUROC of a probe by layer, on names it was not trained on, with 95 % intervals over the {len(who)} names; dotted: chance.",
    )
    readable = f"At the cue, the last token before the answer, a probe can tell listed names from others from {read_from[CUE]} on, and in the mean over all tokens after the name from {read_from[AFTER]} on (AUROC of .99)."
run.value("readable", readable)

# %% [markdown]
# {glue:text}`readable` Does the answer hang on it? We push in every other layer; and, as the most that can be done there, put
# another name's whole state in its place.

# %%
deep = range(model.n_layers // 5, 5 * model.n_layers // 6, 2)
turned_at, chosen = {}, {}
if readers:
    others = learned[learned["group"] == "others"][:4]
    first = pushes.draw_conflicts(readers["list"], others)
    for place in places if first.units else ():
        options = {"layers": deep, "place": place, "doses": [3.0]}
        turned_at[place], chosen[place] = pushes.sweep_pushes(
            readers["list"], first, states, of_list, **options
        )

# %%
if readers:
    both = pushes.draw_conflicts(readers["list"], fresh)
    cases = both.select(both.signs[:: both.size] > 0)  # towards the list
    if len(cases.units) < pushes.LEAST or not chosen:
        readers, chosen = {}, {}

# %%
swapped = {}
for place, layer in chosen.items():
    layers = deep if place == CUE else [layer]
    options = {"layers": layers, "place": place}
    swapped[place] = pushes.swap_states(
        readers["list"],
        both.select([case < n_names for case in range(len(both.units))]),
        pushes.match_partners(fresh),
        **options,
    )

# %% tags=["hide-input"]
story = "Nothing was pushed where the truth is known."
if readers:
    decided = push_figures.find_first(swapped[CUE], deep, 0.5)
    staying = (
        "in all layers tried" if decided == "no layer" else f"until {decided}"
    )
    highest = {
        place: claims.shorten(float(shares.max()))
        for place, shares in turned_at.items()
    }
    push_figures.show_depth(
        deep,
        turned_at,
        swapped[CUE],
        caption=f"The list can be read from {read_from[CUE]} on at the cue; the whole state there turns most answers from {decided} on. "
        f"By layer: the share of names that a push of three doses turns (of {len(first.units)} that the layer is chosen on: at most {highest[CUE]} at the cue, {highest[AFTER]} after the name); and the share that turn when the cue's whole state is that of another name ({n_names} names).",
    )
    run.value(
        "turned_by_layer",
        {place: shares.tolist() for place, shares in turned_at.items()},
    )
    story = (
        f"If the cue's whole state is replaced by that of another name (orange), most answers stay {staying}. So there the answer does not depend on what a probe reads at the cue. "
        f"If all tokens after the name are replaced in layer {chosen[AFTER]}, {claims.shorten(float(swapped[AFTER][0]))} of the names turn."
    )
run.value("story", story)

# %% [markdown]
# {glue:text}`story`
#
# ## Raise the dose
#
# One dose is the distance between the means of the two classes, for whatever direction. Doses rise; at each we count what
# turns, and what breaks: the text is broken once the two answers have lost half of their probability, or the perplexity of
# a novel more than doubles after the same push. What turns while it is broken does not count. **The rule:**
#
# 1. On each half of the names we take the least dose at which a direction that is *known to work* turns half of them, and
#    the control that turns most; both are used on the other half.
# 2. Known to work is, at the cue, the other answer's column of the unembedding less that of the model's own; after the
#    name, another name's whole states, with the dose at which the list turns half of the other half (or the largest that
#    leaves the text whole).
# 3. If nothing is known to work, nothing is decided.
#
# Controls have the same length: random directions; such with the covariance that states have within a class; probes
# of permuted labels.

# %%
trials, pointing = {}, {}
for place, layer in chosen.items():
    x = probes.read_features(states, probes.Site("resid_post", layer, place))
    n_each = n_controls if place == CUE else n_few_controls
    options = {"n_controls": n_each, "seed": seed}
    pointing[place] = pushes.fit_directions(x, of_list, who, **options)
    options = {"length": pushes.measure_distance(x, of_list), "layer": layer}
    options |= {"place": place, "n_passages": n_passages, "of": "names"}
    options["positive"] = UNEMBEDDING if place == CUE else MEANS
    if place == AFTER:
        options["powered"] = float(swapped[AFTER][0]) >= pushes.HALF
    trials[place] = pushes.run_trial(
        readers["list"], cases, pointing[place], **options
    )


# %%
def test(id, trial, name):
    """Claim what a direction turns beyond a strong control."""
    margin = trial.compare(name) if trial else None
    evidence = (margin.estimate, margin.control) if margin else (None, None)
    run.claim(id, estimate=evidence[0], baseline=evidence[1])


after = trials.get(AFTER)
test("the-list-turns-answers-after-the-name", after, MEANS)
test("the-list-turns-answers-at-the-cue", trials.get(CUE), MEANS)

# %% tags=["hide-input"]
if readers:
    for key, place in (("after", AFTER), ("cue", CUE)):
        turned = trials[place].compare(MEANS).turned
        run.value(f"list_turned_{key}", turned)
    run.value("list_control_after", after.compare(MEANS).control)
    run.value("probe_turned_after", after.compare(PROBE).turned)
    push_figures.show_doses(
        "doses",
        trials,
        caption=f"At the chosen doses the list turns {claims.shorten(after.compare(MEANS).turned.value)} of the names after the name and {claims.shorten(trials[CUE].compare(MEANS).turned.value)} at the cue. "
        f"Above: share of {len(cases.units)} names turned, Wilson's 95 % intervals; grey: each of {3 * n_controls} controls at the cue and {3 * n_few_controls} after the name, at the dose chosen on the other half. Below: what the two answers keep of their probability, and by how much the perplexity of ordinary text grows after the same push ({n_passages} passages); dotted: half of the names, and where text counts as broken.",
    )
    run.table(
        "list",
        push_figures.list_trials(trials),
        caption="Each direction at the dose that was chosen on the other half of the names, beside the control that turned most there: shares of names, their difference with its 95 % interval over names (Newcombe's, of pairs), how many of all controls turn as many or more, and by how many logits the lead of the model's own answer falls.",
    )
    run.table(
        "list_controls",
        push_figures.list_controls(after, pointing[AFTER]),
        caption="The controls after the name: how many of each kind, the size of their cosines with the two directions under test (median and largest: what they share with them), and the share of names that they turn (median and largest; above zero they could win).",
    )
else:
    keys = "list_turned_after", "list_turned_cue", "probe_turned_after"
    for key in (*keys, "list_control_after"):
        run.value(key, "an unknown share")

# %% [markdown]
# {glue:text}`found-the-list-turns-answers-after-the-name` {glue:text}`found-the-list-turns-answers-at-the-cue` These are the
# difference of means. The direction of the ridge probe turns {glue:text}`probe_turned_after` of the names after the name: it
# weighs what tells the classes apart best, which need not be what the model reads.
#
# ## See what else it does
#
# The twin saw the same names as often and has no list. The same push, learned in the twin and as long, should turn
# nothing there, each name at the dose that its half has above. Nor should the organism's own where note and chain agree.

# %%
site = probes.Site("resid_post", chosen.get(AFTER, 0), AFTER)


def act(rule, states, on):
    """Which names a push after the name turns, as learned in this model."""
    x = probes.read_features(states, site)
    direction = {MEANS: pushes.point_apart(x, of_list)}
    aimed = pushes.aim(readers[rule], on, direction, length=length)
    options = {"layer": site.layer, "place": AFTER}
    return after.repeat(readers[rule], on, aimed, **options)


# %%
lot, agreeing, pairs = {}, {}, []
if readers:
    x = probes.read_features(states, site)
    length = pushes.measure_distance(x, of_list)  # in the twin as well
    unlisted = fresh[fresh["name"].isin(cases.units)]
    on = pushes.draw_conflicts(readers["lot"], unlisted)
    lot = act("lot", read(readers["lot"]), on)
    on = pushes.draw_agreeing(readers["list"], unlisted)
    agreeing = act("list", states, on)
    of_names = after.list_turned(MEANS).tolist()
    own = dict(zip(cases.units, of_names, strict=True))
    shared = [name for name in own if name in lot[MEANS]]
    pairs = [[each[name] for name in shared] for each in (own, lot[MEANS])]

# %%
enough = bool(pairs) and len(pairs[0]) > 1
margin = pushes.subtract_shares(*pairs, of="names") if enough else None
if enough:
    most = sum(pairs[0]) / len(pairs[0])  # if nothing turns in the twin
    margin = replace(margin, reach=(most - 1, most))
run.claim(
    "fewer-turn-in-the-twin",
    estimate=margin,
    baseline=sum(pairs[1]) / len(pairs[1]) if enough else None,
)

# %%
changed = list(agreeing.get(MEANS, {}).values())
run.claim(
    "agreeing-answers-stay",
    estimate=claims.share(changed, of="names") if changed else None,
    baseline=0.0,
)

# %%
for key, each in (("lot", lot), ("agreeing", agreeing)):
    turned = list(each.get(UNEMBEDDING, {}).values())
    share = claims.share(turned, of="names") if turned else "an unknown share"
    run.value(f"unembedding_{key}", share)

# %% [markdown]
# {glue:text}`found-fewer-turn-in-the-twin` {glue:text}`found-agreeing-answers-stay` As for whether such a push could have
# turned them at all: along the unembedding it turns {glue:text}`unembedding_lot` in the twin, and
# {glue:text}`unembedding_agreeing` where note and chain agree.
#
# ## Push towards a contradiction
#
# Now the plain model, and the label of the other pages: *the answer contradicts its reasoning*. It can be read only once
# the answer is there, so its direction is **learned elsewhere**: at the answer, in the first layer where a probe reads it
# within {glue:text}`tied` of the best. It acts before, on other questions, in the same layer: at the cue, or at all
# tokens from the beginning of the reasoning on. A worked example stands before each question. One
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
    run.leave(
        f"the model follows both reasonings of {len(followed.units)} of {n_asked} questions, and a push needs {pushes.LEAST}"
    )

# %%
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
for place in ("cue", "reasoning and cue"):
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

# %%
here = {}  # where the truth is known, learned and pushed in this layer
for place, trial in trials.items():
    site = probes.Site("resid_post", best.layer, place)
    x = probes.read_features(states, site)
    direction = {MEANS: pushes.point_apart(x, of_list)}
    options = {"length": pushes.measure_distance(x, of_list)}
    aimed = pushes.aim(readers["list"], cases, direction, **options)
    options = {"layer": best.layer, "place": place}
    turned = trial.repeat(readers["list"], cases, aimed, **options)[MEANS]
    here[place] = claims.share(list(turned.values()), of="names").brief()

# %% tags=["hide-input"]
list_here = "there is no organism to try it on."
if here:
    list_here = f"in it the organism's list, learned and pushed there at the doses above, turns {here[CUE]} of the names at the cue and {here[AFTER]} after the name."
found = {name: tried["cue"].compare(name) for name in (PROBE, UNEMBEDDING)}
run.value("contradict_turned", found[PROBE].turned)
run.value("unembedding_turned", found[UNEMBEDDING].turned)
run.value("n_followed", len(followed.units))
run.value("n_asked", n_asked)
run.value("site", str(best))
run.value("n_pushed_tasks", len({task for task, _ in followed.units}))
run.value("list_here", list_here)
run.value("tied", probes.TIED)
run.value("dose_share", length / float(features.norm(dim=1).mean()))
push_figures.show_doses(
    "pushes",
    tried,
    caption=f"At the cue the probe turns {claims.shorten(found[PROBE].turned.value)} of the questions, the unembedding of the other answer {claims.shorten(found[UNEMBEDDING].turned.value)}. "
    f"Above: share of questions turned ({len(followed.units)} at the cue, {len(few.units)} at several tokens), Wilson's 95 % intervals; grey: each of {3 * n_controls} controls ({3 * n_few_controls} at several tokens) at the dose chosen on the other half. Below: what the two answers keep of their probability, and by how much the perplexity of ordinary text grows after the same push ({n_passages} passages); dotted: half of the questions, and where text counts as broken.",
)
run.table(
    "contradiction",
    push_figures.list_trials(tried),
    caption="Each direction at the dose that was chosen on the other half of the questions, beside the control that turned most there; columns as above.",
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
# The direction was learned at {glue:text}`site`, where it can be read, and pushed where it might have been of use; a dose is
# {glue:text}`dose_share` of the length of the states there. What the model makes of a contradiction *after* the answer, say by
# correcting itself, was not asked. Nor does this layer have to be the one that would matter: {glue:text}`list_here`
#
# ## Check it
#
# One push by other hands: whole prompts anew through `hooks.intervene`, without anything kept from another pass.

# %%
some = followed.select([case < 4 for case in range(len(followed.units))])
trial = tried["cue"]
aimed = pushes.aim(model, some, towards, length=length)[UNEMBEDDING][0]
vectors = trial.doses[-1] * aimed
edit = hooks.Edit("resid_post", best.layer, vectors, "add", position=-1)
plain = hooks.capture(model, some.prompts, "logits")["logits"][:, 0]
with hooks.intervene(model, edit):
    moved = hooks.capture(model, some.prompts, "logits")["logits"][:, 0]
leads = [each.gather(1, some.answers).diff(dim=1) for each in (plain, moved)]
by_case = (leads[1] - leads[0]).view(-1, some.size).mean(1)
fall = trial.reactions[UNEMBEDDING].fall[0, -1, : len(by_case)]
gap_between = float((by_case - fall).abs().max())
assert gap_between < 0.25 * float(fall.abs().mean())

# %% tags=["hide-input"]
run.value("gap_between", gap_between)
run.value("mean_fall", float(fall.abs().mean()))

# %% [markdown]
# The two differ by at most {glue:text}`gap_between` logits, of {glue:text}`mean_fall` by which leads move at the largest dose;
# sixteen bits are no finer.
#
# ## Where this breaks
#
# - **Choices were made after a look.** The doses, when a text counts as broken, pushing towards the list alone, how a layer is
#   chosen where none turns a name, and the number of questions were changed with results in view, on the names and questions
#   that a default run pushes. So the run on record pushes the *other* half of the names, learns from these, and draws other
#   questions (`learned_half`, `seed`). Four of its twelve names had served a default run to choose a layer, and it was made
#   anew when controls that break the text, like what is tested, no longer counted. What turned there beyond the strongest
#   control:
#
#   ```{on-record} projects/probe-based-faithfulness-detection/faithfulness_causes_notebook
#   the-list-turns-answers-after-the-name: along the list, after the name
#   the-list-turns-answers-at-the-cue: along the list, at the last token
#   the-method-can-move-answers: along the unembedding
#   a-push-makes-it-contradict: along the probe of contradictions
#   ```
#
# - **A push is not what the model does.** It goes further than states ever do; so a push that turns shows that something
#   downstream would listen, not that anything speaks.
# - **One layer, one direction.** What is spread over layers, or bent, is missed. Of the labels, contradiction alone was
#   pushed.
# - **The list was put there**, once, by training. Its layer was chosen on four of the names that the direction was learned
#   from.
# - **The unembedding is an easier push**: it has a vector for each prompt's own answers, what is tested has one for all.
# - **These tasks.** Intervals are over questions of the {glue:text}`n_pushed_tasks` tasks at hand, which differ a lot in how easily
#   they turn; other tasks may turn otherwise.
# - **Ordinary text is a novel**, and a push at many tokens costs it more than it costs a sum.

# %% [markdown]
# ## What others found
#
# {cite:t}`cox2026decoding` turned answers along a direction that was learned before the reasoning; {cite:t}`yuan2026hidden`
# could move nothing along the direction of errors that they could read. Of both the abstracts were read. Here too it
# is not enough that a direction can be read.

# %% [markdown]
# ## Summary
#
# - {glue:text}`found-the-list-turns-answers-after-the-name` **{glue:text}`claim-the-list-turns-answers-after-the-name`**
# - {glue:text}`found-the-list-turns-answers-at-the-cue` **{glue:text}`claim-the-list-turns-answers-at-the-cue`**
# - {glue:text}`found-fewer-turn-in-the-twin` **{glue:text}`claim-fewer-turn-in-the-twin`**
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
