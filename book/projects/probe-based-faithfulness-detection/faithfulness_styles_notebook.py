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
# # Can style fool a probe?
#
# The fourth hypothesis: probes of faithfulness are vulnerable to changes of style. We tell the same transcripts in four
# styles, with the label held fixed, and let an adversary choose which style each class comes in. Then we tie style to
# label in the training set, little by little, and look for the point at which a probe learns the style instead.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s on
# {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to attack a probe without attacking its noise;
# - how much of a tie between style and label a linear probe forgives;
# - whether training in all styles is a remedy.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
n_questions: int = 5  # of each task, in each of four styles, 5 to 400
n_tasks: int = 4  # of those that passed, at most so many, 1 to 10
n_data_seeds: int = 1  # draws of the data, 1 to 10
seed: int = 0  # of all sampling, 0 to 999000
device: str = "cpu"  # "cpu", or "cuda" where there is a GPU

# %%
import numpy as np
import pandas as pd
from helpers import (
    claims,
    faithfulness,
    hooks,
    hypotheses,
    models,
    plots,
    probes,
    questions,
    runs,
)
from helpers.hypotheses import HYPOTHESES, Draw

parameters = runs.validate(
    model_name=(model_name, str),
    n_questions=(n_questions, range(5, 401)),
    n_tasks=(n_tasks, range(1, 11)),
    n_data_seeds=(n_data_seeds, range(1, 11)),
    seed=(seed, range(999_001)),
    device=(device, str),
)
model = models.load(model_name, device=device)
run = runs.start(
    "projects/probe-based-faithfulness-detection/faithfulness_styles_notebook",
    parameters,
    model,
)
tasks = (faithfulness.passed(model) or {}).get("constructed", [])
tasks = (tasks or list(questions.TASKS))[:n_tasks]
STYLES = dict(questions.STYLES)

# %% [markdown]
# ## Tell everything in every style
#
# The label is *answer contradicts reasoning*, on the tasks that [days 12 to 14](day12-14_cot_dataset) let through. Each
# question is told eight times as there, and all of that in every style.

# %%
PLACES = ("answer", "end", "next", "last")


def told(asked):
    """Every transcript of some questions in every style; those that differ in style alone share a number."""
    parts = [
        faithfulness.constructed(model, asked, styles={name: style})
        for name, style in STYLES.items()
    ]
    return pd.concat([part.assign(transcript=part.index) for part in parts])


def read(table, layers=None):
    """The residual stream where the label is fixed."""
    return hooks.capture(
        model,
        table["text"].tolist(),
        "resid_post",
        layers=layers,
        positions=faithfulness.places(model, table, PLACES),
    )


def grouped(table):
    return list(zip(table["task"], table["question"], strict=True))


# %% tags=["hide-input"]
asked = questions.questions(model, tasks=tasks[:1], n=1, seed=seed)
shown = told(asked).drop_duplicates("style")
run.table(
    "styles",
    [
        {"style": row["style"], "transcript": row["text"].replace("\n", " ")}
        for row in shown.to_dict("records")
    ],
    caption="One transcript in every style.",
)

# %% [markdown]
# One site is read. It is chosen on another draw of questions, in the styles as they come.

# %%
few = questions.questions(model, tasks=tasks, n=5, seed=seed + 1000)
first = faithfulness.constructed(model, few)
site = probes.sweep(
    read(first),
    first["contradicts"].astype(bool).tolist(),
    grouped(first),
    types=None,
    n_permutations=0,
    seed=seed,
).leading()
draws, transcripts = [], []
for number in range(seed, seed + n_data_seeds):
    table = told(
        questions.questions(model, tasks=tasks, n=n_questions, seed=number)
    )
    states = read(table, layers=[site.layer])
    draws.append(
        Draw(
            probes.features(states, site),
            table["contradicts"].astype(bool).tolist(),
            grouped(table),
            table["style"].tolist(),
        )
    )
    transcripts.append(table["transcript"].tolist())

# %% tags=["hide-input"]
run.value("site", str(site))
run.value("n_rows", sum(len(draw.labels) for draw in draws))
draw = draws[0]
fixed = {"seed": seed, "folds": hypotheses.folds_of(draw, seed)}
grid = probes.transfer(
    draw.activations, draw.labels, draw.questions, draw.domains, **fixed
)
wide = grid.pivot(index="trained", columns="tested", values="auroc")
wide = wide.rename(index=lambda name: name.replace("_", " "))
wide = wide.rename(columns=lambda name: name.replace("_", " "))
own = grid[grid["trained"] == grid["tested"]]["auroc"].mean()
other = grid[grid["trained"] != grid["tested"]]["auroc"].mean()
with plots.figure(
    "transfer",
    caption=f"Trained in one style (rows), tested in another (columns): AUROC {claims.short(own)} within, {claims.short(other)} across on average. {site}; {n_questions} questions of each of {len(tasks)} tasks, folds by question.",
    alt="Matrix of AUROC by training style and test style.",
    width=5.0,
) as (_, axes):
    plots.matrix(axes, wide)
apart = hypotheses.within_less_across(draws, seed=seed)
run.value("apart", apart)
run.claim(
    "styles-transfer",
    "A probe of one style loses less than 0.1 of AUROC on other styles.",
    rule="value < 0.1",
    estimate=apart,
    baseline=0.0,
    baseline_is="nothing lost",
    tolerance=0.05,
)

# %% [markdown]
# Site: {glue:text}`site`, on {glue:text}`n_rows` transcripts. Within styles less across: {glue:text}`apart`
# (**{glue:text}`claim-styles-transfer`**).
#
# ## Let an adversary choose the style
#
# An adversary who picks the worst of four tellings for each single transcript would beat a coin, too: of four noisy
# scores the lowest is low. So ours has to commit: one style for transcripts that contradict, one for those that don't,
# chosen among all pairs in the training folds and tried on the others. On noise it gains nothing (a test says so).
#
# **What we expect.** {cite:t}`kumar2026pressure` saw probes of deception collapse under eight shifts of style, and
# recover to an AUROC of .98 when trained on several (the abstract was read; other model, other label). If the styles
# move activations along the probe's direction, the adversary has something to exchange.

# %%
single = hypotheses.attack(
    draws,
    {
        style: [np.array(draw.domains) == style for draw in draws]
        for style in STYLES
    },
    seed=seed,
)
mixed = hypotheses.attack(
    draws,
    {
        "all styles": [
            hypotheses.one_style_each(each, draw.domains, seed=seed)
            for each, draw in zip(transcripts, draws, strict=True)
        ]
    },
    seed=seed,
)

# %% tags=["hide-input"]
with plots.figure(
    "attack",
    caption=f"The adversary costs a probe of one style {claims.short(single.cost.value)} of AUROC, one of all styles {claims.short(mixed.cost.value)}. "
    f"Left points of each pair: styles as in the training set; right: as the adversary chose. Equally many training rows; 95 % bootstrap intervals over questions; dotted: chance.",
    alt="AUROC with and without an adversary, for probes of one style and of all styles.",
    width=5.0,
) as (_, axes):
    for number, (each, color) in enumerate(
        ((single, plots.BLUE), (mixed, plots.ORANGE))
    ):
        plots.interval(axes, number - 0.1, each.clean, color=color)
        plots.interval(axes, number + 0.1, each.attacked, color=color, fmt="s")
    axes.axhline(0.5, color=plots.INK, linestyle=":", linewidth=1)
    axes.set_xticks([0, 1], ["trained in one style", "trained in all"])
    axes.set(ylabel="AUROC", ylim=(0, 1.03), xlim=(-0.5, 1.5))
run.value("clean", single.clean)
run.value("attacked", single.attacked)
run.value("cost", single.cost)
run.value("mixed_clean", mixed.clean)
run.value("mixed_attacked", mixed.attacked)
run.value("mixed_cost", mixed.cost)
run.claim(
    "h4-constructed",
    HYPOTHESES["H4"].sentence,
    rule=HYPOTHESES["H4"].rule,
    estimate=single.cost,
    baseline=0.0,
    baseline_is="nothing lost",
    tolerance=0.05,
)
run.claim(
    "all-styles-are-a-remedy",
    "Of a probe that was trained in all styles the adversary takes less than 0.1.",
    rule="value < 0.1",
    estimate=mixed.cost,
    baseline=single.cost.value,
    baseline_is="trained in one style",
    tolerance=0.05,
)

# %% [markdown]
# Trained in one style: {glue:text}`clean`, attacked {glue:text}`attacked`. **H4**, the cost: {glue:text}`cost`
# (**{glue:text}`claim-h4-constructed`**). Trained on as many transcripts, but in all styles: {glue:text}`mixed_clean`,
# attacked {glue:text}`mixed_attacked`, cost {glue:text}`mixed_cost` (**{glue:text}`claim-all-styles-are-a-remedy`**).
#
# ## Tie style to label
#
# In found data style and label go together. Here a share of the transcripts that contradict is verbose and the same
# share of the others is terse, from one half (no tie) to all of them; the probe is tested where there is no tie, and
# where the tie is reversed. A probe that has learned the style is below one half on the last.

# %%
PAIR = ("verbose", "terse")
SHARES = (0.5, 0.75, 0.9, 1.0)
both = np.isin(np.array(draw.domains), PAIR)
truth, styles = np.array(draw.labels), np.array(draw.domains)
reversed_tie = np.where(truth, styles == PAIR[1], styles == PAIR[0])
trained = probes.cross_trained(
    draw.activations,
    draw.labels,
    draw.questions,
    {
        share: hypotheses.tied(
            draw.labels,
            transcripts[0],
            draw.domains,
            PAIR,
            share=share,
            seed=seed,
        )
        for share in SHARES
    },
    **fixed,
)


def area(share, rows):
    return probes.combined(
        [(1.0, trained[share], rows)], draw.labels, draw.questions, **fixed
    )


without = {share: area(share, both) for share in SHARES}
against = {share: area(share, reversed_tie & both) for share in SHARES}

# %% tags=["hide-input"]
with plots.figure(
    "tied",
    caption=f"With style tied to the label throughout, a probe reads {claims.short(without[1.0].value)} where there is no tie and {claims.short(against[1.0].value)} where it is reversed. "
    "Share of the training transcripts whose style goes with their label; 95 % bootstrap intervals over questions; first draw of the data.",
    alt="AUROC against the share of training transcripts whose style goes with the label, without a tie and with the reversed one.",
    width=6.0,
) as (_, axes):
    for values, color, name in (
        (without, plots.BLUE, "no tie"),
        (against, plots.ORANGE, "tie reversed"),
    ):
        for share, estimate in values.items():
            plots.interval(axes, share, estimate, color=color)
        axes.plot(
            list(values),
            [each.value for each in values.values()],
            color=color,
            label=name,
        )
    axes.axhline(0.5, color=plots.INK, linestyle=":", linewidth=1)
    axes.set(xlabel="share tied", ylabel="AUROC", ylim=(-0.03, 1.03))
    axes.legend()
run.value("untied", against[0.5])
run.value("tied", against[1.0])
run.value("forgiven", against[0.9])
run.claim(
    "a-full-tie-is-learned",
    "With style and label tied throughout, a probe is below one half where the tie is reversed.",
    rule="value < 0.5",
    estimate=against[1.0],
    baseline=0.5,
    baseline_is="chance",
    tolerance=0.05,
)
run.claim(
    "a-tie-of-nine-in-ten-is-forgiven",
    "With nine in ten tied, it is above 0.6 where the tie is reversed.",
    rule="value > 0.6",
    estimate=against[0.9],
    baseline=against[0.5].value,
    baseline_is="no tie",
    tolerance=0.05,
)

# %% [markdown]
# Where the tie is reversed: {glue:text}`untied` without one in training, {glue:text}`forgiven` with nine in ten tied
# (**{glue:text}`claim-a-tie-of-nine-in-ten-is-forgiven`**), {glue:text}`tied` with all
# (**{glue:text}`claim-a-full-tie-is-learned`**). Nothing in the accuracy on such a training set would say so.
#
# ## Check it
#
# The same tie on scores that are pure style: a rule that calls every verbose transcript a contradiction. Where the tie
# is reversed its AUROC must be 0, where there is none one half.

# %%
rule = (styles == PAIR[0]).astype(float)
by_rule = {
    "no tie": probes.combined(
        [(1.0, rule, both)], draw.labels, draw.questions, **fixed
    ).value,
    "reversed": probes.combined(
        [(1.0, rule, reversed_tie & both)],
        draw.labels,
        draw.questions,
        **fixed,
    ).value,
}
assert by_rule == {"no tie": 0.5, "reversed": 0.0}

# %% tags=["hide-input"]
run.value("rule_reversed", by_rule["reversed"])

# %% [markdown]
# Reversed: {glue:text}`rule_reversed`.
#
# ## Where this breaks
#
# - **Four styles by rule.** They exchange the words around the same steps. A paraphrase by a person or a model changes
#   more, and so may move more.
# - **The adversary knows the probe** and may only choose among these styles, one for each class. One who may choose for
#   each transcript, or write freely, does at least as well.
# - **A label of transcripts.** For labels from behaviour the style can't be changed without changing the behaviour, so H4
#   is asked on the constructed label alone.

# %% [markdown]
# ## Summary
#
# - A probe of one style on other styles (`styles-transfer`: {glue:text}`claim-styles-transfer`).
# - Under attack (`h4-constructed`: {glue:text}`claim-h4-constructed`), and with the remedy (`all-styles-are-a-remedy`:
#   {glue:text}`claim-all-styles-are-a-remedy`).
# - A full tie of style and label is learned (`a-full-tie-is-learned`: {glue:text}`claim-a-full-tie-is-learned`); nine in
#   ten are forgiven (`a-tie-of-nine-in-ten-is-forgiven`: {glue:text}`claim-a-tie-of-nine-in-ten-is-forgiven`).

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. A fifth style** (10 minutes). Add one that shouts. Does the adversary take it? *Hint: a style is a function of the
# steps and the verdict, which it has to write out.*
#
# ```{dropdown} Solution
# `STYLES["shouting"] = lambda steps, verdict: " ".join(steps).upper() + f" SO IT IS {verdict}!"` before the transcripts
# are told. Capitals are other tokens, so that activations move far, and a probe of another style may lose much. For the
# mixed probe it is one style among five.
# ```
#
# **2. Attack noise** (10 minutes). Let the adversary choose for each transcript by itself, on random scores. What AUROC
# is left? *Hint: for positives the lowest of four draws, for negatives the highest.*
#
# ```{dropdown} Solution
# With `x = np.random.default_rng(0).normal(size=(1000, 4))`, `areas` of `x.min(1)` for positives and `x.max(1)` for
# negatives is about 0.02. An attack that looks so strong on nothing can't measure anything.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`kumar2026pressure`, in full in the [bibliography](../../reference/bibliography).
