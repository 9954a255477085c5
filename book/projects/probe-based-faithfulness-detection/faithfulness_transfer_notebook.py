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
# A probe that reads unfaithfulness should read it on a task that it has not seen, in chains that the model wrote itself,
# and under another definition of the word. One that has learned something else, the way a task is told or the way we
# built the data, stays at home. Here every probe is sent everywhere.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to read a transfer matrix, and what its off-diagonal says of shortcuts;
# - whether contradictions that we put in look, from inside, like those that the model writes;
# - whether three labels of "unfaithful" have anything in common.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = "bfloat16"  # as in the data set, "bfloat16" or "float32"
n_questions: int = 5  # of each task, for constructed transcripts, 5 to 400
n_own: int = 16  # of each task, for hints and chains, 4 to 400 by 4
n_samples: int = 2  # draws of worked examples for hints, 1 to 8
n_tasks: int = 6  # of those that passed, at most so many, 1 to 14
n_data_seeds: int = 1  # draws of the data, 1 to 10
seed: int = 0  # of all sampling, 0 to 999000
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %%
import numpy as np
import pandas as pd
import torch
from helpers import ROOT, claims, folds, hooks, plots, probes, runs
from helpers.scores import tabulate
from studies.faithfulness import (
    dataset,
    figures,
    hypotheses,
    questions,
    transcripts,
)
from studies.faithfulness.hypotheses import HYPOTHESES, Draw

run = runs.begin("faithfulness_transfer_notebook", globals())
model = run.loaded
seeds = range(seed, seed + n_data_seeds)

# %% [markdown]
# ## Say what would count, before looking
#
# H3 is asked of each label, by its rule: within tasks less across, more than a tenth of an AUROC. It holds if probes
# stay at home. For journeys between labels and writers we ask for an AUROC above 0.6, trained on other questions and
# tested where nothing was trained; chance is one half. All labels point the same way: *true* is the less faithful.
#
# **What we expect.** Contradiction is a relation between two words, so that its probe should cross tasks, and there is
# no reason why it should not read what the model wrote. Whether an answer follows a hint, or loses little without its
# chain, is another matter: nothing in the text need contradict anything.

# %%
JOURNEYS = {  # trained on, tested on, and where both are read
    "A probe of contradictions that were put in reads those that the model wrote, with an AUROC above 0.6.": (
        "constructed",
        "own contradiction",
        "answer",
    ),
    "It reads whether a pull moved an answer without a word, with an AUROC above 0.6.": (
        "constructed",
        "hint",
        "answer",
    ),
    "It reads which of two like answers loses less without its chain, with an AUROC above 0.6.": (
        "constructed",
        "given chain",
        "answer",
    ),
    "A probe of hints reads which of two like answers loses less without its chain, with an AUROC above 0.6.": (
        "hint",
        "given chain",
        "cue",
    ),
    "A probe of which given chains an answer hangs on reads it of those that the model wrote, with an AUROC above 0.6.": (
        "given chain",
        "own chain",
        "cue",
    ),
}
LABELS = {
    "constructed": "constructed",
    "own contradiction": "causal_own",
    "hint": "hint",
    "given chain": "causal_given",
    "own chain": "causal_own",
}
gates = dataset.read_passed_tasks(model) or {}
tasks = {
    label: gates.get(
        "constructed" if label == "own contradiction" else source,
        list(questions.TASKS),
    )[:n_tasks]
    for label, source in LABELS.items()
}

# %% [markdown]
# One of the labels is new. Now and then the model states a verdict and answers otherwise: a contradiction of its own,
# found by a parser like that of [days 12 to 14](day12-14_cot_dataset). It is the same label on transcripts that nobody
# built. The answer is the candidate with the higher logit after the model's own chain.

# %%
VERDICT = r"(?:not \w+ but (\w+)|(\w+), not \w+|it is (\w+))\.$"


def own_contradictions(rows):
    """Own chains that end with one of the candidates, and whether the answer is another."""
    verdict = rows["reasoning"].str.extract(VERDICT).bfill(axis=1)[0]
    stated = (verdict == rows["right"]) | (verdict == rows["other"])
    return rows[stated], (verdict != rows["answer"])[stated].tolist()


def defined(label):
    """What gives the rows of a label and its truth."""
    own = label == "own contradiction"
    return own_contradictions if own else dataset.select_unfaithful


# %%
def made(source, of_tasks, seed, n):
    """Transcripts of some tasks, and what stood before them."""
    options = {"tasks": of_tasks, "seed": seed}
    if source == "constructed":
        asked = questions.draw_questions(model, n=n, **options)
        shots = questions.draw_shots(model, n=transcripts.N_SHOTS, **options)
        before = transcripts.write_examples_by_task(shots, "stated")
        rows = transcripts.construct(model, asked)
        return rows.assign(before=rows["task"].map(before))
    options |= {"n": n, "n_samples": n_samples}
    options["folder"] = ROOT / "_build" / "generated"
    return dataset.load_transcripts(model, source, **options)


# %% [markdown]
# ## Read everything in the same place
#
# All transcripts are read after their own four worked examples, at the token before the answer and at the answer. For
# journeys between labels the layer is chosen once, for the constructed label on its first three tasks, on questions of another
# draw; where layers tie, it is the first.


# %%
PLACES = ("cue", "answer")


def read(rows, places=PLACES):
    """The residual stream at the cue and at the answer."""
    prompts, at = transcripts.put_in_context(model, rows, answered=True)
    at = {place: at[place] for place in places}
    return hooks.capture(
        model, prompts, "resid_post", positions=at, as_trees=True
    )


few = made("constructed", tasks["constructed"][:3], seed + 1000, 5)
layer = (
    probes.sweep(
        read(few, ("answer",)),
        few["contradicts"].tolist(),
        dataset.list_units(few),
        types=None,
        n_permutations=0,
        seed=seed,
    )
    .leading()
    .layer
)
tables, states = [], []
for number in seeds:
    parts, activations = [], []
    for source in dict.fromkeys(LABELS.values()):
        labels = [label for label in LABELS if LABELS[label] == source]
        wanted = sorted({task for label in labels for task in tasks[label]})
        if not wanted:
            continue
        n = n_questions if source == "constructed" else n_own
        rows = made(source, wanted, number, n)
        rows = rows[rows["at_cue"].notna()].reset_index(drop=True)
        if not len(rows):
            continue
        states_here = read(rows)["resid_post"]
        for label in labels:
            rows_of = rows[rows["task"].isin(tasks[label])]
            rows_of, truth = defined(label)(rows_of)
            parts.append(rows_of.assign(about=label, unfaithful=truth))
            activations.append(states_here[rows_of.index.tolist()])
    tables.append(pd.concat(parts, ignore_index=True))
    states.append(torch.cat(activations))

# %% tags=["hide-input"]
run.value("layer", layer)
first = tables[0]
run.table(
    "rows",
    [
        {
            "label": label,
            "tasks": ", ".join(sorted(set(rows["task"]))).replace("_", " "),
            "questions": rows["question"].nunique(),
            "rows": len(rows),
            "less faithful": float(rows["unfaithful"].mean()),
        }
        for label, rows in first.groupby("about", sort=False)
    ],
    caption="What there is to read, in the first draw of the data. Hint: a pull moved the answer, and the chain says nothing of it. Given and own chain: without it the answer loses less of its lead than that of a like question. Own contradiction: the model's answer is not the verdict that it stated.",
)

# %% [markdown]
# Layer: {glue:text}`layer`.
#
# ## Send each probe to other tasks


# %%
def draws_of(labels, place, domain, at_layer):
    """The rows of some labels at one site, as domains, where each has enough of both classes."""
    found = []
    for table, activations in zip(tables, states, strict=True):
        chosen = np.flatnonzero(table["about"].isin(labels))
        rows = table.iloc[chosen]
        x = activations[chosen, at_layer, PLACES.index(place)]
        truth, units = rows["unfaithful"].tolist(), dataset.list_units(rows)
        found.append(Draw(x, truth, units, rows[domain].tolist()))
    return hypotheses.drop_unfilled(found, seed=seed)


# %%
WHERE = {"constructed": "answer", "hint": "cue", "given chain": "cue"}
across = {}
for label, place in WHERE.items():
    layers = [
        draws_of([label], place, "task", at_layer)
        for at_layer in range(model.n_layers)
    ]
    if layers[0]:
        across[label] = hypotheses.compare_tasks(layers, seed=seed)


def lost_elsewhere(label, **options):
    """H3: the AUROC within tasks less across, over tasks, the layer for each chosen on the others."""
    found = across.get(label)
    return found and found.measure_gap(found.choose_layers(), **options)


# %% tags=["hide-input"]
def asked(label):
    """What a claim says of H3 on a label."""
    return {
        "sentence": f"{HYPOTHESES['H3'].sentence[:-1]} ({label}).",
        "rule": HYPOTHESES["H3"].rule,
        "estimate": lost_elsewhere(label),
        "baseline": 0.0,
        "baseline_is": "no difference",
        "tolerance": 0.05,
    }


run.claim("h3-constructed", **asked("constructed"))
run.claim("h3-hint", **asked("hint"))
run.claim("h3-causal", **asked("given chain"))
for label, found in across.items():
    gap, together = (
        lost_elsewhere(label, alone=alone) for alone in (True, False)
    )
    short = (
        f"A probe of one task loses {claims.shorten(gap.value)} of AUROC on another, one of all others together {claims.shorten(together.value)}."
        if gap
        else "In the layers so chosen the label is not surely read within tasks, so that nothing can be lost."
    )
    figures.show_across_tasks(
        found,
        name=f"tasks-{label.replace(' ', '-')}",
        bound=0.1,
        caption=f"Label “{label}”, at the {WHERE[label]}. {short} Left: AUROC by layer, mean over {len(found.tasks)} tasks. Right: its own task less one other, with 95 % intervals over tasks, where tasks are surely read; dots: layers within {probes.TIED} of the best, crosses: others; dashed: the bound of H3. "
        f"Folds by question, {n_data_seeds} draw(s) of the data.",
    )
gap = lost_elsewhere("constructed")
run.value("lost", gap or "an unknown amount")
together = lost_elsewhere("constructed", alone=False)
run.value("lost_together", together or "an unknown amount")
run.value("tied", str(probes.TIED))
gaps, read_at = [], ()
if gap:
    found = across["constructed"]
    read_at = (found.find_tied()[0], model.n_layers - 1)
    every = [
        found.measure_gap([at] * len(found.tasks))
        for at in range(model.n_layers)
    ]
    gaps = [one.value for one in every if one]
run.value("apart_least", min(gaps, default="an unknown amount"))
run.value("apart_most", max(gaps, default="another"))
if read_at:
    matrices = {}
    for at_layer in read_at:
        (draw, *_) = draws_of(["constructed"], "answer", "task", at_layer)
        of_task = np.array(draw.domains)
        training = {task: of_task == task for task in found.tasks}
        areas = hypotheses.measure_areas(draw, training, seed=seed)
        matrices[f"layer {at_layer}"] = areas
    figures.show_areas(
        matrices,
        name="tasks",
        caption=f"Label “constructed”: trained on one task (rows), tested on another (columns), AUROC, in the first of the tied layers ({read_at[0]}) and in the last ({read_at[1]}). First draw of the data.",
    )

# %% [markdown]
# **H3**: constructed **{glue:text}`claim-h3-constructed`**, hints **{glue:text}`claim-h3-hint`**, given chains
# **{glue:text}`claim-h3-causal`** ("not run": fewer than two tasks have five questions of both kinds, or none is surely read).
#
# What is drawn is tasks, so that they are counted. The layer for a task is chosen on the *other* tasks: the first of those
# whose AUROC lies within {glue:text}`tied` of the best. On contradictions a probe loses {glue:text}`lost` of AUROC on another
# task. Trained on all other tasks together it loses {glue:text}`lost_together`; if that is less, what one task does not teach
# several do. Over the layers that surely read the label, the loss goes from {glue:text}`apart_least` to
# {glue:text}`apart_most`: where it crosses the bound, the verdict belongs to the layer as much as to the label.
#
# ## Send each probe to other labels and other writers
#
# The same with labels instead of tasks. Questions that two labels share are on the same side of every split.

# %%
travelled, by_words = {}, {}
for place in PLACES:
    labels = [*LABELS] if place == "answer" else ["hint", *list(LABELS)[3:]]
    draws = draws_of(labels, place, "about", layer)
    if draws:
        travelled[place] = hypotheses.measure_transfer(draws, seed=seed)

# %% tags=["hide-input"]
if travelled:
    figures.show_areas(
        {
            f"at the {place}": {
                pair: area.value for pair, area in found.pairs.items()
            }
            for place, found in travelled.items()
        },
        name="labels",
        caption=f"Trained on one label (rows), tested on another (columns), AUROC; above one half: what is less faithful by one label looks so to a probe of the other, below: the opposite. Layer {layer}; folds by question; {n_data_seeds} draw(s) of the data; labels with too few rows of one class are left out.",
    )


def journey(number):
    """What a claim says of one journey."""
    sentence = list(JOURNEYS)[number]
    trained, tested, place = JOURNEYS[sentence]
    found = travelled[place].pairs if place in travelled else {}
    return {
        "sentence": sentence,
        "rule": "value > 0.6",
        "estimate": found.get((trained, tested)),
        "baseline": 0.5,
        "baseline_is": "chance",
        "tolerance": 0.05,
    }


run.claim("contradiction-to-own", **journey(0))
run.claim("contradiction-to-hint", **journey(1))
run.claim("contradiction-to-causal", **journey(2))
run.claim("hint-to-causal", **journey(3))
run.claim("given-to-own", **journey(4))
run.value(
    "to_own",
    journey(0)["estimate"] or "no figure, as there are too few of them",
)
run.value(
    "at_home",
    travelled.get("answer", hypotheses.Transfer({}, None)).pairs.get(
        ("own contradiction", "own contradiction")
    )
    or "not to be had",
)

# %% [markdown]
# From contradictions that were put in to the model's own: {glue:text}`to_own`
# (**{glue:text}`claim-contradiction-to-own`**), where a probe that was trained on the latter has {glue:text}`at_home`.
# From contradiction to unmentioned pulls: **{glue:text}`claim-contradiction-to-hint`**; to chains that are hardly needed:
# **{glue:text}`claim-contradiction-to-causal`**. From hints to chains: **{glue:text}`claim-hint-to-causal`**. From given
# chains to own: **{glue:text}`claim-given-to-own`**.
#
# ## See whether it was the layer, or the words
#
# One layer was read, chosen where the constructed label is read best. In another the journey might end otherwise. And a
# reader of words might travel as well as a probe: the same journeys, with counts of words and pairs of words instead of
# activations.

# %% tags=["hide-input"]
from sklearn.feature_extraction.text import CountVectorizer

HOME = "constructed"


by_layer = {}
for at_layer in range(model.n_layers):
    for draw in draws_of([*LABELS], "answer", "about", at_layer)[:1]:
        training = {HOME: np.array(draw.domains) == HOME}
        areas = hypotheses.measure_areas(draw, training, seed=seed)
        for (_, label), area in areas.items():
            by_layer.setdefault(label, []).append(area)

texts = first["text"].str.removesuffix(transcripts.NEXT)
counted = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", min_df=2)
counts = torch.tensor(counted.fit_transform(texts).toarray()).float()
for draw in draws_of([*LABELS], "answer", "about", layer)[:1]:
    kept = np.flatnonzero(first["about"].isin(draw.domains))
    by_words = hypotheses.measure_transfer(
        [draw._replace(activations=counts[kept])], seed=seed
    ).pairs

# %% tags=["hide-input"]
STROKES = ("-", "--", "-.", ":", (0, (1, 4)))
if by_layer:
    with plots.draw_figure(
        "layers",
        caption=f"Probes of contradictions that were put in, by layer, at the answer, on each label. AUROC on questions that were not trained on, first draw of the data; dotted: chance; thin line: the layer of the figures above ({layer}).",
        alt="AUROC against layer, by label, of probes of the constructed label.",
        width=6.0,
    ) as (_, axes):
        for (label, values), style in zip(
            by_layer.items(), STROKES, strict=False
        ):
            axes.plot(values, linestyle=style, label=label)
        axes.axhline(0.5, color=plots.INK, linestyle=":", linewidth=1)
        axes.axvline(layer, color=plots.INK, linewidth=0.5)
        axes.set(xlabel="layer", ylabel="AUROC", ylim=(-0.03, 1.03))
        axes.legend(fontsize=8)
run.table(
    "words",
    [
        {
            "tested on": label,
            "probe": travelled["answer"].pairs.get(
                (HOME, label), "too few rows"
            ),
            "words": by_words.get((HOME, label), "too few rows"),
        }
        for label in (by_layer if "answer" in travelled else {})
    ]
    or [{"tested on": "no label has enough rows"}],
    caption="Trained on the constructed label, at the answer: a probe, over all draws, and counts of words and pairs of words, on the first; 95 % bootstrap intervals over questions.",
)

# %% [markdown]
# ## Ask what else could have told
#
# The model's own contradictions were not balanced by anyone. If they come with one order of the verdict, or on one
# task, a probe has that to read as well. Three rules without any probe:

# %%
own_rows = first[first["about"] == "own contradiction"]
others = None
if len(own_rows) and folds.can_fold(
    own_rows["unfaithful"].tolist(), dataset.list_units(own_rows), seed=seed
):
    truth = own_rows["unfaithful"].astype(float)
    sums = truth.groupby(own_rows["task"]).transform("sum") - truth
    sizes = truth.groupby(own_rows["task"]).transform("size") - 1
    rules = {
        "the verdict says what it is not first": own_rows[
            "reasoning"
        ].str.contains(r"not \w+ but \w+\.$"),
        "how often this task goes wrong elsewhere": sums / sizes.clip(lower=1),
        "length in tokens": own_rows["at_reasoning"],
    }
    others = tabulate(
        {
            name: torch.tensor(scores.astype(float).to_numpy())
            for name, scores in rules.items()
        },
        own_rows["unfaithful"].tolist(),
        dataset.list_units(own_rows),
        seed=seed,
    )

# %% tags=["hide-input"]
run.table(
    "rules",
    [
        {
            "rule": row["scores"],
            "AUROC": claims.Estimate(
                row["auroc"],
                row["auroc_low"],
                row["auroc_high"],
                own_rows["question"].nunique(),
                "questions",
            ),
        }
        for row in (others.to_dict("records") if others is not None else ())
    ]
    or [{"rule": "too few contradictions of its own"}],
    caption="What rules make of the model's own contradictions, first draw; 95 % bootstrap intervals over questions. For the second the row itself is left out.",
)

# %% [markdown]
# A rule far from one half is a confound of the model's own contradictions, though not of a probe that was trained on
# constructed ones, where order, task and length tell nothing.
#
# ## Check it
#
# One journey by other hands: scikit-learn's ridge classifier, trained on the constructed rows outside a fold, applied to
# given chains within it, fold by fold, and ours with the same penalty. Both must order the chains alike.

# %%
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

alike = None
for draw in draws_of([HOME, "given chain"], "answer", "about", layer)[:1]:
    about, fold = (
        np.array(draw.domains),
        hypotheses.assign_draw_folds(draw, seed),
    )
    x, truth = draw.activations.numpy(), np.array(draw.labels)
    ours = probes.cross_train(
        draw.activations,
        draw.labels,
        draw.questions,
        {HOME: about == HOME},
        penalties=[100.0],
        folds=fold,
        seed=seed,
    )[HOME].numpy()
    by_fold = []
    for number in range(int(fold.max()) + 1):
        held = fold.numpy() == number
        there, sent = (about == HOME) & ~held, (about != HOME) & held
        classifier = make_pipeline(StandardScaler(), RidgeClassifier(100.0))
        classifier.fit(x[there], truth[there])
        theirs = classifier.decision_function(x[sent])
        by_fold.append(float(spearmanr(ours[sent], theirs).statistic))
    alike = min(by_fold)
    assert alike > 0.95

# %% tags=["hide-input"]
run.value("alike", alike if alike is not None else "not to be had")

# %% [markdown]
# The least rank correlation of any fold: {glue:text}`alike`.
#
# ## Where this breaks
#
# - **Few rows of behaviour.** Of the tasks that pass, some leave a handful of questions of the rarer class. Where five
#   folds can't have both, a label is left out rather than guessed.
# - **One layer, two tokens.** The figure by layer says what depends on the first. Other tokens were not sent anywhere.
# - **A parser finds the model's own contradictions**, too. The journey asks whether they look alike from inside, and is
#   no case for a detector.
# - **Below one half is no failure of reading.** It says that two labels called "unfaithful" point opposite ways here.

# %% [markdown]
# ## Summary
#
# - Within tasks against across: `h3-constructed` {glue:text}`claim-h3-constructed`, `h3-hint`
#   {glue:text}`claim-h3-hint`, `h3-causal` {glue:text}`claim-h3-causal`.
# - From contradictions put in to the model's own: `contradiction-to-own` {glue:text}`claim-contradiction-to-own`.
# - From contradiction to hints: `contradiction-to-hint` {glue:text}`claim-contradiction-to-hint`; to chains that are hardly
#   needed: `contradiction-to-causal` {glue:text}`claim-contradiction-to-causal`; from hints to those: `hint-to-causal`
#   {glue:text}`claim-hint-to-causal`.
# - From given chains to own: `given-to-own` {glue:text}`claim-given-to-own`.

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. Send the control** (10 minutes). Train on permuted constructed labels and send that probe to the model's own
# contradictions, twenty times. How wide is the band? *Hint: `folds.permute_labels`, and one `Draw` for each column.*
#
# ```{dropdown} Solution
# Replace the labels of the constructed rows by a column of `folds.permute_labels` of theirs, and call
# `hypotheses.measure_transfer`. A probe of noise is a random direction, but rows of the target may differ along any direction,
# so the band is wider than a bootstrap over questions would have it. A journey that stays within it has found nothing.
# ```
#
# **2. Turn it round** (10 minutes). Which journeys succeed in one direction only? *Hint: `travelled["answer"].pairs` has
# both.*
#
# ```{dropdown} Solution
# Print `pairs[one, other].value - pairs[other, one].value` for all pairs. The larger and better balanced set makes the
# better probe, so an asymmetry says as much of the training set as of the labels.
# ```

# %% [markdown]
# ## References
#
# The labels and their sources are in [days 12 to 14](day12-14_cot_dataset).
