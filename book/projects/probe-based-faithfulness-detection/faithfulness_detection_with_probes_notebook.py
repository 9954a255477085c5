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
# # When can a probe detect an unfaithful chain of thought?
#
# Three guesses stood at the beginning: middle layers read it better than late ones (H1), the
# second-to-last token than the last (H2), a single head than the residual stream (H5). Here they are put
# to labels on tasks that passed their gates ({glue:text}`labels_asked`), and every probe is set beside what tells the label without one.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - why two probes that make no errors can't be compared, and how to compare them all the same;
# - how few questions a probe needs, and how sure one can be of that;
# - what a probe is worth beside somebody who reads the text.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = "bfloat16"  # as in the data set, "bfloat16" or "float32"
n_questions: int = 5  # of each task, for contradictions, 5 to 100
n_fresh: int = 10  # further ones, of which probes learn from few, 4 to 200
n_hinted: int = 16  # of each task, with hints, 4 to 200
n_causal: int = 12  # of each task, with changed chains, in pairs, 4 to 2400
n_samples: int = 2  # draws of worked examples for hints, 1 to 8
n_tasks: int = 4  # of those that passed, at most so many, 1 to 14
n_permutations: int = 100  # of the labels, 100 to 1000
n_data_seeds: int = 1  # draws of the questions for contradictions, 1 to 10
reader_name: str = ""  # of a language model that is asked about transcripts; empty for the model itself
seed: int = 0  # of all sampling, 0 to 999999
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %% tags=["hide-input"]
from dataclasses import replace

import numpy as np
import pandas as pd
from helpers import ROOT, claims, folds, hooks, models, probes, runs
from helpers.scores import tabulate
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score
from studies.faithfulness import (
    dataset,
    hypotheses,
    learning,
    questions,
    readers,
    reading_figures,
    transcripts,
)
from studies.faithfulness.reading_figures import NAMES, UNITS

run = runs.begin("faithfulness_detection_with_probes_notebook", globals())
model = run.loaded
place = {"dtype": dtype, "device": device}
reader = models.load(reader_name, **place) if reader_name else model

# %%
example = questions.draw_questions(model, tasks=["addition"], n=1, seed=seed)
reading_figures.show_crossing(
    transcripts.construct(model, example),
    caption="One question told eight times: between the classes only this differs, whether the answer follows from the reasoning before it (blue) or contradicts it (orange). Each candidate is concluded, answered and named last equally often in both. Shown are the last sentence of the reasoning and the answer.",
)

# %% [markdown]
# This label, *the answer contradicts its reasoning*, is one that we write ourselves. Three others say what the model did: its
# answer was moved by a hint that its chain does not mention, or hardly depends on a chain that it was given, or on its own.
# A label is asked only on tasks that passed its gates ([days 12 to 14](day12-14_cot_dataset)), where worked examples
# stood before contradictions; here none do.

# %%
on_record = dataset.read_passed_tasks(model)
every = list(questions.TASKS)
passed = {
    label: (every if on_record is None else on_record.get(label, []))[:n_tasks]
    for label in NAMES
}
asked_of = [NAMES[label] for label in NAMES if passed[label]]
run.value("labels_asked", "; ".join(asked_of) or "none")
run.table(
    "passed",
    reading_figures.list_tasks(passed),
    caption=f"Tasks on which each label passed its gates, at most {n_tasks} of them"
    + ("." if on_record else " (not known for this model, so all are taken)."),
)

# %% [markdown]
# ## Say what would count, before looking
#
# **What we expect.** Middle layers should do best: they have combined question and reasoning, and late ones turn to the next
# word. The tokens after an answer may sum it up. That one head should beat the stream into which all write would be a
# surprise.
#
# Each guess compares two kinds of sites by AUROC, and holds where the whole interval exceeds {glue:text}`bound`. The best
# of each kind is chosen without the questions that are tested; where one is named, it is the first within
# {glue:text}`tied` of the best. Where neither kind reads the label (p < {glue:text}`readable` on labels permuted within
# tasks), the verdict is "not run". Where the other kind leaves less than {glue:text}`bound` to gain, no data could make the
# guess hold, and it is "out of reach".

# %% tags=["hide-input"]
BOUND = float(hypotheses.HYPOTHESES["H1"].rule.split()[-1])
run.value("bound", BOUND)
run.value("tied", probes.TIED)
run.value("readable", hypotheses.READABLE)
_, middle, late = hypotheses.split_thirds(model.n_layers)
run.value("middle", f"{middle[0]} to {middle[-1]}")
run.value("late", f"{late[0]} to {late[-1]}")

# %% [markdown]
# ## Read the label everywhere, and without a probe
#
# We read the residual stream, attention, MLP and every head in every layer: at the token before the answer (*cue*), at
# the answer, at the full stop (*end*), and at the first two tokens of what follows (*next* and *last*, the beginning of
# another question). Middle layers are {glue:text}`middle`, late ones {glue:text}`late`.

# %%
PLACES = ("cue", "answer", "end", "next", "last")
FIXED = PLACES[1:]  # where the label is known
SITES = ("resid_post", "attn_out", "mlp_out", "head_z")
READ = ("resid_post", "head_z")  # what the guesses are about


def draw(first, n):
    """Questions of each task from a place in its list on: no two draws share a content."""
    options = {"tasks": passed["constructed"], "seed": seed}
    every = questions.draw_questions(model, n=first + n, **options)
    return [
        question
        for number, question in enumerate(every)  # one task after the other
        if number % (first + n) >= first
    ]


# %%
def swept(states, truth, rows, n_permutations, sites=None):
    """Probes; labels are permuted within tasks, of pairs by question."""
    groups = dataset.list_units(rows)
    return probes.sweep(
        states,
        truth,
        groups,
        types=None,
        sites=sites,
        n_permutations=n_permutations,
        strata=[task for task, _ in groups],
        blocks=rows["question"].tolist() if "pair" in rows else None,
        seed=seed,
    )


# %%
def captured(table, sites, places, **options):
    """What transcripts leave at some sites and tokens, and their labels."""
    positions = transcripts.list_places(model, table, places)
    options |= {"positions": positions, "as_trees": True}
    states = hooks.capture(model, table["text"].tolist(), sites, **options)
    return states, table["contradicts"].astype(bool).tolist()


# %%
rows_of, others, first_draw = {}, None, None
sweeps = {label: [] for label in NAMES}
for number in range(n_data_seeds) if passed["constructed"] else ():
    asked = draw(number * n_questions, n_questions)
    table = transcripts.construct(model, asked)
    states, truth = captured(table, SITES, PLACES)
    sites = probes.list_sites(states)
    kept = [s for s in sites if s.component in READ and s.position in FIXED]
    found = swept(states, truth, table, n_permutations, kept)
    sweeps["constructed"].append(found)
    if not number:
        rows_of["constructed"], first_draw = table, (states, kept, truth)
        rest = [site for site in sites if site not in set(kept)]
        others = swept(states, truth, table, 0, rest)

# %% [markdown]
# Beside every probe stands what needs none: n-grams of words and characters and the mean input embedding, fitted once for all
# tasks and once for each; the best single rule, among them a parser that compares verdict and answer; the model's lean,
# before the answer, towards the candidate that was not written; and a language model that is asked
# ({glue:text}`reader`). Which is best is decided in the other folds.


# %%
def read_without(label):
    """Compare the probe of a label with what tells it without one."""
    found, rows = sweeps[label][0], rows_of[label]
    known = found.labels.tolist(), list(found.groups)
    options = {"folds": found.folds, "seed": seed}
    without = readers.score_without_probe(
        model, label, rows, *known, reader=reader, **options
    )
    best = readers.choose_best(without, known[0], found.folds)
    margin = readers.measure_margin(
        found, best.scores, of=UNITS[label], seed=seed
    )
    scores = {"probe": found.best().scores, "best without": best.scores}
    return margin, tabulate(scores | without, *known, **options)


# %%
margins, compared = {}, {}
if sweeps["constructed"]:
    margin, table = read_without("constructed")
    margins["constructed"], compared["constructed"] = margin, table
run.value("reader", reader.card.name)

# %% tags=["hide-input"]
ALONE = (readers.RULE, readers.OUTPUT, readers.READER)
beside, at_best = {}, {}
if others:
    found = sweeps["constructed"][0]
    areas = compared["constructed"].set_index("scores")["auroc"]
    beside = {name: float(areas[name]) for name in ALONE}
    for whole, asked in ((others, PLACES[:1]), (found, FIXED)):
        for token in asked:
            stream = [
                site
                for site in whole.sites
                if (site.component, site.position) == ("resid_post", token)
            ]
            best = whole.best(stream).auroc
            at_best[token] = replace(best, of="questions")
            run.value(f"auroc_{token}", at_best[token])
    curves = pd.concat([others.table(), found.table()])
    reading_figures.show_layers(
        curves[curves["component"] != "head_z"],
        thirds=(middle[0], late[0]),
        beside=beside,
        known=FIXED,
        caption=f"The residual stream tells a contradiction with an AUROC of {claims.shorten(at_best['answer'].value)} at the answer and {claims.shorten(at_best['last'].value)} at the last token; the best single rule with {claims.shorten(beside[readers.RULE])}. "
        f"{len(rows_of['constructed'])} transcripts of {len(set(found.groups))} questions; ridge probes, folds by question; bands: 95 % bootstrap intervals, of the stream alone; grey bands: permuted labels; thin vertical lines: thirds of the depth.",
    )

# %% [markdown]
# At the answer the stream reaches {glue:text}`auroc_answer`, at the full stop {glue:text}`auroc_end`, then
# {glue:text}`auroc_next` and {glue:text}`auroc_last`. At the cue it is {glue:text}`auroc_cue`, as there the two transcripts of a
# pair are still the same. Who can read needs no probe for this label; it is good for asking *where* a model holds what is
# known to be there.
#
# ## Compare kinds of sites on all training questions


# %%
def contrasts(sweeps, places, two, of="questions"):
    """H1, H2 and H5 for one label; None where nothing is read."""
    sides = hypotheses.name_sides(model.n_layers, places, two)
    return {
        name: hypotheses.contrast(sweeps, *of_name, of=of, seed=seed)
        for name, of_name in sides.items()
        if sweeps
    }


# %%
HARD = 0.95  # AUROC of the stream below which a token is hard
hard = tuple(t for t in FIXED if t in at_best and at_best[t].value < HARD)
written = sweeps["constructed"]
answers = {
    "constructed": contrasts(written, FIXED, PLACES[-2:]),
    "hard": contrasts(written if hard else [], hard, PLACES[-2:]),
}

# %% [markdown]
# Over all four tokens, middle less late layers is {glue:text}`h1_value`, and the best head less the best stream
# {glue:text}`h5_value`; near an AUROC of one there is nothing left to gain. At the hard tokens, where the stream stays below
# {glue:text}`hard_bound` ({glue:text}`hard`), they are {glue:text}`h1_value_hard` and {glue:text}`h5_value_hard`. The
# second-to-last token less the last is {glue:text}`h2_value`. The model reads from left to right, so no token knows whether it
# is the last: H2 compares two distances from the answer.
#
# ## Let probes learn from few questions
#
# With few training questions all probes err, and differ. A probe sees one transcript of each of {glue:text}`sizes` questions,
# half with a contradiction, and is tested on others. **What is compared** is its mean AUROC over these sizes: one number for
# every probe, with an upper end, and an interval over questions (each tenth left out in turn, of training and test alike). By
# the same number sites are chosen on the questions above; reported are fresh ones. How many questions bring a probe to
# {glue:text}`goal` is in the table.


# %%
def learn(features, truth, table, **options):
    """Learning curves of probes on transcripts."""
    strata, units = table["task"].tolist(), dataset.list_units(table)
    options |= {"strata": strata, "seed": seed}
    return learning.trace_learning(features, truth, units, **options)


def read(states, sites):
    """The activations at each of some sites."""
    return {site: probes.read_features(states, site) for site in sites}


# %%
chosen, learned, answers["few"] = {}, None, {}
n = len(passed["constructed"])
enough = n * n_questions >= learning.N_BLOCKS
enough &= n * n_fresh >= 2 * learning.SIZES[-1]
if enough:
    states, sites, truth = first_draw
    options = {"n_draws": 50}  # to choose; more to report
    known = learn(read(states, sites), truth, rows_of["constructed"], **options)
for places in (FIXED, *((token,) for token in FIXED)) if enough else ():
    sides = hypotheses.name_sides(model.n_layers, places, PLACES[-2:])
    chosen[places] = {
        name: [known.find_leading(filter(legal, sites)) for legal in of_name]
        for name, of_name in sides.items()
    }

# %%
if enough:
    fresh = transcripts.construct(
        model, draw(n_data_seeds * n_questions, n_fresh)
    )
    sites = {s for of in chosen.values() for two in of.values() for s in two}
    layers = sorted({site.layer for site in sites})
    states, truth_fresh = captured(fresh, READ, FIXED, layers=layers)
    features = read(states, sorted(sites))

# %% [markdown]
# Two controls learn from the same transcripts. A head has fewer features than the stream, and with few examples that may be
# all: so the stream is also cut to as many, the directions in which it varies most, each scaled to vary alike (found without
# labels). Scaling alone changes much, so the head is treated likewise. And word n-grams show what the text gives.

# %%
if enough:
    head, stream = chosen[FIXED]["H5"]
    width = features[head].shape[1]
    features["cut"] = learning.cut(features[stream], width)
    features["likewise"] = learning.cut(features[head], width)
    features["words"] = readers.count_words(fresh["text"].tolist())
    learned = learn(features, truth_fresh, fresh)
    answers["few"] = {
        name: learned.subtract(*two) for name, two in chosen[FIXED].items()
    }
    answers["few"]["wide"] = learned.subtract("likewise", "cut")

# %%
LINES = {
    "best middle layer": ("H1", 0),
    "best late layer": ("H1", 1),
    "best head": ("H5", 0),
}
panels = {}
for token in FIXED if learned else ():
    panels[token] = {
        name: chosen[token,][guess][side]
        for name, (guess, side) in LINES.items()
    } | {"word n-grams": "words"}
if learned:
    panels[stream.position][f"best stream, cut to {width}"] = "cut"
    panels[stream.position]["best head, scaled likewise"] = "likewise"

# %% tags=["hide-input"]
run.value("goal", learning.GOAL)
run.value("sizes", ", ".join(map(str, learning.SIZES)))
run.value("hard_bound", HARD)
run.value("hard", " and ".join(hard) or "none")
if learned:
    needed = {
        name: learned.count_needed(probe)
        for name, probe in panels["answer"].items()
    }
    alone = "; ".join(
        f"{name} {claims.shorten(value)}" for name, value in beside.items()
    )
    reading_figures.show_learning(
        learned,
        panels,
        beside=beside,
        caption=f"To reach an AUROC of {learning.GOAL} at the answer the best head needs {needed['best head']} questions, the best middle layer {needed['best middle layer']}, the best late layer {needed['best late layer']}. "
        f"One transcript of each training question; {learned.n} questions that chose no site; means over {learned.auroc.shape[2]} training sets; thin line: {learning.GOAL}. Lines across need no training.",
    )
    run.table(
        "few",
        reading_figures.list_learning(learned, panels),
        caption=f"Mean AUROC over training sets of {', '.join(map(str, learning.SIZES))} questions, one transcript of each, with 95 % intervals (jackknife over blocks of questions); sites chosen on other questions. Without any training: {alone}.",
    )

# %% [markdown]
# On average over these sizes, middle less late layers is {glue:text}`h1_value_few`, head less stream
# {glue:text}`h5_value_few`, and head less the stream cut to its width, both scaled, {glue:text}`wide_value`.
#
# ## Ask what the model did
#
# The labels of what the model did are read before the answer is written, where a warning would still be of use: at the end of
# the reasoning, one token before the cue, and at the cue, after the same examples after which the chain was written.

# %%
BEFORE = ("reasoning", "before the cue", "cue")


def load(label):
    """Rows of what the model did, and whether each is unfaithful."""
    n = n_hinted if label == "hint" else n_causal
    options = {"tasks": passed[label], "n_samples": n_samples, "seed": seed}
    options["folder"] = ROOT / "_build" / "generated"
    made = dataset.load_transcripts(model, label, n=n, **options)
    return dataset.select_unfaithful(made, n=n)


# %%
for label in dataset.BEHAVIOURS:
    rows, truth = load(label) if passed[label] else (None, [])
    if truth and folds.can_fold(truth, dataset.list_units(rows), seed=seed):
        prompts, positions = transcripts.put_in_context(model, rows)
        options = {"positions": positions, "as_trees": True}
        states = hooks.capture(model, prompts, READ, **options)
        sweeps[label].append(swept(states, truth, rows, n_permutations))
        rows_of[label] = rows
        margins[label], compared[label] = read_without(label)
    units_of = UNITS[label]
    answers[label] = contrasts(sweeps[label], BEFORE, BEFORE[-2:], units_of)


# %%
def explain(column):
    """Why a guess was not put to a label."""
    label = "constructed" if column in ("few", "hard") else column
    if not passed[label]:
        return "no task passed the gates"
    if not sweeps[label] or (column == "few" and not learned):
        return "too few questions"
    none_hard = column == "hard" and not hard
    unread = "neither side reads the label above chance"
    return "no token is hard" if none_hard else unread


# %%
def decide(id, key, column, estimate):
    """Put a claim to the test, whose baseline is the most there could be."""
    run.value(key, estimate or explain(column))
    run.value(f"why_{id}".replace("-", "_"), explain(column))
    run.claim(id, estimate=estimate, baseline=estimate and estimate.reach[1])


# %%
cells = {}
for name in ("H1", "H2", "H5"):
    for column, (tail, title) in reading_figures.COLUMNS.items():
        cells[name, title] = "the same as the first column"
        if (name, column) == ("H2", "hard"):
            continue
        estimate, key = answers[column].get(name), f"{name.lower()}_value"
        key += "" if column == "constructed" else f"_{column}"
        decide(f"{name.lower()}-{tail}", key, column, estimate)
        cells[name, title] = estimate or explain(column)
decide("h5-few-as-wide", "wide_value", "few", answers["few"].get("wide"))

# %% tags=["hide-input"]
reading_figures.show_grid(
    cells,
    bound=BOUND,
    caption=f"What each guess came to on each label, in AUROC, with 95 % intervals. A guess holds where the whole interval is right of {BOUND} (dashed); dark grey: more than there could have been; pale: not asked, and why.",
)

# %% [markdown]
# ## Ask what a probe adds to reading
#
# For each label the best probe, its site chosen in the other folds, less the best of what needs none, chosen there too.

# %%
for label in NAMES:
    tail, margin = reading_figures.COLUMNS[label][0], margins.get(label)
    run.value(f"why_margin_{tail}", explain(label))
    if margin:
        run.value(f"probe_{tail}", sweeps[label][0].best().auroc)
    run.claim(
        f"a-probe-adds-to-reading-{tail}",
        estimate=margin,
        baseline=margin and -margin.reach[0],
    )

# %% tags=["hide-input"]
run.table(
    "reading",
    [
        {
            "label": NAMES[label],
            "scores": row["scores"],
            "AUROC": claims.Estimate(
                row["auroc"],
                row["auroc_low"],
                row["auroc_high"],
                len(set(sweeps[label][0].groups)),
                UNITS[label],
            ),
        }
        for label, table in compared.items()
        for row in table.to_dict("records")
    ]
    or [{"label": "none"}],
    caption="What tells each label, on the first draw: a probe with its site chosen in the other folds, the best that needs none, chosen there too, and each of these. 95 % bootstrap intervals over questions.",
)

# %% [markdown]
# ## Check it
#
# The learning curve by other hands: scikit-learn's ridge classifier at the best middle layer, on training sets of its own of
# the largest size that counts, tested on all transcripts of all other questions. On average it must come near ours.


# %%
def learn_again(x, y, of_row, n):
    """AUROC on other questions, trained on one row of each of n questions."""
    order = np.random.permutation(of_row.max() + 1)[:n]
    train = [
        np.random.choice(np.flatnonzero((of_row == one) & (y == place % 2)))
        for place, one in enumerate(order)
    ]
    held = ~np.isin(of_row, order)
    ridge = RidgeClassifier(alpha=learning.PENALTY * x.shape[1])
    scores = ridge.fit(x[train], y[train]).decision_function(x[held])
    return roc_auc_score(y[held], scores)


# %%
ours = theirs = None
if learned:
    site, n = chosen[FIXED]["H1"][0], learning.SIZES[-1]
    ours = float(learned.average(site)[learned.sizes.index(n)])
    x = probes.standardise(features[site][None])[0].numpy()
    of_row = pd.factorize(pd.Series(dataset.list_units(fresh)))[0]
    again = (x, np.array(truth_fresh), of_row, n)
    theirs = float(np.mean([learn_again(*again) for _ in range(100)]))
    assert abs(ours - theirs) < 0.05

# %% tags=["hide-input"]
run.value("ours", ours if learned else "not to be had")
run.value("theirs", theirs if learned else "not to be had")

# %% [markdown]
# Ours: {glue:text}`ours`. Theirs: {glue:text}`theirs`.
#
# ## Where this breaks
#
# - **One small model, one kind of contradiction**: a few templates, two candidates, four styles, all written by us.
#   Intervals are over questions of these tasks, not over tasks.
# - **A head is a choice too.** On other questions another is chosen, whose lead may be smaller.
# - **The sites were given.** A probe that has to find its site from the same few questions needs more of them. And intervals are
#   those of the sites that were chosen: another head may do better or worse.
# - **Thirds are ours.** A best late layer that is the first of its third hardly tells late from middle.
# - **Reading is not using.** Nothing here says that the model uses what a probe reads
#   ([causes](faithfulness_causes_notebook)).

# %% [markdown]
# ## Summary
#
# On contradictions, with all training questions:
#
# - {glue:text}`found-h1-constructed` **{glue:text}`claim-h1-constructed`**
# - {glue:text}`found-h2-constructed` **{glue:text}`claim-h2-constructed`**
# - {glue:text}`found-h5-constructed` **{glue:text}`claim-h5-constructed`**
#
# At tokens where the stream errs:
#
# - {glue:text}`found-h1-hard-tokens` **{glue:text}`claim-h1-hard-tokens`**
# - {glue:text}`found-h5-hard-tokens` **{glue:text}`claim-h5-hard-tokens`**
#
# With few training questions:
#
# - {glue:text}`found-h1-few` **{glue:text}`claim-h1-few`**
# - {glue:text}`found-h2-few` **{glue:text}`claim-h2-few`**
# - {glue:text}`found-h5-few` **{glue:text}`claim-h5-few`**
# - {glue:text}`found-h5-few-as-wide` **{glue:text}`claim-h5-few-as-wide`**
#
# What a probe adds to the best that needs none:
#
# - Contradictions: {glue:text}`found-a-probe-adds-to-reading-constructed`
#   **{glue:text}`claim-a-probe-adds-to-reading-constructed`**
# - Hints: {glue:text}`found-a-probe-adds-to-reading-hint` **{glue:text}`claim-a-probe-adds-to-reading-hint`**
# - Given chains: {glue:text}`found-a-probe-adds-to-reading-causal` **{glue:text}`claim-a-probe-adds-to-reading-causal`**
# - Own chains: {glue:text}`found-a-probe-adds-to-reading-own` **{glue:text}`claim-a-probe-adds-to-reading-own`**
#
# The guesses on labels of what the model did, all training questions:
#
# | | hint | given chain | own chain |
# | --- | --- | --- | --- |
# | H1 | {glue:text}`claim-h1-hint` | {glue:text}`claim-h1-causal` | {glue:text}`claim-h1-own` |
# | H2 | {glue:text}`claim-h2-hint` | {glue:text}`claim-h2-causal` | {glue:text}`claim-h2-own` |
# | H5 | {glue:text}`claim-h5-hint` | {glue:text}`claim-h5-causal` | {glue:text}`claim-h5-own` |
#
# "Not run" means for hints that {glue:text}`why_h1_hint`, for given chains that {glue:text}`why_h1_causal`, for own chains that
# {glue:text}`why_h1_own`.

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. What noise would support** (10 minutes). How often would H1 hold on labels drawn at random, without the condition that
# a side must read the label? *Hint: `folds.permute_labels`, `Sweep.best`.*
#
# ```{dropdown} Solution
# For twenty seeds take a column of `folds.permute_labels`, run `probes.sweep` on the residual stream with it, and look at
# `scores.subtract` of the two best scores: its interval lies above the bound more often than one would like, as a
# bootstrap over questions does not repeat the training. `hypotheses.contrast` gives None nearly always.
# ```
#
# **2. Two transcripts of one question** (10 minutes). How many questions does a probe need if it sees both answers to each of
# them? *Hint: train on all rows of the chosen questions in the check above.*
#
# ```{dropdown} Solution
# Far fewer: what two transcripts of one question have in common falls out of their difference, so that two questions may do
# what else takes many. The design is part of what "how many" means.
# ```

# %% [markdown]
# ## What others found
#
# Of these we have read the abstracts. Whether Qwen2.5-7B-Instruct follows a hint that it does not mention can be told from its
# residual stream {cite:p}`mirtaheri2025detecting`: before the chain as well as a language model that reads it, after it
# better {cite:p}`mirtaheri2026catching`. A probe before the chain foretells the answer, and steering along it turns answers
# {cite:p}`cox2026decoding`. That a chain has gone wrong is read with an AUROC of .95 where a classifier of its text has .59, and
# no intervention along it helps {cite:p}`yuan2026hidden`. A hint that goes unmentioned need not mean an unfaithful chain
# {cite:p}`zaman2025chain`, which is why each label here is called by what it is.
#
# ## References
#
# {cite:t}`mirtaheri2025detecting`, {cite:t}`mirtaheri2026catching`, {cite:t}`cox2026decoding`,
# {cite:t}`yuan2026hidden` and {cite:t}`zaman2025chain`, in full in the
# [bibliography](../../reference/bibliography).
