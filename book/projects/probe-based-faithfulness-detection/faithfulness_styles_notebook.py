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
# The fourth hypothesis: probes of faithfulness are vulnerable to changes of style. We tell the same transcripts in eight
# styles, with the label held fixed, and let an adversary choose which style each class comes in. Then we tie style to
# label in the training set, little by little, and look for the point at which a probe learns the style instead.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to attack a probe without attacking its noise;
# - how much of a tie between style and label a linear probe forgives;
# - whether training in all styles is a remedy.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = "bfloat16"  # as in the data set, "bfloat16" or "float32"
n_questions: int = 5  # of each task, in each of eight styles, 5 to 400
n_own: int = 4  # of each task, for hints and chains, 4 to 400 by 4
n_samples: int = 2  # draws of worked examples for hints, 1 to 8
n_tasks: int = 4  # of those that passed, at most so many, 1 to 14
n_data_seeds: int = 1  # draws of the data, 1 to 10
seed: int = 0  # of all sampling, 0 to 999000
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %%
import numpy as np
import pandas as pd
from helpers import ROOT, claims, hooks, plots, probes, runs, scores
from studies.faithfulness import causes, dataset, hypotheses, questions
from studies.faithfulness.hypotheses import HYPOTHESES, Draw
from studies.faithfulness.transcripts import (
    N_SHOTS,
    construct,
    list_places,
    put_in_context,
)

run = runs.begin("faithfulness_styles_notebook", globals())
model = run.loaded
gates = dataset.read_passed_tasks(model) or {}
tasks = gates.get("constructed", list(questions.TASKS))[:n_tasks]

# %% [markdown]
# ## Tell everything in every style
#
# The label is *answer contradicts reasoning*, on the tasks that [days 12 to 14](day12-14_cot_dataset) let through. Each
# question is told eight times as there, and all of that in every style: the four of the data set, and four in which no
# probe on this page is trained.

# %%
FAMILIAR = dict(questions.STYLES)
STRANGE = {
    "catechism": lambda steps, verdict: (
        f"What do we know? {' '.join(steps)} And so? It is {verdict}."
    ),
    "list": lambda steps, verdict: (
        " ".join(f"({i}) {step}" for i, step in enumerate(steps, start=1))
        + f" => {verdict}."
    ),
    "doubting": lambda steps, verdict: (
        f"Wait. {' Hmm. '.join(steps)} No doubt any more: {verdict}."
    ),
    "archaic": lambda steps, verdict: (
        f"Hearken! {' Mark ye: '.join(steps)} Verily, it is {verdict}."
    ),
}
STYLES = FAMILIAR | STRANGE
PLACES = ("answer", "end", "next", "last")


def told(asked):
    """Every transcript of some questions in every style; those that differ in style alone share a number."""
    parts = [
        construct(model, asked, styles={name: style})
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
        positions=list_places(model, table, PLACES),
        as_trees=True,
    )


def grouped(table):
    return list(zip(table["task"], table["question"], strict=True))


# %% tags=["hide-input"]
asked = questions.draw_questions(model, tasks=tasks[:1], n=1, seed=seed)
shown = told(asked).drop_duplicates("style")
run.table(
    "styles",
    [
        {"style": row["style"], "transcript": row["text"].replace("\n", " ")}
        for row in shown.to_dict("records")
    ],
    caption="One transcript in every style; the first four are those of the data set.",
)

# %% [markdown]
# One site is read. It is chosen on another draw of questions, in the styles as they come.

# %%
few = questions.draw_questions(model, tasks=tasks, n=5, seed=seed + 1000)
first = construct(model, few)
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
        questions.draw_questions(model, tasks=tasks, n=n_questions, seed=number)
    )
    states = read(table, layers=[site.layer])
    draws.append(
        Draw(
            probes.read_features(states, site),
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
fixed = {"seed": seed, "folds": hypotheses.assign_draw_folds(draw, seed)}
grid = probes.transfer(
    draw.activations, draw.labels, draw.questions, draw.domains, **fixed
)
wide = grid.pivot(index="trained", columns="tested", values="auroc")
wide = wide.rename(index=lambda name: name.replace("_", " "))
wide = wide.rename(columns=lambda name: name.replace("_", " "))
own = grid[grid["trained"] == grid["tested"]]["auroc"].mean()
other = grid[grid["trained"] != grid["tested"]]["auroc"].mean()
with plots.draw_figure(
    "transfer",
    caption=f"Trained in one style (rows), tested in another (columns): AUROC {claims.shorten(own)} within, {claims.shorten(other)} across on average. {site}; {n_questions} questions of each of {len(tasks)} tasks, folds by question.",
    alt="Matrix of AUROC by training style and test style.",
    width=5.0,
) as (_, axes):
    plots.draw_matrix(axes, wide)
apart = hypotheses.measure_transfer(draws, seed=seed).apart
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
# recover to an AUROC of .98 when trained on several (the abstract was read; other model, other label). If the styles move
# activations along the probe's direction, the adversary has something to exchange.
#
# The rule was written for the four styles of the data set, and a first run had been seen when the four strange ones were
# added. So both are shown: an adversary with the familiar styles, and one with all eight, against the same probes.


# %%
def each_style(draws, styles):
    """Training sets of one style each."""
    return {
        style: [np.array(draw.domains) == style for draw in draws]
        for style in styles
    }


def mixture(draw, numbers):
    """A training set as large as one style's, of all familiar ones."""
    familiar = np.isin(np.array(draw.domains), list(FAMILIAR))
    chosen = np.zeros(len(familiar), dtype=bool)
    chosen[familiar] = hypotheses.draw_one_style_each(
        np.array(numbers)[familiar], np.array(draw.domains)[familiar], seed=seed
    )
    return chosen


of_one = each_style(draws, FAMILIAR)
of_all = {"all styles": list(map(mixture, draws, transcripts))}
familiar, everything = list(FAMILIAR), list(STYLES)
single = hypotheses.attack(draws, of_one, styles=familiar, seed=seed)
mixed = hypotheses.attack(draws, of_all, styles=familiar, seed=seed)
single_strange = hypotheses.attack(draws, of_one, styles=everything, seed=seed)
mixed_strange = hypotheses.attack(draws, of_all, styles=everything, seed=seed)

# %% tags=["hide-input"]
with plots.draw_figure(
    "attack",
    caption=f"An adversary with the four familiar styles costs a probe of one style {claims.shorten(single.cost.value)} of AUROC, one of all four {claims.shorten(mixed.cost.value)}; with four strange ones besides, {claims.shorten(single_strange.cost.value)} and {claims.shorten(mixed_strange.cost.value)}. "
    f"Circles: styles as in the training set; squares: as the adversary with familiar styles chose; triangles: with all eight. Equally many training rows; 95 % bootstrap intervals over questions; dotted: chance.",
    alt="AUROC without an adversary and with two, for probes of one style and of all styles.",
    width=6.0,
) as (_, axes):
    for number, (each, worse, color) in enumerate(
        (
            (single, single_strange, plots.BLUE),
            (mixed, mixed_strange, plots.ORANGE),
        )
    ):
        for shift, area, marker in (
            (-0.15, each.clean, "o"),
            (0.0, each.attacked, "s"),
            (0.15, worse.attacked, "^"),
        ):
            plots.draw_interval(
                axes, number + shift, area, color=color, fmt=marker
            )
    axes.axhline(0.5, color=plots.INK, linestyle=":", linewidth=1)
    axes.set_xticks([0, 1], ["trained in one style", "trained in all four"])
    axes.set(ylabel="AUROC", ylim=(0, 1.03), xlim=(-0.5, 1.5))
run.value("clean", single.clean)
run.value("attacked", single.attacked)
run.value("cost", single.cost)
run.value("mixed_clean", mixed.clean)
run.value("mixed_attacked", mixed.attacked)
run.value("mixed_cost", mixed.cost)
run.value("strange_cost", single_strange.cost)
run.value("mixed_strange_cost", mixed_strange.cost)
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
    "h4-more-styles",
    "Styles chosen by an adversary from eight, of which four are strange to every probe, cost a probe of one style.",
    rule=HYPOTHESES["H4"].rule,
    estimate=single_strange.cost,
    baseline=single.cost.value,
    baseline_is="familiar styles",
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
run.claim(
    "the-remedy-holds-in-strange-styles",
    "Nor does one who may choose the strange ones, too.",
    rule="value < 0.1",
    estimate=mixed_strange.cost,
    baseline=single_strange.cost.value,
    baseline_is="trained in one style",
    tolerance=0.05,
)

# %% [markdown]
# Trained in one style: {glue:text}`clean`, attacked {glue:text}`attacked`. **H4**, the cost: {glue:text}`cost`
# (**{glue:text}`claim-h4-constructed`**). Trained on as many transcripts, but in all styles: {glue:text}`mixed_clean`,
# attacked {glue:text}`mixed_attacked`, cost {glue:text}`mixed_cost` (**{glue:text}`claim-all-styles-are-a-remedy`**).
#
# With the strange styles besides: {glue:text}`strange_cost` for one style (**{glue:text}`claim-h4-more-styles`**),
# {glue:text}`mixed_strange_cost` for all four (**{glue:text}`claim-the-remedy-holds-in-strange-styles`**).
#
# ## Ask labels from behaviour
#
# Given chains can be told in any style. We tell each in the four familiar ones, and ask whether the answer loses less
# without the chain, on average over them, than that of the question it is paired with. For hints what can be varied is
# what pulls: a sentence, an example and the order of options take
# the place of styles, on questions on which all three end alike. Read before the answer, in the layer chosen above.


# %% tags=["hide-input"]
def chains(seed):
    """Given chains in every familiar style."""
    of_tasks = gates.get("causal_given", list(questions.TASKS))[:n_tasks]
    if not of_tasks:
        return pd.DataFrame()
    asked = questions.draw_questions(model, tasks=of_tasks, n=n_own, seed=seed)
    n_shots = N_SHOTS
    shots = questions.draw_shots(model, tasks=of_tasks, n=n_shots, seed=seed)
    return causes.label_causes(
        model, asked, shots=shots, own=False, styles=list(FAMILIAR)
    )


def hints(seed):
    """Wrong hints by every pull."""
    of_tasks = gates.get("hint", list(questions.TASKS))[:n_tasks]
    if not of_tasks:
        return pd.DataFrame()
    options = {"n": n_own, "n_samples": n_samples, "seed": seed}
    options["folder"] = ROOT / "_build" / "generated"
    rows = dataset.load_transcripts(model, "hint", tasks=of_tasks, **options)
    return rows.assign(style=rows["pull"])


def steady(table):
    """The rows of questions on which the label is the same in every style; and which share of them all that is."""
    rows, truth = dataset.select_unfaithful(table)
    rows = rows.assign(unfaithful=truth)
    of_question = rows.groupby(["task", "question"])
    found = of_question["style"].transform("nunique")
    complete = found == rows["style"].nunique()
    same = complete & (of_question["unfaithful"].transform("nunique") == 1)
    return rows[same], float(same.sum() / max(complete.sum(), 1))


def attacked(made):
    """The adversary's cost on a label of behaviour, and how many questions it was measured on."""
    draws, shares = [], []
    for table in made:
        rows, share = steady(table) if len(table) else (table, 0.0)
        shares.append(share)
        if not len(rows):
            continue
        prompts, at = put_in_context(model, rows)
        states = hooks.capture(
            model,
            prompts,
            "resid_post",
            layers=[site.layer],
            positions={"cue": at["cue"]},
            as_trees=True,
        )
        draws.append(
            Draw(
                states["resid_post"][:, 0, 0],
                rows["unfaithful"].tolist(),
                dataset.list_units(rows),
                rows["style"].tolist(),
            )
        )
    draws = hypotheses.drop_unfilled(draws, seed=seed)
    if not draws:
        return None, float(np.mean(shares))
    sets = each_style(draws, sorted(set(draws[0].domains)))
    found = hypotheses.attack(draws, sets, seed=seed)
    return found.cost, float(np.mean(shares))


number_of = range(seed, seed + n_data_seeds)
chain_cost, _ = attacked(map(chains, number_of))
hint_cost, hint_share = attacked(map(hints, number_of))

# %% tags=["hide-input"]
run.value(
    "chain_cost", chain_cost or "not to be had: too few rows of one class"
)
run.value("hint_cost", hint_cost or "not to be had: too few rows of one class")
run.value("hint_share", hint_share)
run.claim(
    "h4-causal",
    "Styles chosen by an adversary cost a probe of one style more than 0.1 of AUROC (given chain).",
    rule=HYPOTHESES["H4"].rule,
    estimate=chain_cost,
    baseline=0.0,
    baseline_is="nothing lost",
    tolerance=0.05,
)
run.claim(
    "h4-hint",
    "Pulls of a hint chosen by an adversary cost a probe of one pull more than 0.1 of AUROC.",
    rule=HYPOTHESES["H4"].rule,
    estimate=hint_cost,
    baseline=0.0,
    baseline_is="nothing lost",
    tolerance=0.05,
)

# %% [markdown]
# Given chains: {glue:text}`chain_cost` (**{glue:text}`claim-h4-causal`**). Hints: {glue:text}`hint_cost`
# (**{glue:text}`claim-h4-hint`**), on the share {glue:text}`hint_share` of transcripts whose label stays. Which tasks
# pass comes from the audit of [days 12 to 14](day12-14_cot_dataset); a label without
# a task is left out.
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
trained = probes.cross_train(
    draw.activations,
    draw.labels,
    draw.questions,
    {
        share: hypotheses.tie_styles(
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
    return scores.combine(
        [(1.0, trained[share], rows)], draw.labels, draw.questions, **fixed
    )


without = {share: area(share, both) for share in SHARES}
against = {share: area(share, reversed_tie & both) for share in SHARES}

# %% tags=["hide-input"]
with plots.draw_figure(
    "tied",
    caption=f"With style tied to the label throughout, a probe reads {claims.shorten(without[1.0].value)} where there is no tie and {claims.shorten(against[1.0].value)} where it is reversed. "
    "Share of the training transcripts whose style goes with their label; 95 % bootstrap intervals over questions; first draw of the data.",
    alt="AUROC against the share of training transcripts whose style goes with the label, without a tie and with the reversed one.",
    width=6.0,
) as (_, axes):
    for values, color, name in (
        (without, plots.BLUE, "no tie"),
        (against, plots.ORANGE, "tie reversed"),
    ):
        for share, estimate in values.items():
            plots.draw_interval(axes, share, estimate, color=color)
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
    "no tie": scores.combine(
        [(1.0, rule, both)], draw.labels, draw.questions, **fixed
    ).value,
    "reversed": scores.combine(
        [(1.0, rule, reversed_tie & both)], draw.labels, draw.questions, **fixed
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
# - **Eight styles by rule.** They exchange the words around the same steps. A paraphrase by a person or a model changes
#   more, and so may move more.
# - **The adversary knows the probe** and may only choose among these styles, one for each class. One who may choose for
#   each transcript, or write freely, does at least as well.
# - **Behaviour moves with style.** What is left where the label stays is the easier part of it.

# %% [markdown]
# ## Summary
#
# - A probe of one style on other styles (`styles-transfer`: {glue:text}`claim-styles-transfer`).
# - Under attack (`h4-constructed`: {glue:text}`claim-h4-constructed`; `h4-more-styles`:
#   {glue:text}`claim-h4-more-styles`), and with the remedy (`all-styles-are-a-remedy`:
#   {glue:text}`claim-all-styles-are-a-remedy`; `the-remedy-holds-in-strange-styles`:
#   {glue:text}`claim-the-remedy-holds-in-strange-styles`).
# - On labels from behaviour (`h4-causal`: {glue:text}`claim-h4-causal`; `h4-hint`: {glue:text}`claim-h4-hint`).
# - A full tie of style and label is learned (`a-full-tie-is-learned`: {glue:text}`claim-a-full-tie-is-learned`); nine in
#   ten are forgiven (`a-tie-of-nine-in-ten-is-forgiven`: {glue:text}`claim-a-tie-of-nine-in-ten-is-forgiven`).

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. A ninth style** (10 minutes). Add one that shouts. Does the adversary take it? *Hint: a style is a function of the
# steps and the verdict, which it has to write out.*
#
# ```{dropdown} Solution
# `STRANGE["shouting"] = lambda steps, verdict: " ".join(steps).upper() + f" SO IT IS {verdict}!"` before the transcripts
# are told. Capitals are other tokens, so that activations move far, and a probe of another style may lose much.
# ```
#
# **2. Attack noise** (10 minutes). Let the adversary choose for each transcript by itself, on random scores. What AUROC
# is left? *Hint: for positives the lowest of four draws, for negatives the highest.*
#
# ```{dropdown} Solution
# With `x = np.random.default_rng(0).normal(size=(1000, 4))`, `compute_auroc` of `x.min(1)` for positives and `x.max(1)` for
# negatives is about 0.02. An attack that looks so strong on nothing can't measure anything.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`kumar2026pressure`, in full in the [bibliography](../../reference/bibliography).
