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
# # What does a probe find, and what was there to find anyway?
#
# A *probe* is a linear classifier that reads a label off a model's activations. Here the label is whether a sentence
# praises or blames, and almost any probe gets it right. So this page is about the other question: how much of that
# success belongs to the model? We ask what the words alone give away, what a probe can learn by heart, what the model
# itself says, and what becomes of the probe when a sentence says *not*. The tools are those that the rest of this
# project needs, where the label is whether a model's stated reasoning is the real one and no answer is obvious.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to probe every layer at once, with a null distribution that repeats the whole search;
# - to choose splits that a bag of words can't win, and to measure how much a probe merely memorises;
# - to test a probe where its label and its words part ways.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
n_words: int = 30  # favourable adjectives, and as many unfavourable, 6 to 60
n_permutations: int = 100  # of the labels, 20 to 1000
n_control: int = 10  # control tasks, 2 to 100
n_data_seeds: int = 2  # data sets in all, 1 to 10
n_natural: int = 0  # sentences of SST-2 to test on besides, an even number, 0 to 800 by 2; needs the network once
seed: int = 0  # of all sampling, 0 to 999999
device: str = "cpu"  # cpu, or cuda where there is a GPU
dtype: str = ""  # of the weights: "float32", "bfloat16" or "float16"; "" for the model's own

# %%
import numpy as np
import torch
from helpers import (
    baselines,
    claims,
    folds,
    hooks,
    models,
    plots,
    probes,
    runs,
    scores,
)
from helpers.probes import Site
from studies.sentiment import sentences

run = runs.begin("day3-4_first_probes", globals())
model = run.loaded

# %% [markdown]
# ## Say what a probe is, and what it is not
#
# Take the residual stream $x \in \mathbb{R}^d$ at one layer and position of each sentence. A linear probe finds $w$ and
# $b$ such that the sign of $w \cdot x + b$ is the label. We use ridge regression on z-scored activations: it has a
# closed form, so that hundreds of probes and their permutations take seconds. The unit of quality is the AUROC, the
# chance that a favourable sentence scores above an unfavourable one: 1 is perfect, one half is guessing.
#
# A probe that succeeds shows that the label *can* be read off linearly. It does not show that the model uses it
# {cite:p}`belinkov2022probing`, nor that the model computed it: the probe may have learned which words are which
# {cite:p}`hewitt2019designing`, or the label may have stood in the text. Each section below takes one of these escapes
# away.
#
# ## Make sentences whose label is in one word
#
# Every sentence judges a thing by one adjective, and ends on the same cue. The adjectives carry ratings by people,
# from VADER's lexicon {cite:p}`hutto2014vader`. Each adjective comes once in each of eight templates from four
# families; a fifth family denies what two of them say, in the same words, and is kept for later. We read at three
# places: the `word`, the `end` of its sentence (a full stop or question mark), and the `last` token of the cue, where
# the model is about to give its verdict.

# %%
both = sentences.draw_sentiment(
    model, n_words=n_words, seed=seed, families=list(sentences.TEMPLATES)
)
plain = [i for i, family in enumerate(both.families) if family != "negation"]
data = both.select(plain)
PLACES = ("word", "end", "last")


def captured(loaded, data):
    """The residual stream after every layer, at three positions."""
    positions = {place: data.positions[place] for place in PLACES}
    return hooks.capture(loaded, data.texts, "resid_post", positions=positions)


states = captured(model, both)
activations = states.select(plain)

# %% tags=["hide-input"]
examples = [both.families.index(f) for f in dict.fromkeys(both.families)]
run.table(
    "examples",
    [
        {
            "family": both.families[i],
            "text": both.texts[i],
            "valence of the word": both.valences[i],
            "favourable": "yes" if both.labels[i] else "no",
        }
        for i in examples
    ],
    caption=f"One sentence of each family. In all {len(plain)} sentences without negation and {len(both.texts) - len(plain)} with, from {2 * n_words} adjectives.",
)
run.value("n_sentences", len(data.texts))
run.value("n_adjectives", 2 * n_words)

# %% [markdown]
# The data sheet is in `studies/sentiment/README.md`. The split matters most: an adjective is never in training and test at
# once, so all sentences of an adjective are one *group*, folds are made of groups, and every interval below is a
# bootstrap over the {glue:text}`n_adjectives` adjectives, not over sentences.
#
# ## Probe every layer
#
# **What we expect.** An old learning of this project says that later layers hold *different*, not more, information.
# So the curve should rise early and then stay, or fall.
#
# The **null** is the same search with permuted labels: whole adjectives exchange their labels, penalties are chosen
# anew inside each permutation. It is not centred on one half: under grouped folds a label that is commoner in training
# is rarer in the test fold, so guessing falls below.

# %%
sweep = probes.sweep(
    activations,
    data.labels,
    data.words,
    types=data.words,
    seed=seed,
    n_permutations=n_permutations,
    n_control=n_control,
    device=device,
)
table = sweep.table()
best = sweep.best()

# %% [markdown]
# Now what is to be had *without* the model's inside, on the very same folds: n-grams of the text, the mean of the
# model's input embeddings, a rule (the length of the text), and the model's own answer, the log-odds of five words of
# praise against five of blame as the next token.

# %%
answers = sentences.encode_verdicts(model)
without = baselines.score_baselines(
    model,
    data.texts,
    data.labels,
    data.words,
    answers=answers,
    rules={"length of the text": [len(text) for text in data.texts]},
    positions={place: data.positions[place] for place in PLACES},
    states=activations,
    folds=sweep.folds,
    seed=seed,
)

# %% tags=["hide-input"]
rows = {"the best probe (site chosen inside)": best.scores} | without
evaluated = scores.tabulate(
    rows, data.labels, data.words, folds=sweep.folds, seed=seed
)
of_words = {"n": 2 * n_words, "of": "adjectives"}


def estimate(row, name="auroc"):
    return claims.Estimate(
        float(row[name]),
        float(row[f"{name}_low"]),
        float(row[f"{name}_high"]),
        **of_words,
    )


run.table(
    "baselines",
    [
        {
            "read from": row["scores"],
            "AUROC": estimate(row),
            "accuracy": estimate(row, "accuracy"),
        }
        | (
            {"recall at 1 %": estimate(row, "recall")}
            if row["recall"] is not None
            else {}
        )
        for _, row in evaluated.iterrows()
    ],
    caption=f"What a probe has to beat. Adjectives are never in training and test at once; 95 % bootstrap interval over adjectives. The recall at 1 % false positives is given only where there are {scores.FEWEST_NEGATIVES} negatives. The null of the best probe: {claims.shorten(best.null[0])} to {claims.shorten(best.null[1])}.",
)
evaluated = evaluated.set_index("scores")

# %% tags=["hide-input"]
with plots.draw_figure(
    "by-layer",
    caption=f"The best probe has an AUROC of {claims.shorten(best.auroc.value)} on adjectives that it has never seen. "
    f"Blue: AUROC by layer at three positions, with 95 % bootstrap bands over {2 * n_words} adjectives; grey: 95 % band of {n_permutations} permutations; "
    "dashed: the mean of the input embeddings; dash-dotted: the model's own answer at that position.",
    alt="Three panels of AUROC against layer, for the word, the end of the sentence and the last token.",
    width=8.0,
    ncols=3,
    sharey=True,
) as (_, panels):
    for axes, place in zip(panels, PLACES, strict=True):
        plots.draw_layer_curve(axes, table[table["position"] == place])
        embeddings = evaluated["auroc"]["mean of the input embeddings"]
        axes.axhline(embeddings, color=plots.ORANGE, linestyle="--")
        own = evaluated["auroc"][f"the model's output at {place}"]
        axes.axhline(own, color=plots.ORANGE, linestyle="-.")
        axes.set(title=place, ylim=(0.25, 1.03))
        axes.label_outer()

# %% tags=["hide-input"]
n_layers = model.n_layers
early, middle, late = n_layers // 3, n_layers // 2, n_layers - 1


def scores_at(layer, place="last"):
    return sweep.scores[sweep.sites.index(Site("resid_post", layer, place))]


def apart(one, other):
    """By how much one AUROC exceeds another, over the adjectives."""
    return scores.subtract(
        one, other, data.labels, data.words, folds=sweep.folds, seed=seed
    )


run.value("best_auroc", best.auroc)
run.value("best_accuracy", best.accuracy)
run.value("null_high", best.null[1])
run.value("null_low", best.null[0])
run.value(
    "best_sites", ", ".join(str(site) for site in dict.fromkeys(best.sites))
)
run.value("early_layer", early)
run.value("middle_layer", middle)
run.value("late_layer", late)
run.value("own_answer", estimate(evaluated.loc["the model's output at last"]))
run.value("words_alone", estimate(evaluated.loc["word n-grams"]))
run.value(
    "embeddings_alone", estimate(evaluated.loc["mean of the input embeddings"])
)
run.claim(
    "a-probe-reads-new-words",
    "A linear probe reads whether an adjective that it has never seen praises or blames.",
    rule="value > baseline",
    estimate=best.auroc,
    baseline=best.null[1],
    baseline_is="97.5th percentile of the same search on permuted labels",
    tolerance=0.02,
)
run.claim(
    "n-grams-do-not",
    "A bag of words or characters is within 0.15 of chance on new adjectives.",
    rule="abs(value - 0.5) < 0.15",
    estimate=estimate(evaluated.loc["word n-grams"]),
    tolerance=0.05,
)
run.claim(
    "probe-beats-own-answer",
    "At the last token the probe of the middle layer tells more than the model's own next word.",
    rule="value > 0",
    estimate=apart(scores_at(middle), without["the model's output at last"]),
    tolerance=0.02,
)
run.claim(
    "probe-beats-embeddings",
    "At the last token the probe of the middle layer tells more than the input embeddings do.",
    rule="value > 0",
    estimate=apart(scores_at(middle), without["mean of the input embeddings"]),
    tolerance=0.02,
)
run.claim(
    "last-layer-tells-no-more",
    "At the last token the last layer tells no more than the middle one.",
    rule="value < 0.01",
    estimate=apart(scores_at(late), scores_at(middle)),
    tolerance=0.01,
)

# %% [markdown]
# **What it means.** Chosen inside the training folds (here: {glue:text}`best_sites`), the best probe has an AUROC of
# {glue:text}`best_auroc`; the same search on permuted labels stays between {glue:text}`null_low` and
# {glue:text}`null_high` (**{glue:text}`claim-a-probe-reads-new-words`**). Words and characters alone give
# {glue:text}`words_alone` on adjectives that they have not seen (near chance: **{glue:text}`claim-n-grams-do-not`**).
#
# But look at the other lines. The *input embeddings*, before any layer has run, give {glue:text}`embeddings_alone`: as
# far as the valence of an adjective is in its embedding, an average over the sentence keeps it. Whether the middle layer
# (number {glue:text}`middle_layer`) tells more: **{glue:text}`claim-probe-beats-embeddings`**. And the model's own next
# word gives {glue:text}`own_answer` without any training (the probe tells more:
# **{glue:text}`claim-probe-beats-own-answer`**). So a high AUROC is no finding yet about what the layers *do*. That the
# last layer tells no more than the middle: **{glue:text}`claim-last-layer-tells-no-more`**; near the ceiling, AUROC
# can't show whether it tells something *different*. The negations below can.
#
# AUROC asks for the order of the scores alone. Whoever acts on a single score wants a probability, which a logistic
# probe gives. **What we expect.** With as many features as sentences, too much confidence.

# %%
logistic = probes.sweep(
    activations,
    data.labels,
    data.words,
    types=None,
    sites=[Site("resid_post", middle, "last")],
    method="logistic",
    n_permutations=0,
    folds=sweep.folds,
    seed=seed,
)
logits = logistic.scores[0]
missed = scores.measure_calibration_error(
    logits, data.labels, data.words, seed=seed
)
chance = logits.sigmoid().bernoulli(
    generator=torch.Generator().manual_seed(seed)
)
exact = scores.measure_calibration_error(
    logits, chance.bool(), data.words, seed=seed
)

# %% tags=["hide-input"]
run.value("calibration_error", missed)
run.value("calibration_exact", exact.value)
run.claim(
    "probabilities-can-be-believed",
    "The probabilities of a logistic probe miss the share of praise by less than 0.05, on average over ten bins.",
    rule="value < 0.05",
    estimate=missed,
    baseline=exact.value,
    baseline_is="labels drawn with exactly these probabilities",
    tolerance=0.02,
)

# %% [markdown]
# Its probabilities miss the share of praise by {glue:text}`calibration_error` on average over ten bins, so that they can
# be believed: **{glue:text}`claim-probabilities-can-be-believed`**. Labels drawn with exactly the probabilities that it
# names would miss by {glue:text}`calibration_exact`, by chance alone.

# %% [markdown]
# ## Let a bag of words win
#
# The same n-grams once more, on folds that split *sentences* at random. Each adjective is now on both sides.
#
# **What we expect.** Near perfection, from a method that knows nothing but spelling.

# %%
each_alone = list(range(len(data.texts)))
random_folds = folds.assign_folds(data.labels, each_alone, seed=seed)
leaking = baselines.score_text(
    model, data.texts, data.labels, each_alone, folds=random_folds, seed=seed
)

# %% tags=["hide-input"]
rows = []
for name in (
    "word n-grams",
    "character n-grams",
    "mean of the input embeddings",
):
    leaked = scores.evaluate(
        leaking[name], data.labels, each_alone, folds=random_folds, seed=seed
    )["auroc"]
    rows.append(
        {
            "read from": name,
            "sentences split at random": leaked,
            "adjectives split": estimate(evaluated.loc[name]),
        }
    )
run.table(
    "splits",
    rows,
    caption=f"AUROC on two kinds of folds of the same {len(data.texts)} sentences; 95 % bootstrap interval over sentences (left) and adjectives (right).",
)
characters = rows[1]
run.value("characters_random_split", characters["sentences split at random"])
run.value("characters_word_split", characters["adjectives split"])
run.claim(
    "a-random-split-leaks",
    "With sentences split at random, character n-grams reach what the best probe reaches.",
    rule="value > baseline - 0.05",
    estimate=characters["sentences split at random"],
    baseline=best.auroc.value,
    baseline_is="the best probe on new adjectives",
    tolerance=0.01,
)

# %% [markdown]
# **What it means.** Spelling alone goes from {glue:text}`characters_word_split` to
# {glue:text}`characters_random_split`, with not one parameter changed but the split
# (**{glue:text}`claim-a-random-split-leaks`**). A result on such a split
# is one about the data set.

# %% [markdown]
# ## Ask what the probe knows by heart
#
# {cite:t}`hewitt2019designing` give every word *type* a label at random and train the same probe on that. It can only
# succeed by telling words apart and remembering each. *Selectivity* is the accuracy on the real task less that on this
# control task. Both must be on folds that *share* words: on new words the control task is a coin toss by construction.
#
# **What we expect.** At the word itself its identity is there to be memorised, so selectivity should be low. Further on
# the identity has no use, and selectivity should rise, if the model passes on the meaning rather than the word.

# %% tags=["hide-input"]
with plots.draw_figure(
    "selectivity",
    caption=f"Accuracy of the real task (blue) and of {n_control} control tasks (orange: mean; band: their range), on folds that share adjectives. "
    f"The gap between them is the selectivity. n = {len(data.texts)} sentences.",
    alt="Three panels of accuracy against layer: real and control task.",
    width=8.0,
    ncols=3,
    sharey=True,
) as (_, panels):
    for axes, place in zip(panels, PLACES, strict=True):
        chosen = [
            i for i, site in enumerate(sweep.sites) if site.position == place
        ]
        layers = [sweep.sites[i].layer for i in chosen]
        control = sweep.control_accuracy[chosen]
        axes.plot(layers, sweep.shared_accuracy[chosen], color=plots.BLUE)
        axes.plot(layers, control.mean(1), color=plots.ORANGE)
        low, high = control.min(1).values, control.max(1).values
        axes.fill_between(
            layers, low, high, color=plots.ORANGE, alpha=0.25, linewidth=0
        )
        axes.axhline(0.5, color=plots.INK, linestyle=":", linewidth=1)
        axes.set(
            title=place, xlabel="layer", ylabel="accuracy", ylim=(0.25, 1.03)
        )
        axes.label_outer()

# %% tags=["hide-input"]


def selectivity(layer, place):
    """One value for each control task."""
    number = sweep.sites.index(Site("resid_post", layer, place))
    return (
        sweep.shared_accuracy[number] - sweep.control_accuracy[number]
    ).numpy()


gained = selectivity(middle, "last") - selectivity(middle, "word")
run.value(
    "selectivity_word",
    claims.average(selectivity(middle, "word"), seed=seed, of="control tasks"),
)
run.value(
    "selectivity_last",
    claims.average(selectivity(middle, "last"), seed=seed, of="control tasks"),
)
run.claim(
    "meaning-travels-further",
    "In the middle layer the probe at the last token is more selective than the one at the word.",
    rule="value > 0",
    estimate=claims.average(gained, seed=seed, of="control tasks"),
    tolerance=0.05,
)

# %% [markdown]
# **What it means.** In layer {glue:text}`middle_layer` selectivity is {glue:text}`selectivity_word` at the word and
# {glue:text}`selectivity_last` at the last token (more there: **{glue:text}`claim-meaning-travels-further`**). A
# probe at the word would score as well had we called half of the adjectives blue and the others green.

# %% [markdown]
# ## Take the training away
#
# The same architecture with random weights, the same probe. Random layers mix their inputs without destroying them, so
# an untrained model is the fair zero of a probe, and not one half.

# %%
untrained = models.randomise(model, seed=seed)
untrained_sweep = probes.sweep(
    captured(untrained, data),
    data.labels,
    data.words,
    types=None,
    seed=seed,
    n_permutations=0,
    device=device,
)
untrained_best = untrained_sweep.best()

# %% tags=["hide-input"]
run.value("untrained_auroc", untrained_best.auroc)
run.claim(
    "training-made-it",
    "The probe of the middle layer at the last token tells more than the same probe in the untrained model.",
    rule="value > 0",
    estimate=apart(
        scores_at(middle),
        untrained_sweep.scores[
            untrained_sweep.sites.index(Site("resid_post", middle, "last"))
        ],
    ),
    tolerance=0.05,
)

# %% [markdown]
# The best of the untrained model's probes has an AUROC of {glue:text}`untrained_auroc`. That training put there what the
# probe of the middle layer reads: **{glue:text}`claim-training-made-it`**.

# %% [markdown]
# ## Turn the sentence round
#
# "The film was *not* wonderful" has a favourable word and an unfavourable meaning. A probe trained on sentences without
# negation is tested on those with it, still on new adjectives. If it reads the *word*, its AUROC falls below one half; if
# it reads what the *sentence* says, it stays above.
#
# **What we expect.** The word in early layers. Later, who knows: {cite:t}`burger2024truth` find that for truth, negation
# needs a dimension of its own.

# %%
is_negated = ["negated" if f == "negation" else "plain" for f in both.families]


def carried_over(layer, place, domains):
    """Train within each domain, test within each."""
    read = probes.read_features(states, Site("resid_post", layer, place))
    return probes.transfer(read, both.labels, both.words, domains, seed=seed)


curves = {
    place: [carried_over(layer, place, is_negated) for layer in range(n_layers)]
    for place in ("end", "last")
}

# %% tags=["hide-input"]


def pair(found, trained, tested):
    return found[
        (found["trained"] == trained) & (found["tested"] == tested)
    ].iloc[0]


with plots.draw_figure(
    "negation",
    caption="Trained without negation, tested with it: below one half a probe reads the word, above it the sentence. "
    f"AUROC by layer with 95 % bootstrap bands over {2 * n_words} adjectives; grey line: tested without negation.",
    alt="Two panels of AUROC against layer for sentences with negation.",
    width=8.0,
    ncols=2,
    sharey=True,
) as (_, panels):
    for axes, (place, found) in zip(panels, curves.items(), strict=True):
        same = [pair(one, "plain", "plain")["auroc"] for one in found]
        turned = [pair(one, "plain", "negated") for one in found]
        axes.plot(range(n_layers), same, color=plots.GREY)
        axes.plot(
            range(n_layers), [one["auroc"] for one in turned], color=plots.BLUE
        )
        band = (
            [one["auroc_low"] for one in turned],
            [one["auroc_high"] for one in turned],
        )
        axes.fill_between(
            range(n_layers), *band, color=plots.BLUE, alpha=0.25, linewidth=0
        )
        axes.axhline(0.5, color=plots.INK, linestyle=":", linewidth=1)
        axes.set(
            title=place, xlabel="layer", ylabel="AUROC", ylim=(-0.03, 1.03)
        )
        axes.label_outer()

turned = {
    layer: pair(curves["last"][layer], "plain", "negated")
    for layer in (early, middle, late)
}
for name, layer in (("early", early), ("middle", middle), ("late", late)):
    run.value(f"negated_{name}", estimate(turned[layer]))
    at_end = pair(curves["end"][layer], "plain", "negated")
    run.value(f"negated_end_{name}", estimate(at_end))
run.claim(
    "early-layers-read-the-word",
    "A third of the way up, at the end of the sentence, a probe trained without negation takes negated sentences for the opposite.",
    rule="value < 0.5",
    estimate=estimate(pair(curves["end"][early], "plain", "negated")),
    tolerance=0.05,
)
run.claim(
    "middle-layers-read-the-sentence",
    "Half way up, at the end of the sentence, the same kind of probe gets negated sentences right more often than not.",
    rule="value > 0.5",
    estimate=estimate(pair(curves["end"][middle], "plain", "negated")),
    tolerance=0.05,
)
run.claim(
    "the-last-token-reads-the-sentence",
    "Half way up, at the last token of the cue, it does so too.",
    rule="value > 0.5",
    estimate=estimate(turned[middle]),
    tolerance=0.05,
)
run.claim(
    "late-layers-tell-less-of-negation",
    "At the last token it does worse on negated sentences after the last layer than half way up.",
    rule="value < baseline",
    estimate=estimate(turned[late]),
    baseline=float(turned[middle]["auroc"]),
    baseline_is="half way up",
    tolerance=0.05,
)

# %%
ways = [
    template if family == "negation" else "plain"
    for template, family in zip(both.templates, both.families, strict=True)
]
by_way = {place: carried_over(middle, place, ways) for place in ("end", "last")}

# %% tags=["hide-input"]
run.table(
    "ways_of_denying",
    [
        {"sentence": way.replace("{", " (").replace("}", ")")}
        | {
            place: estimate(pair(found, "plain", way))
            for place, found in by_way.items()
        }
        for way in dict.fromkeys(ways)
    ],
    caption=f"AUROC of the probe trained without negation on each kind of sentence, layer {middle}, at two positions. 95 % bootstrap interval over {2 * n_words} adjectives; below one half it reads the word.",
)

# %% [markdown]
# **What it means.** At the end of the sentence, before the cue, the AUROC on negated sentences is
# {glue:text}`negated_end_early` in layer {glue:text}`early_layer` (the word:
# **{glue:text}`claim-early-layers-read-the-word`**) and {glue:text}`negated_end_middle` in layer
# {glue:text}`middle_layer` (the sentence: **{glue:text}`claim-middle-layers-read-the-sentence`**). At the last token it
# is {glue:text}`negated_early`, {glue:text}`negated_middle` and, after the last layer, {glue:text}`negated_late` (the
# sentence half way up: **{glue:text}`claim-the-last-token-reads-the-sentence`**; less of it after the last layer:
# **{glue:text}`claim-late-layers-tell-less-of-negation`**). The table says whether that depends on how a sentence
# denies. The grey line is what one sees without this test: where blue and grey part, two probes with the same score
# read two different things, and only sentences whose words and meaning disagree tell them apart.

# %% [markdown]
# ## Carry it to other sentences
#
# Train on one family, test on another: half way up, at the last token.

# %%
across = carried_over(middle, "last", list(both.families))

# %% tags=["hide-input"]
order = list(dict.fromkeys(both.families))
square = across.pivot(index="trained", columns="tested", values="auroc").loc[
    order, order
]
with plots.draw_figure(
    "families",
    caption=f"AUROC of probes trained on one family of sentences (rows) and tested on another (columns), layer {middle}, last token, always on new adjectives. "
    f"n = {2 * n_words} adjectives, two templates in each family, four of negation.",
    alt="A five by five matrix of AUROC, rows trained, columns tested.",
    width=6.0,
    height=4.0,
) as (drawing, axes):
    drawing.colorbar(plots.draw_matrix(axes, square), label="AUROC")

affirmed = [family for family in order if family != "negation"]
off = across[
    across["trained"].isin(affirmed)
    & across["tested"].isin(affirmed)
    & (across["trained"] != across["tested"])
]
worst = off.loc[off["auroc"].idxmin()]
run.value("worst_pair", f"{worst['trained']} to {worst['tested']}")
run.value("worst_auroc", estimate(worst))
run.claim(
    "families-share-a-direction",
    "Between families without negation even the worst transfer has an AUROC above 0.9.",
    rule="value > 0.9",
    estimate=estimate(worst),
    tolerance=0.03,
)

# %% [markdown]
# The worst pair without negation is {glue:text}`worst_pair` with {glue:text}`worst_auroc` (above 0.9:
# **{glue:text}`claim-families-share-a-direction`**). The row and the column of negation are the ones to look at.
#
# ## Learn from two words
#
# How many adjectives does it take? One favourable and one unfavourable, with all their sentences, then more. The test
# is on adjectives of a fold that was left out; activations are z-scored without labels.

# %%
sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= 3 * n_words // 5]
read = probes.read_features(activations, Site("resid_post", middle, "last"))
curve = probes.trace_learning_curve(
    read, data.labels, data.words, sizes=sizes, of="groups", seed=seed
)

# %% tags=["hide-input"]
with plots.draw_figure(
    "learning-curve",
    caption=f"AUROC on new adjectives against the number of adjectives of each class in training, layer {middle}, last token. "
    "Mean of 20 draws; the bars hold 95 % of the draws.",
    alt="AUROC rising with the number of training words.",
    height=2.8,
) as (_, axes):
    bars = (
        curve["auroc"] - curve["auroc_low"],
        curve["auroc_high"] - curve["auroc"],
    )
    axes.errorbar(
        curve["size"],
        curve["auroc"],
        bars,
        color=plots.BLUE,
        marker="o",
        capsize=4,
    )
    axes.axhline(0.5, color=plots.INK, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(
        xlabel="training adjectives of each class",
        ylabel="AUROC",
        ylim=(0.4, 1.03),
    )
two = curve.iloc[0]
two_words = claims.Estimate(
    float(two["auroc"]),
    float(two["auroc_low"]),
    float(two["auroc_high"]),
    20,
    "draws",
)
run.value("two_words", two_words)
run.claim(
    "two-words-beat-chance",
    "Two training adjectives are enough to beat chance on all others, whichever they are.",
    rule="value > 0.5",
    estimate=two_words,
    tolerance=0.03,
)

# %% [markdown]
# Two words give {glue:text}`two_words` (better than chance in 95 % of the draws:
# **{glue:text}`claim-two-words-beat-chance`**). If two words can pin a direction down, it was prominent before the probe
# came.

# %% [markdown]
# ## Check it
#
# One probe by other hands: scikit-learn's own pipeline of z-scoring and ridge regression on the same folds.

# %%
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

site = Site("resid_post", middle, "last")
ours = probes.sweep(
    activations,
    data.labels,
    data.words,
    types=None,
    sites=[site],
    penalties=[100.0],
    n_permutations=0,
    seed=seed,
)
theirs = cross_val_predict(
    make_pipeline(StandardScaler(), Ridge(alpha=100.0)),
    probes.read_features(activations, site).double().numpy(),
    np.where(data.labels, 1, -1),
    cv=PredefinedSplit(ours.folds.numpy()),
)
check_apart = float(np.abs(theirs - ours.scores[0].numpy()).max())
pooled = roc_auc_score(data.labels, theirs)
assert check_apart < 1e-2

# %% tags=["hide-input"]
run.value("check_apart", check_apart)
run.value("check_auroc", float(pooled))

# %% [markdown]
# The scores of the two differ by at most {glue:text}`check_apart`, on a scale on which the classes are 2 apart.
# scikit-learn's AUROC, which compares scores of different folds as well, is {glue:text}`check_auroc`.

# %% [markdown]
# ## Where this breaks
#
# Other adjectives, other things, other folds: does the layer where negation turns depend on the draw?

# %%
again = []
for other in range(seed + 1, seed + n_data_seeds):
    drawn = sentences.draw_sentiment(
        model, n_words=n_words, seed=other, families=list(sentences.TEMPLATES)
    )
    others = hooks.capture(
        model, drawn.texts, "resid_post", layers=[early, middle, late]
    )["resid_post"][:, :, 0]
    kinds = ["negated" if f == "negation" else "plain" for f in drawn.families]
    for number, layer in enumerate((early, middle, late)):
        found = probes.transfer(
            others[:, number], drawn.labels, drawn.words, kinds, seed=other
        )
        again.append((other, layer, found))

# %% tags=["hide-input"]
rows = []
first = [
    (seed, layer, curves["last"][layer]) for layer in (early, middle, late)
]
for other, layer, found in first + again:
    rows.append(
        {
            "data seed": other,
            "layer": layer,
            "without negation": estimate(pair(found, "plain", "plain")),
            "with negation": estimate(pair(found, "plain", "negated")),
        }
    )
run.table(
    "seeds",
    rows,
    caption=f"AUROC at the last token of probes trained without negation; other adjectives (some shared, as there are not many), things and folds in each data set. 95 % bootstrap interval over {2 * n_words} adjectives.",
)
if n_natural:
    natural = sentences.draw_sst2(model, n_sentences=n_natural, seed=seed)
    films = hooks.capture(model, natural.texts, "resid_post", layers=[middle])[
        "resid_post"
    ][:, 0, 0]
    templates = probes.read_features(
        activations, Site("resid_post", middle, "last")
    )
    found = probes.transfer(
        torch.cat([templates, films]),
        [*data.labels, *natural.labels],
        [*data.words, *natural.words],
        ["templates"] * len(data.texts) + ["SST-2"] * n_natural,
        seed=seed,
    )
    run.table(
        "natural",
        [
            {
                "trained": row["trained"],
                "tested": row["tested"],
                "AUROC": estimate(row),
            }
            for _, row in found.iterrows()
        ],
        caption=f"Templates and natural sentences, layer {middle}, last token.",
    )

# %% [markdown]
# - **The ceiling.** Where every layer is near 1, an AUROC ranks nothing. Look for a test that is *not* at the ceiling,
#   as negation is for the default model.
# - **Negation is four templates** with "not" or "never". Where the curve turns holds for these; and "not wonderful"
#   need not be an insult.
# - **The cue asks for it.** "Overall, it was" makes the model think of a verdict. Without a reason to, it may not sum
#   up at the end.
# - **Intervals at the ceiling.** Where no sentence is out of order, no bootstrap sample has one either, and the
#   interval has no width. It says that errors are rare, not that there are none.
# - **Reading is not using.** Nothing on this page has changed what the model does. The next chapter does.
# - **Natural sentences** are not in the default run, since no data set of them comes with the book: with
#   `n_natural=400` the probe is carried to SST-2 {cite:p}`socher2013recursive` and back, where the hub can be reached.

# %% [markdown]
# ## Summary
#
# - A probe reads the valence of adjectives it has never seen (`a-probe-reads-new-words`:
#   {glue:text}`claim-a-probe-reads-new-words`), where spelling can't (`n-grams-do-not`:
#   {glue:text}`claim-n-grams-do-not`); on a random split spelling can (`a-random-split-leaks`:
#   {glue:text}`claim-a-random-split-leaks`).
# - It tells more than the model's own next word (`probe-beats-own-answer`:
#   {glue:text}`claim-probe-beats-own-answer`) and more than the untrained model (`training-made-it`:
#   {glue:text}`claim-training-made-it`); more than the input embeddings (`probe-beats-embeddings`):
#   {glue:text}`claim-probe-beats-embeddings`. Its probabilities are good to 0.05 (`probabilities-can-be-believed`:
#   {glue:text}`claim-probabilities-can-be-believed`).
# - By AUROC the last layer tells no more than the middle (`last-layer-tells-no-more`:
#   {glue:text}`claim-last-layer-tells-no-more`). It tells something different: early layers read the word
#   (`early-layers-read-the-word`: {glue:text}`claim-early-layers-read-the-word`), the middle ones the sentence
#   (`middle-layers-read-the-sentence`: {glue:text}`claim-middle-layers-read-the-sentence`), at the end of the sentence;
#   at the last token they do as well (`the-last-token-reads-the-sentence`:
#   {glue:text}`claim-the-last-token-reads-the-sentence`), and the last layer does so less
#   (`late-layers-tell-less-of-negation`: {glue:text}`claim-late-layers-tell-less-of-negation`).
# - Further from the word a probe memorises less (`meaning-travels-further`:
#   {glue:text}`claim-meaning-travels-further`); it carries over between kinds of sentences
#   (`families-share-a-direction`: {glue:text}`claim-families-share-a-direction`) and can be had from two words
#   (`two-words-beat-chance`: {glue:text}`claim-two-words-beat-chance`).

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. A null that is too kind** (10 minutes). Permute the labels of *sentences* instead of adjectives. What happens to
# the null band, and to the p-value of a probe that has learned nothing? *Hint: give `permute_labels` other groups.*
#
# ```{dropdown} Solution
# `folds.permute_labels(data.labels, [0] * len(data.texts), n_permutations=100, seed=0)` permutes all rows. Within an
# adjective labels now differ, so the permuted task is harder than the real one could ever be, and the band narrows
# around one half: at the word it shrinks by about the root of the eight sentences of an adjective. A probe that
# merely got lucky with a few adjectives would then look significant.
# ```
#
# **2. Faint praise** (15 minutes). Take the adjectives with the strongest and the weakest ratings. Is a probe's score
# closer to the rating or to its sign? *Hint: `data.valences`, and the rank correlation within one class.*
#
# ```{dropdown} Solution
# Average `sweep.scores` of a site over the sentences of each adjective and correlate with `data.valences` within the
# favourable adjectives alone, and within the others. A probe that was trained on signs need not know degrees; where
# the correlation is clearly above zero, the direction carries more than the label asked for. Give an interval by
# bootstrap over adjectives: with thirty of them it is wide.
# ```
#
# **3. A sixth family** (20 minutes). Write two templates with irony or with a second opinion ("Others hated it, but she
# found the film wonderful") and repeat the matrix. *Hint: add a family to `sentences.TEMPLATES` before calling
# `draw_sentiment`.*
#
# ```{dropdown} Solution
# `sentences.TEMPLATES["second opinion"] = ("Others hated it, but she found the{THING}{WORD}.", …)`. Then
# `families=list(sentences.TEMPLATES)` as above. Look at the new column: if a distracting word of the other
# sign pulls the AUROC below that of the other families, the probe reads the sum of the words rather than the judgement.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`hewitt2019designing`, {cite:t}`belinkov2022probing`, {cite:t}`burger2024truth`, {cite:t}`hutto2014vader` and
# {cite:t}`socher2013recursive`, in full in the [bibliography](../../reference/bibliography).
