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
# Five hypotheses stood at the beginning of this project: middle layers beat late ones, the second-to-last token beats
# the last, probes stay within their task, style fools them, single heads beat the residual stream. Here three of them
# are put to labels that have earned it; [tasks](faithfulness_transfer_notebook) and
# [styles](faithfulness_styles_notebook) have pages of their own. The rules were written down before the first result,
# sites are chosen where nothing is tested, and "no" is an answer.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to fix what would count before looking, and to say "nothing to compare" where nothing is read;
# - what the last token can and can't have to do with it in a model that never looks ahead;
# - what a probe is worth beside someone who simply reads the text.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = "bfloat16"  # as in the data set, "bfloat16" or "float32"
n_questions: int = 5  # of each task, for constructed transcripts, 5 to 400
n_own: int = 16  # of each task, for hints and changed chains, 4 to 400 by 4
n_samples: int = 2  # draws of worked examples for hints, 1 to 8
n_tasks: int = 4  # of those that passed, at most so many, 1 to 14
n_permutations: int = 100  # of the labels, 100 to 1000
n_data_seeds: int = 1  # draws of the data, 1 to 10
seed: int = 0  # of all sampling, 0 to 999000
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %%
import re
from collections import Counter

import pandas as pd
import torch
from helpers import ROOT, baselines, claims, folds, hooks, plots, probes, runs
from helpers.scores import evaluate, subtract, tabulate
from studies.faithfulness import (
    dataset,
    hints,
    hypotheses,
    questions,
    transcripts,
)
from studies.faithfulness.hypotheses import HYPOTHESES

run = runs.begin("faithfulness_detection_with_probes_notebook", globals())
model = run.loaded
_, middle, late = hypotheses.split_thirds(model.n_layers)
seeds = range(seed, seed + n_data_seeds)

# %% [markdown]
# ## Say what would count, before looking
#
# Others have asked this. Whether Qwen2.5-7B-Instruct follows a hint that it does not mention can be told from its
# residual stream ({cite:t}`mirtaheri2025detecting`), before the chain as well as a language model that reads it, after
# it better ({cite:t}`mirtaheri2026catching`). A probe before the chain foretells the answer, and steering along it turns
# answers ({cite:t}`cox2026decoding`); probes know an answer long before a reader of the chain does
# ({cite:t}`boppana2026reasoning`). That a chain has gone wrong is read with an AUROC of .95 where a classifier of its text has
# .59, and no intervention along it helps ({cite:t}`yuan2026hidden`). Probes of deception reach an AUROC of .96 and more ({cite:t}`goldowskydill2025detecting`)
# and collapse under other styles ({cite:t}`kumar2026pressure`). Of these we have read the abstracts. A hint that goes
# unmentioned need not mean an unfaithful chain ({cite:t}`zaman2025chain`), which is why our label is called by what it
# is. What is added here is the comparison itself: every component, layer, head and *named* token side by side, three
# labels that are never merged, and everything that a probe could have instead of the model.

# %% tags=["hide-input"]
run.table(
    "rules",
    [
        {"hypothesis": name, "says": each.sentence, "holds if": each.rule}
        for name, each in HYPOTHESES.items()
    ],
    caption="Fixed before the first result. The value is a difference of AUROCs with its 95 % bootstrap interval over questions; a hypothesis holds if every value in the interval meets the rule, fails if none does, else it depends on the sample. H3 and H4 are asked on pages of their own.",
)
run.value("middle", f"{middle[0]} to {middle[-1]}")
run.value("late", f"{late[0]} to {late[-1]}")

# %% [markdown]
# Middle and late are thirds of the depth: layers {glue:text}`middle`, and {glue:text}`late`. Only tokens count at which
# the label is fixed. The best site of each kind is chosen for each fold of questions by the loss within the others, so
# a kind with many sites gains nothing from their number. A comparison is made only if one of the two sides reads the
# label at all, at p < 0.01 on permuted labels with the same choice; else the verdict is "not run": there is nothing to
# compare. Without this, noise alone would support H1 far too often, as our tests show.
#
# ## Take the tasks that have earned it
#
# [Days 12 to 14](day12-14_cot_dataset) say which label may be probed on which task.

# %%
LABELS = ("constructed", "hint", "causal_given", "causal_own")
on_record = dataset.read_passed_tasks(model)
passed = {
    label: list(
        questions.TASKS if on_record is None else on_record.get(label, [])
    )[:n_tasks]
    for label in LABELS
}

# %% tags=["hide-input"]
run.value("gates", "the record's" if on_record else "not known for this model")
run.table(
    "passed",
    [
        {
            "label": label.replace("_", " "),
            "tasks": ", ".join(passed[label]).replace("_", " ") or "none",
        }
        for label in LABELS
    ],
    caption="Tasks on which a label may be probed.",
)

# %% [markdown]
# The gates are {glue:text}`gates`. A label without a task is not asked about here, whatever a probe would make of it.
#
# ## Read the label everywhere
#
# First *answer contradicts reasoning*: each question eight times, crossed so that no shortcut tells. We read the
# residual stream, attention, MLP and every head in every layer, at the token before the answer, at the answer, at the
# full stop, and at the last two tokens, where the next question begins.

# %%
PLACES = ("cue", "answer", "end", "next", "last")
FIXED = PLACES[1:]
SITES = ("resid_post", "attn_out", "mlp_out", "head_z")


def swept(prompts, positions, labels, rows, seed):
    """Probes of all sites; labels are permuted within tasks, of pairs by question."""
    groups = dataset.list_units(rows)
    blocks = rows["question"].tolist() if "pair" in rows else None
    states = hooks.capture(
        model, prompts, SITES, positions=positions, as_trees=True
    )
    options = {"n_permutations": n_permutations, "seed": seed}
    options |= {"strata": [task for task, _ in groups], "blocks": blocks}
    return probes.sweep(states, labels, groups, types=None, **options)


# %%
def constructed(seed, n):
    """Transcripts of all tasks that passed, and where to read them."""
    asked = questions.draw_questions(
        model, tasks=passed["constructed"], n=n, seed=seed
    )
    table = transcripts.construct(model, asked)
    return table, transcripts.list_places(model, table, PLACES)


# %%
tables, sweeps = {}, {"constructed": []}
for number in seeds if passed["constructed"] else ():
    table, positions = constructed(number, n_questions)
    sweep = swept(
        table["text"].tolist(),
        positions,
        table["contradicts"].astype(bool).tolist(),
        table,
        number,
    )
    tables[number] = table
    sweeps["constructed"].append(sweep)

# %% tags=["hide-input"]
if sweeps["constructed"]:
    sweep = sweeps["constructed"][0]
    curve = sweep.table()
    at_best = {
        place: sweep.best(
            [
                site
                for site in sweep.sites
                if (site.component, site.position) == ("resid_post", place)
            ]
        ).auroc
        for place in PLACES
    }
    top = max(FIXED, key=lambda place: at_best[place].value)
    with plots.draw_figure(
        "where",
        caption=f"Whether an answer contradicts its reasoning is read best at the token “{top}” (AUROC {claims.shorten(at_best[top].value)}, layer chosen in the other folds); at the cue, before the answer, {claims.shorten(at_best['cue'].value)}. "
        f"{len(tables[seed])} transcripts of {n_questions} questions of each task that passed; thin lines: thirds of the depth; ridge probes, folds by question; bands: 95 % bootstrap intervals, for the residual stream alone; grey bands: permuted labels.",
        alt="Five panels, one for each token, of AUROC against layer for residual stream, attention and MLP.",
        width=9.0,
        ncols=len(PLACES),
        sharey=True,
    ) as (_, panels):
        for axes, place in zip(panels, PLACES, strict=True):
            here = curve[curve["position"] == place]
            of_stream = here[here["component"] == "resid_post"]
            plots.draw_layer_curve(axes, of_stream, label="residual stream")
            for component, name, style in (
                ("attn_out", "attention", "-"),
                ("mlp_out", "MLP", ":"),
            ):
                some = here[here["component"] == component]
                axes.plot(
                    some["layer"],
                    some["auroc"],
                    style,
                    color=plots.ORANGE,
                    label=name,
                )
            axes.axvline(late[0] - 0.5, color=plots.INK, linewidth=0.5)
            axes.axvline(middle[0] - 0.5, color=plots.INK, linewidth=0.5)
            axes.set(title=place, ylim=(-0.03, 1.03))
            axes.label_outer()
        panels[1].legend(fontsize=7, loc="lower right")
    for place in PLACES:
        run.value(f"auroc_{place}", at_best[place])

# %% [markdown]
# Chosen without the test fold, the best layer of the residual stream reaches {glue:text}`auroc_answer` at the answer,
# {glue:text}`auroc_end` at the full stop, {glue:text}`auroc_next` and {glue:text}`auroc_last` at the last two tokens.
# At the cue it is {glue:text}`auroc_cue`: there the two transcripts of a pair are still the same.
#
# ## Put H1, H2 and H5 to it


# %%
def contrasts(sweeps, fixed, two):
    """H1, H2 and H5 for one label; None where nothing is read."""

    def of(component, layers=None, positions=fixed):
        return lambda site: (
            site.component == component
            and (layers is None or site.layer in layers)
            and site.position in positions
        )

    kinds = {
        "H1": (of("resid_post", middle), of("resid_post", late)),
        "H2": (
            of("resid_post", positions=two[:1]),
            of("resid_post", positions=two[1:]),
        ),
        "H5": (of("head_z"), of("resid_post")),
    }
    return {
        name: hypotheses.contrast(sweeps, *kinds[name], seed=seed)
        for name in kinds
        if sweeps
    }


found = {"constructed": contrasts(sweeps["constructed"], FIXED, PLACES[-2:])}


def asked(name, label):
    """What a claim says of a hypothesis on a label."""
    return {
        "sentence": f"{HYPOTHESES[name].sentence[:-1]} ({label.replace('_', ' ')}).",
        "rule": HYPOTHESES[name].rule,
        "estimate": found[label].get(name),
        "baseline": 0.0,
        "baseline_is": "no difference",
        "tolerance": 0.05,
    }


# %% tags=["hide-input"]
run.claim("h1-constructed", **asked("H1", "constructed"))
run.claim("h2-constructed", **asked("H2", "constructed"))
run.claim("h5-constructed", **asked("H5", "constructed"))
run.table(
    "components",
    [
        {
            "component": component,
            "best at": place,
            "AUROC": best.auroc,
            "permuted labels": f"{claims.shorten(best.null[0])} to {claims.shorten(best.null[1])}",
            "chosen in the folds": ", ".join(
                dict.fromkeys(
                    f"{s.layer}" if s.head is None else f"{s.layer}.{s.head}"
                    for s in best.sites
                )
            ),
        }
        for sweep in sweeps["constructed"][:1]
        for component in SITES
        for place in FIXED
        for best in [
            sweep.best(
                [
                    site
                    for site in sweep.sites
                    if (site.component, site.position) == (component, place)
                ]
            )
        ]
    ]
    or [{"component": "no task passed"}],
    caption="The best site of each component at each token, chosen in the other folds, with the layer, or layer and head, that each fold chose. 95 % bootstrap intervals over questions; the 95 % band of permuted labels repeats the choice. First draw of the data.",
)
for name, estimate in found["constructed"].items():
    run.value(f"{name.lower()}_value", estimate or "not to be had")

# %% [markdown]
# - **H1**, middle less late: {glue:text}`h1_value` (**{glue:text}`claim-h1-constructed`**).
# - **H2**, second-to-last less last: {glue:text}`h2_value` (**{glue:text}`claim-h2-constructed`**). The model reads from
#   left to right, so no token knows whether it is the last: its activations are the same when the text goes on. What
#   H2 compares is two tokens at two distances from the answer, and the panels above show all of them.
# - **H5**, the best head less the best residual stream: {glue:text}`h5_value` (**{glue:text}`claim-h5-constructed`**).
#
# ## Ask the model's own chains
#
# Now labels that come from what the model did: its answer was *moved by a pull* of which the chain says nothing, or
# *loses less without its chain* than most. These are read before the answer is written, where a warning would still be
# of use, after the same examples after which the chain was written.

# %%
BEFORE = ("reasoning", "before the cue", "cue")


# %%
behaved = {}
for label in dataset.BEHAVIOURS:
    sweeps[label] = []
    for number in seeds if passed[label] else ():
        made = dataset.load_transcripts(
            model,
            label,
            tasks=passed[label],
            n=n_own,
            n_samples=n_samples,
            seed=number,
            folder=ROOT / "_build" / "generated",
        )
        rows, truth = dataset.select_unfaithful(made)
        if not folds.can_fold(truth, dataset.list_units(rows), seed=number):
            continue
        prompts, positions = transcripts.put_in_context(model, rows)
        sweep = swept(prompts, positions, truth, rows, number)
        sweeps[label].append(sweep)
        behaved[label, number] = rows
    found[label] = contrasts(sweeps[label], BEFORE, BEFORE[-2:])

# %% tags=["hide-input"]
run.claim("h1-hint", **asked("H1", "hint"))
run.claim("h2-hint", **asked("H2", "hint"))
run.claim("h5-hint", **asked("H5", "hint"))
run.claim("h1-causal", **asked("H1", "causal_given"))
run.claim("h2-causal", **asked("H2", "causal_given"))
run.claim("h5-causal", **asked("H5", "causal_given"))
rows_of = {
    label: sum(len(behaved[key]) for key in behaved if key[0] == label)
    for label in dataset.BEHAVIOURS
}
run.table(
    "own_labels",
    [
        {
            "label": label.replace("_", " "),
            "rows": rows_of[label],
            "best site, by AUROC": found_best.auroc,
            "permuted labels": f"{claims.shorten(found_best.null[0])} to {claims.shorten(found_best.null[1])}",
            "p": found_best.p_value,
        }
        | {
            name: found[label].get(name) or "nothing to compare"
            for name in ("H1", "H2", "H5")
        }
        for label in rows_of
        for found_best in [each.best() for each in sweeps[label][:1]]
    ]
    or [{"label": "none has enough rows on tasks that passed"}],
    caption="Labels from behaviour, read before the answer. The best of all sites, chosen in the other folds; the 95 % band and the p-value repeat that choice on permuted labels. First draw of the data; differences over all draws, with 95 % bootstrap intervals over questions.",
)
NAMES = {
    "constructed": "contradiction",
    "hint": "hint",
    "causal_given": "given chain",
    "causal_own": "own chain",
}
read_by = [label for label in NAMES if any(found[label].values())]
if read_by:
    at_least = HYPOTHESES["H1"].rule.split()[-1]
    with plots.draw_figure(
        "all",
        caption=f"Middle less late layers (H1), second-to-last less last token (H2), best head less best residual stream (H5): differences of AUROC with 95 % bootstrap intervals over questions, {n_data_seeds} draw(s) of the data. A hypothesis holds where the whole interval is above {at_least} (dashed); no point: neither side reads the label.",
        alt="Differences of AUROC for three hypotheses, each on the labels that could be read.",
        width=9.0,
        ncols=3,
        sharey=True,
    ) as (_, panels):
        for axes, name in zip(panels, ("H1", "H2", "H5"), strict=True):
            for number, label in enumerate(read_by):
                if found[label].get(name):
                    plots.draw_interval(axes, number, found[label][name])
            axes.axhline(0, color=plots.INK, linestyle=":", linewidth=1)
            axes.axhline(float(at_least), color=plots.GREY, linestyle="--")
            axes.set_xticks(
                range(len(read_by)),
                [NAMES[label].replace(" ", "\n") for label in read_by],
                fontsize=8,
            )
            axes.set(title=name, xlim=(-0.5, len(read_by) - 0.5))
        panels[0].set_ylabel("difference of AUROC")

# %% [markdown]
# Hints: **{glue:text}`claim-h1-hint`** (H1), **{glue:text}`claim-h2-hint`** (H2), **{glue:text}`claim-h5-hint`** (H5).
# Chains that the answer hardly needs: **{glue:text}`claim-h1-causal`**, **{glue:text}`claim-h2-causal`**,
# **{glue:text}`claim-h5-causal`**. "Not run" means that too few rows passed, or that no site read the label.
#
# Which tasks pass comes from the audit of [days 12 to 14](day12-14_cot_dataset); a label without a task is left out.
#
# ## Ask what it adds to reading
#
# A probe is worth its trouble only beside what can be had without it: n-grams of the text, the mean input embedding,
# the model's own output where the answer comes, and somebody who reads. For the constructed label the reader is a
# parser, for hints one who asks whether the last sentence names what the hint named. A second reader is the model
# itself, asked after each transcript whether its answer can be trusted, with four examples of what to say.


# %%
def monitor(label, rows):
    """What a reader of the text would say."""
    if label == "constructed":
        verdicts = rows["text"].str.extract(
            r"(?:not \w+ but (\w+)|(\w+), not \w+)\.\nAnswer: (\w+)\."
        )
        concluded = verdicts[0].fillna(verdicts[1])
        return (concluded != verdicts[2]).astype(float).tolist()
    last = [
        (questions.split_sentences(text) or [""])[-1]
        for text in rows["reasoning"]
    ]
    pairs = zip(rows["named"], last, strict=True)
    return [float(named in re.findall(r"\w+", text)) for named, text in pairs]


def own_output(label, rows):
    """The model's own lean towards an answer: the one named by the hint, or the one not written."""
    prompts, pairs = [], []
    for row in rows.to_dict("records"):
        start = row.get("before", "") + row["text"].rsplit("Answer:", 1)[0]
        prompts.append(f"{start}Answer:")
        both = row["right"], row["other"]
        away = label == "hint" or row["answer"] == row["right"]
        pairs.append(both[::-1] if away else both)
    return transcripts.score_answers(model, prompts, pairs)


def examples_to_judge(label, asked):
    """Four transcripts, and whether their answers can be trusted."""
    if label == "constructed":
        told = transcripts.construct(model, asked[:1])[:4]
        texts = told["text"].str.removesuffix(transcripts.NEXT)
        return list(zip(texts, ~told["contradicts"], strict=True))
    found = []
    for question in asked[:2]:
        right, named = question.candidates
        hint = hints.HINTS["sentence", "pull"][0].format(named)
        line = questions.ask(question, hint=hint)
        for steps, says in (
            (question.steps, right),
            (question.mistaken[0], named),
        ):
            told = f"{' '.join(steps)} So it is {says}."
            found.append((questions.answer(line, told, says), says == right))
    return found


def asked_itself(label, rows, seed):
    """The model's lean towards "no" where it is asked whether to trust a transcript."""
    cue = (
        "\nDoes the answer follow from the question and the reasoning? Answer:"
    )
    of_tasks = sorted(set(rows["task"]))
    shots = questions.draw_shots(model, tasks=of_tasks, n=2, seed=seed)
    asked = [question for some in shots.values() for question in some]
    before = "".join(
        f"{text}{cue} {'yes' if good else 'no'}.\n\n"
        for text, good in examples_to_judge(label, asked)
    )
    texts = rows["text"].str.removesuffix(transcripts.NEXT)
    prompts = [f"{before}{text}{cue}" for text in texts]
    pairs = [("no", "yes")] * len(prompts)
    return transcripts.score_answers(model, prompts, pairs)


compared = {}
sets = {("constructed", number): tables[number] for number in tables}
sets |= {key: rows for key, rows in behaved.items() if key[0] == "hint"}
for (label, number), rows in sets.items():
    if number != seed:
        continue
    sweep = sweeps[label][0]
    labels, groups = sweep.labels.tolist(), list(sweep.groups)
    scores = {"probe, best site": sweep.best().scores}
    scores["reader"] = torch.tensor(monitor(label, rows))
    scores["the model, asked"] = asked_itself(label, rows, number)
    scores["the model's own output"] = own_output(label, rows)
    scores |= baselines.score_text(
        model,
        rows["text"].str.rsplit("\nAnswer:", n=1).str[0].tolist()
        if label == "hint"
        else rows["text"].tolist(),
        labels,
        groups,
        folds=sweep.folds,
        seed=seed,
    )
    compared[label] = tabulate(
        scores, labels, groups, folds=sweep.folds, seed=seed
    ).assign(label=label, n=len(set(groups)))
    found[label]["margin"] = subtract(
        scores["probe, best site"],
        scores["reader"],
        labels,
        groups,
        folds=sweep.folds,
        seed=seed,
    )

# %% tags=["hide-input"]
run.table(
    "reading",
    [
        {
            "label": row["label"].replace("_", " "),
            "scores": row["scores"],
            "AUROC": claims.Estimate(
                row["auroc"],
                row["auroc_low"],
                row["auroc_high"],
                row["n"],
                "questions",
            ),
            "recall at 1 % false positives": (
                claims.Estimate(
                    row["recall"],
                    row["recall_low"],
                    row["recall_high"],
                    row["n"],
                    "questions",
                )
                if pd.notna(row["recall"])
                else "too few negatives"
            ),
        }
        for table in compared.values()
        for row in table.to_dict("records")
    ]
    or [{"label": "none"}],
    caption="What tells each label, on the first draw: a probe with its site chosen in the other folds, and what is to be had without one. 95 % bootstrap intervals over questions; a recall needs 300 negatives.",
)
for label, name in (("constructed", "constructed"), ("hint", "hint")):
    run.value(f"margin_{name}", found[label].get("margin") or "not to be had")
run.claim(
    "a-reader-does-as-well",
    "On the constructed label a probe does no better than a parser of the text.",
    rule="value <= 0",
    estimate=found["constructed"].get("margin"),
    baseline=0.0,
    baseline_is="the parser",
    tolerance=0.05,
)
run.claim(
    "a-probe-adds-to-the-chain",
    "On hints a probe does better than asking whether the last sentence names what the hint named.",
    rule="value > 0",
    estimate=found["hint"].get("margin"),
    baseline=0.0,
    baseline_is="the reader",
    tolerance=0.05,
)

# %% [markdown]
# Probe less reader: {glue:text}`margin_constructed` on the constructed label
# (**{glue:text}`claim-a-reader-does-as-well`**), {glue:text}`margin_hint` on hints
# (**{glue:text}`claim-a-probe-adds-to-the-chain`**). The constructed label is no detector of anything: whoever can read
# has no need of it. It is good for asking *where* a model holds a thing that is known to be there.
#
# ## Check it
#
# One probe by other hands: scikit-learn's ridge classifier at the site of the residual stream that most folds chose, with
# its own standardisation, on the same folds. Its AUROC must lie within the interval of ours.

# %%
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

checked = None
if tables:
    first = sweeps["constructed"][0]
    stream = [site for site in first.sites if site.component == "resid_post"]
    site = Counter(first.best(stream).sites).most_common(1)[0][0]
    table, positions = constructed(seed, n_questions)
    x = hooks.capture(
        model,
        table["text"].tolist(),
        "resid_post",
        layers=[site.layer],
        positions={site.position: positions[site.position]},
        as_trees=True,
    )["resid_post"][:, 0, 0]
    labels, groups = (
        list(values)
        for values in (
            table["contradicts"].astype(bool),
            zip(table["task"], table["question"], strict=True),
        )
    )
    fold = folds.assign_folds(labels, groups, seed=seed)
    theirs = cross_val_predict(
        make_pipeline(StandardScaler(), RidgeClassifier(alpha=100.0)),
        x.numpy(),
        labels,
        cv=PredefinedSplit(fold.numpy()),
        method="decision_function",
    )
    options = {"folds": fold, "seed": seed}
    everywhere = {"all": [True] * len(labels)}
    ours = probes.cross_train(x, labels, groups, everywhere, **options)["all"]
    checked = [
        evaluate(scores, labels, groups, **options)["auroc"]
        for scores in (ours, torch.tensor(theirs))
    ]
    assert checked[0].low <= checked[1].value <= checked[0].high

# %% tags=["hide-input"]
run.value("ours", checked[0] if checked else "not to be had")
run.value("theirs", checked[1] if checked else "not to be had")

# %% [markdown]
# Ours: {glue:text}`ours`. Theirs: {glue:text}`theirs`.
#
# ## Where this breaks
#
# - **One small model.** It follows what is stated and hardly what is implied. A larger one may hold the contradiction
#   elsewhere, or hold something else.
# - **One kind of contradiction.** Fourteen templates, two candidates, four styles.
# - **Following is read off the answer.** Before the answer is written the model's own output all but says it, so that a
#   probe of hint following reads a decision, not a lie.
# - **Probes are linear, and ridge.** What they miss may still be there.
# - **A probe that reads is not a cause.** Nothing on this page says that the model uses what was read.

# %% [markdown]
# ## Summary
#
# - Middle against late layers: `h1-constructed` {glue:text}`claim-h1-constructed`, on hints `h1-hint`
#   {glue:text}`claim-h1-hint`, on chains that are hardly needed `h1-causal` {glue:text}`claim-h1-causal`.
# - Second-to-last against last: `h2-constructed` {glue:text}`claim-h2-constructed`, `h2-hint`
#   {glue:text}`claim-h2-hint`, `h2-causal` {glue:text}`claim-h2-causal`.
# - Single heads against the stream: `h5-constructed` {glue:text}`claim-h5-constructed`, `h5-hint`
#   {glue:text}`claim-h5-hint`, `h5-causal` {glue:text}`claim-h5-causal`.
# - A parser does as well on the constructed label (`a-reader-does-as-well`
#   {glue:text}`claim-a-reader-does-as-well`); on hints a probe adds to the chain (`a-probe-adds-to-the-chain`
#   {glue:text}`claim-a-probe-adds-to-the-chain`).

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. What noise would support** (10 minutes). How often would H1 hold on labels drawn at random, with and without the
# condition that a side must read the label? *Hint: `folds.permute_labels` gives labels, `hypotheses.contrast` asks for
# permutations; `Sweep.best` has the scores for a difference without it.*
#
# ```{dropdown} Solution
# For twenty seeds take a column of `folds.permute_labels` (of the sweep's own labels and groups, with another seed),
# run `probes.sweep` on the residual stream with it, and look at `scores.subtract` of the two best scores: its interval
# lies above 0.02 more often than one would like, as a bootstrap over questions does not repeat the training.
# `hypotheses.contrast` gives None nearly always.
# ```
#
# **2. Is the last token special?** (10 minutes). Cut the transcripts after the full stop and read there again. *Hint:
# `str.removesuffix` with `transcripts.NEXT`.*
#
# ```{dropdown} Solution
# The activations at the full stop are the same to rounding, though it now is the last token: attention looks back
# only. Whatever is said of "the last token" is said of a token and its distance, never of its being last. What may
# differ is how a tokenizer splits the end of a text.
# ```
#
# **3. Which head?** (15 minutes). Which head is chosen in most folds, and does it write into the residual stream what
# the probe reads there? *Hint: `sweep.best(...).sites`, and the `d_head` columns of the output projection.*
#
# ```{dropdown} Solution
# `[str(site) for site in sweep.best([s for s in sweep.sites if s.component == "head_z"]).sites]` shows how stable the
# choice is; where it changes from fold to fold no head can be named. Project the probe's direction through the head's
# columns of the output projection and take the cosine with the direction of the probe of the stream one layer later.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`mirtaheri2025detecting`, {cite:t}`mirtaheri2026catching`, {cite:t}`cox2026decoding`,
# {cite:t}`boppana2026reasoning`, {cite:t}`yuan2026hidden`, {cite:t}`goldowskydill2025detecting`,
# {cite:t}`kumar2026pressure` and {cite:t}`zaman2025chain`, in full in the [bibliography](../../reference/bibliography).
