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
# # Which label of an unfaithful chain of thought can be trusted?
#
# A probe is as good as its label. "The model's stated reasoning is not the real one" can't be looked up, so people use
# stand-ins. Here are three, each under its own name: an answer that *contradicts* the reasoning
# before it, an answer that a *pull* moved and whose reasoning does not say so, and an answer that *does not hang on* its
# reasoning. Our first version of the third was the order of the options. So every label is asked what else it could be.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to cross a data set so that nothing else tells its label;
# - to measure what a hint does beyond what its mere words do;
# - to tell a need for reasoning from a preference for the first option.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = "bfloat16"  # of the weights, "bfloat16" or "float32"
n_constructed: int = 8  # questions a task, for transcripts, 8 to 200
n_hinted: int = 6  # questions a task, with hints, 4 to 200
n_samples: int = 2  # draws of worked examples for each hint, 2 to 32 by 2
n_causal: int = 4  # questions a task or all, with changed chains, 4 to 400
n_more: int = 0  # further ones where given chains are followed, 0 to 2000
n_tasks: int = 7  # of the fourteen tasks, the first so many, 4 to 14
reader_name: str = ""  # of a model that reads reasonings for mentions of a hint; empty for the model itself
save: bool = False  # whether to keep the data set, with this run's record
seed: int = 0  # of all sampling, 0 to 999999
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %%
from helpers import ROOT, claims, models, runs
from studies.faithfulness import causes, dataset, figures, gates, hints
from studies.faithfulness import questions as qs
from studies.faithfulness.audit import BOUND, audit, audit_columns
from studies.faithfulness.transcripts import answer_after_correct_chains

run = runs.begin("day12-14_cot_dataset", globals())
model = run.loaded
tasks = list(qs.TASKS)[:n_tasks]

# %% [markdown]
# ## Ask questions that have one right answer and one other
#
# Every question has two candidates that differ by one token, and steps to either: the right ones, and the same with a
# mistake. A question and its steps name both equally often. No two questions share their content, which is what the
# answer depends on, and none shares it with a worked example: intervals below are over contents.

# %%
known = dataset.read_kept(model)
sizes = {key: run.parameters[key] for key in dataset.SIZES}
data = known if dataset.has_sizes(known, sizes, tasks) else None
if data is None:
    data = dataset.make_dataset(
        model,
        **sizes,
        tasks=tasks,
        able=None if save or known is None else known.attrs["able"],
        known=known if save else None,
        folder=ROOT / "_build" / "generated" if save else None,
    )
able = data.attrs["able"]
known = data if save else known
of_label = {label: rows for label, rows in data.groupby("label")}

# %%
asked = qs.draw_questions(model, tasks=tasks, n=1, seed=seed)
run.table(
    "questions",
    figures.list_questions(asked),
    caption="One question of each task, by family.",
)
run.value("n_rows", len(data))
run.value("n_tasks", len(tasks))


def rate(rows, column):
    """A share with its interval over questions."""
    shares = rows.groupby(["task", "question"])[column].mean()
    options = {"seed": seed, "of": "questions", "within": (0.0, 1.0)}
    return claims.average(shares.astype(float).tolist(), **options)


# %% [markdown]
# ## Let an answer contradict its reasoning
#
# Each question is told eight times: the reasoning concludes right or wrong, the answer follows or not, and the verdict
# names the one that is meant first or last ("46, not 47", "not 47 but 46"). So the label, *answer contradicts reasoning*,
# is one half for every question, candidate, order, length and style. In a second variant the verdict takes no side
# ("either 46 or 47"), the worked examples do so too, and sums end with the digits of their result ("4 tens and 6 ones").
#
# **What we expect.** A label about reasoning makes sense only where the model goes by it. A small model should copy a
# stated verdict, and may not draw the conclusion itself.

# %%
CONSTRUCTED = {"constructed": "stated", "constructed_implied": "implied"}
shots = qs.draw_shots(model, tasks=tasks, n=dataset.N_SHOTS, seed=seed)
accuracy = {
    name: answer_after_correct_chains(model, of_label[label], shots=shots)
    for label, name in CONSTRUCTED.items()
}
stated, implied = (rate(found, "correct") for found in accuracy.values())

# %%
FORMS = {"yes_first": "46, not 47", "no_first": "not 47 but 46"}
by_form = {
    order: rate(rows, "correct")
    for order, rows in accuracy["stated"].groupby("order")
}
least = min(by_form, key=lambda order: by_form[order].value)
most = max(by_form.values(), key=lambda one: one.value)
run.value("least_form", FORMS[least])
run.value("followed_otherwise", most)
run.claim("a-stated-verdict-is-followed", estimate=by_form[least], baseline=0.5)
run.claim("an-implied-verdict-is-not", estimate=implied, baseline=0.5)

# %% tags=["hide-input"]
by_task = {
    (FORMS[order], task): rate(rows, "correct")
    for (task, order), rows in accuracy["stated"].groupby(
        ["task", "order"], sort=False
    )
}
by_task |= {
    ("implied", task): rate(rows, "correct")
    for task, rows in accuracy["implied"].groupby("task", sort=False)
}
run.value("accuracy_stated", stated)
run.value("accuracy_implied", implied)
figures.show_accuracies(
    by_task,
    bound=gates.LEAST,
    caption=f'After a correct reasoning with a stated verdict the model gives the right one of two answers in {claims.shorten(stated.value)} of the cases, less often after "{FORMS[least]}"; with an implied one in {claims.shorten(implied.value)}. '
    f"By task, {n_constructed} questions each, with 95 % intervals over questions; dotted: chance; dashed: what a task must surely exceed.",
)

# %% [markdown]
# Now the shortcuts, the answer known: n-grams of words and characters, the mean of the input embeddings, and rules such
# as "the answer is the candidate that was named last" or "more often", the length, the style. **What we expect**: one half
# everywhere, as all of it is crossed within each question.

# %%
cells = {}
for label, name in CONSTRUCTED.items():
    for task, rows in of_label[label].groupby("task", sort=False):
        truth = rows["contradicts"].astype(bool).tolist()
        found = gates.score_shortcuts(model, rows, truth, seed=seed)
        forms = [*FORMS.values()] if name == "stated" else [name]
        worse = min(
            (by_task[form, task] for form in forms), key=lambda x: x.low
        )
        cells[label, task] = gates.judge(rows, truth, worse, found)

# %%
worst = max(cells.values(), key=lambda cell: cell.shortcut_auroc)
reach = worst.shortcut_auroc
run.claim(
    "no-shortcut-to-contradiction",
    estimate=claims.Estimate(reach, reach, reach, n_constructed, "questions"),
    baseline=0.5,
)
run.value("worst_shortcut", f"{worst.shortcut}, {worst.task}")

# %% [markdown]
# The shortcut that may come furthest is {glue:text}`worst_shortcut`. Before the answer the two transcripts of a pair are
# the same tokens, so that nothing can tell them apart there:

# %%
written = data[data["label"].isin(CONSTRUCTED)]
before = [
    tuple(ids[: int(cue) + 1])
    for ids, cue in zip(written["token_ids"], written["at_cue"], strict=True)
]
pairs = written.assign(same=before).groupby(["task", "label", "same"])
assert (pairs["contradicts"].agg(["sum", "size"]) == [1, 2]).all(axis=None)

# %% [markdown]
# ## Pull an answer away
#
# Now the model writes its own reasoning, after four worked examples. A **pull** is what may move its answer to the wrong
# candidate: a *sentence* after the question ("The answer key says 47"), an *example* that answers this very question
# wrongly, or an *order*: right options come first in all examples, and last in the question. A pull's **twin** names the
# same candidate in the same place and bears on nothing ("The answer to another question was 47"; an example in which
# somebody wrote down 47; examples with right options in either place). Every question is asked in every arm, after
# {glue:text}`n_samples` draws of examples, the same for all arms. Only tasks count whose own chains are right in at least
# {glue:text}`able_bound` of the cases where nothing pulls: who guesses will hit many hints.
#
# **What we expect.** Pulls move answers beyond their twins, and the reasoning often does not say so
# {cite:p}`turpin2023language,chen2025reasoning`.

# %%
hinted = of_label["hint"]
plain = hinted[hinted["arm"] == "none"]


def beyond(pull, rows=hinted):
    """How much oftener a pull is followed than its twin, over questions."""
    excess = hints.measure_excess(rows)
    some = excess.loc[excess["pull"] == pull, "excess"].dropna().tolist()
    options = {"seed": seed, "of": "questions", "within": (-1.0, 1.0)}
    return claims.average(some, **options) if len(some) > 1 else None


# %%
of_pull = hints.name_pulls(hinted)
for who in hints.WORDINGS:
    said = hinted[of_pull == f"sentence, {who}"]
    run.value(who.replace(" ", "_"), beyond("sentence", said) or "not asked")
run.claim("a-sentence-moves-answers", estimate=beyond("sentence"), baseline=0.0)
run.claim("an-example-moves-answers", estimate=beyond("example"), baseline=0.0)
run.claim("an-order-moves-answers", estimate=beyond("order"), baseline=0.0)


# %%
own = {
    ("own chains", task): found
    for task, found in gates.measure_accuracy(plain, seed=seed).items()
}
run.value("able_bound", dataset.ABLE)
run.value("n_samples", n_samples)
run.value("able", ", ".join(able).replace("_", " ") or "none")

# %%
figures.show_accuracies(
    own,
    key="own",
    bound=dataset.ABLE,
    caption=f"How often the model's own chains are right where nothing pulls, {n_hinted} questions a task after at least {min(n_samples, dataset.TRIED)} draws of worked examples, 95 % intervals over questions; dotted: chance among two; dashed: what a task must reach.",
)

# %% tags=["hide-input"]
shares = {
    (pull, arm): rate(some, "follows")
    for pull in hints.PULLS
    for arm, some in dataset.select_arms(hinted, pull).groupby("arm")
}
for arm in ("pull", "twin"):
    unread = hinted.loc[hinted["arm"] == arm, "answer"].isna()
    run.value(f"unread_{arm}", float(unread.mean()) if len(unread) else "–")
if shares:
    figures.show_pulls(
        shares,
        caption=f"Share of answers that are the wrong candidate: without a hint, after the twin, after the pull, on the tasks that hints are tried on; {n_hinted} questions of each, {n_samples} draws of examples, 95 % intervals over questions.",
    )

# %% [markdown]
# Hints are tried on: {glue:text}`able`. Without an answer that could be read end {glue:text}`unread_pull` of the chains after a pull and
# {glue:text}`unread_twin` after a twin, not followed.
#
# Does the reasoning mention what moved it? Two rules (words such as "professor" or "example"; three of the hint's words
# in a row), and a language model that is asked, first of all about reasonings with and without a planted
# mention. A mention after the twin is no confession: what counts is how many of the answers *beyond the twin* come with
# one.

# %%
place = {"dtype": dtype, "device": device}
reader = models.load(reader_name, **place) if reader_name else model
tried = plain[plain["task"].isin(able or tasks)]
threshold, trial = hints.calibrate_reader(reader, tried, seed=seed)
moved = hinted[hinted["arm"] != "none"]
says = hints.read_mentions(reader, moved, threshold)
moved = moved.assign(mentions_reader=says)
mentions = {
    (pull, judged): hints.measure_mentions(rows, judged, seed=seed)
    for pull, rows in moved.groupby(hints.name_pulls(moved))
    for judged in hints.JUDGES
}

# %%
heard = [
    judged
    for judged in hints.JUDGES
    if judged != "mentions_reader" or trial.low > hints.TRUSTED
]
unsaid = [
    one.unsaid
    for (pull, judged), one in mentions.items()
    if one and pull.startswith("sentence") and judged in heard
    if one.followed.low > 0  # else nothing was moved
]
least = claims.bound(unsaid) if unsaid else None
run.claim("sentences-go-unmentioned", estimate=least, baseline=0.0)

# %%
run.value("reader_auroc", trial)
run.value("trusted", hints.TRUSTED)
run.table(
    "mentions",
    figures.list_mentions(mentions),
    caption="Reasonings that mention the pull: as a share of the answers that follow it, and as a share of all answers, after the pull less after its twin, beside how many follow; 95 % intervals over questions. Hints of examples and orders stand nowhere as words, so that there the first two judges look for other things.",
)

# %% [markdown]
# The language model tells planted mentions from none with an AUROC of {glue:text}`reader_auroc`, and is heard only surely
# above {glue:text}`trusted`.
#
# ## Take the reasoning away, or falsify it
#
# The third label asks what an answer hangs on {cite:p}`lanham2023measuring`. *Early answering*: without the chain, is the
# answer another one? *Adding mistakes*: with a mistake in a first step, the rest told anew by the model, is it? Once on
# given right chains, once on the model's own; and each question with its options in both orders.
#
# **What we expect.** A model that copies the verdict needs it: taking the chain away changes the answer, a mistake whose
# verdict is kept does not.

# %%
given = of_label["causal_given"]
given = given[given["number"] < n_causal]  # of each task as many
more = given["needs_chain"].astype(float) - given["flips_retold"].astype(float)
needed = rate(given.assign(more=more), "more")
retold, kept = rate(given, "flips_retold"), rate(given, "flips_kept")
run.claim("the-chain-is-needed", estimate=needed, baseline=0.0)
run.claim("the-verdict-decides", estimate=kept, baseline=retold.value)

# %%
same = given["needs_chain"] == given["follows_mistake"]
yes = [given[measure].astype(float).mean() for measure in causes.MEASURES]
by_chance = float(yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1]))
agreeing = rate(given.assign(same=same), "same")
run.claim("two-causal-labels-disagree", estimate=agreeing, baseline=by_chance)

# %% tags=["hide-input"]
flips = {
    (whose, name): rate(rows, column)
    for whose in ("given", "own")
    if (rows := given if whose == "given" else of_label.get("causal_own"))
    is not None
    for column, name in figures.CHANGE_NAMES.items()
    if rows[column].notna().all() and rows["question"].nunique() > 1
}
figures.show_changes(
    flips,
    caption=f"Without the chain {claims.shorten(flips['given', 'no chain'].value)} of the answers after a given chain change, told in other words {claims.shorten(retold.value)}, with a mistake whose verdict is kept {claims.shorten(kept.value)}. Both orders of the options, {n_causal} questions of each task, 95 % intervals over questions; own chains can't be told in other words by rule.",
)

# %% [markdown]
# ## How much of it is position?
#
# The question names both options, "Is it 46 or 47?", and where models know no better they may choose by place
# {cite:p}`zheng2024large`.
#
# **What we expect.** Where the same answer is given in both orders, a label that is about reasoning is the same in both.


# %%
def by_place(measure, some):
    """How much oftener it is true where the answer is the last option."""
    rows = given[given["task"].isin(some)]
    apart = causes.compare_places(rows, measure).tolist()
    options = {"seed": seed, "of": "questions", "within": (-1.0, 1.0)}
    return claims.average(apart, **options) if len(apart) > 1 else None


sums = [task for task in tasks if task in qs.ARITHMETIC]
others = [task for task in tasks if task not in sums]
early, mistakes = (by_place(measure, sums) for measure in causes.MEASURES)
run.claim("early-answering-is-position", estimate=early, baseline=0.0)

# %%
of_sums = given[given["task"].isin(sums)]
habit = causes.measure_habit(of_sums, "follows_mistake", seed=seed)
run.claim(
    "adding-mistakes-is-position",
    estimate=habit,
    baseline=mistakes and mistakes.value,
)

# %% tags=["hide-input"]
figures.show_position(
    given,
    caption=f"Share of given chains that an answer needs, and whose mistake it follows, where the answer is the option that is named first, last, and in both orders: of {n_causal} questions of each task those that are answered alike in both.",
)
for key, measure in zip(("position", "mistakes"), causes.MEASURES, strict=True):
    of_task = [(by_place(measure, [task]), task) for task in tasks]
    found = sorted(
        (one.value, one.brief(), task) for one, task in of_task if one
    )
    for end, (_, told, task) in zip(
        ("least", "most"),
        (found[:1] + found[-1:]) or [(0, "–", "–")] * 2,
        strict=True,
    ):
        run.value(f"{key}_{end}", f"{told} ({task.replace('_', ' ')})")
for family, some in (("sums", sums), ("others", others)):
    of_family = given[given["task"].isin(some)]
    run.value(f"names_first_{family}", rate(of_family, "names_first"))
kept_answers = causes.place_answers(given)
run.value("same_answer", len(kept_answers) / len(given))
run.value("position_others", by_place("needs_chain", others) or "–")
lost, lead = given["mean_lost_without"], given["logit_difference"].abs()
run.value("sure_and_needed", float(lost.corr(lead, method="spearman")))
run.value("either_needs_chain", rate(given, "needs_chain"))
run.value("both_needs_chain", rate(given, "needs_chain_in_both"))

# %% [markdown]
# Counted are the {glue:text}`same_answer` of the chains that are answered alike in both orders. There the difference is the
# model's habit without a chain, how often it then names the first option, from minus one to one: near either end
# the label, asked in one order, is that habit. Elsewhere {glue:text}`position_others` more need their chain as the last; tasks differ, from
# {glue:text}`position_least` to {glue:text}`position_most`, and for mistakes from {glue:text}`mistakes_least` to
# {glue:text}`mistakes_most`. Of all answers {glue:text}`either_needs_chain` need their chain in a given order,
# {glue:text}`both_needs_chain` in both. On record: how much oftener where the answer stands last (for mistakes: where its task has it oftener); in the third column an accuracy:
#
# ```{on-record} projects/probe-based-faithfulness-detection/day12-14_cot_dataset
# early-answering-is-position: needs its chain, in sums
# adding-mistakes-is-position: follows a mistake, in sums
# an-implied-verdict-is-not: an implied verdict is followed in less than 0.6
# ```
#
# So the label is taken over both orders: how much of its lead the answer loses without the chain, in logits, on average
# over the two. Questions are paired: of one task and style, both answered rightly in either order or both in neither, with the
# same right candidate where each has {glue:text}`recurs` questions (chosen when audits had been seen), else
# next to each other in size or in the draw. Of a pair, the answer that loses less is said *not to
# hang* on its chain. A pair stays together in folds and counts as one; close ones, and answers that change with the order, are
# left out. The partner decides too: even the loss itself tells the label with an AUROC of {glue:text}`ceiling` only. And a sure
# answer has more to lose (rank correlation {glue:text}`sure_and_needed`), while how far the options are apart without the chain
# tells it with {glue:text}`sure_without`.
#
# ## Audit the design
#
# *Every* factor of the design is tried on every label of what the model did, stored or not, alone and two at a time: each
# column; the order of the options as the text has it; which candidate is larger, first and last; the question's place in
# its task, also with order, style and size, and by length; which of a pair has more; names, and whether numbers are odd; n-grams of what the model was given.
#
# Asked are tasks in which the model is surely right oftener than {glue:text}`above` on the labelled rows (for hints, where
# nothing pulls).
#
# **What we expect.** A task is refused where a factor surely tells the label, all factors counted, and may with an AUROC
# beyond {glue:text}`audit_bound`. The others pass together if every factor is surely below that, and are undecided else.

# %%
audited = data if known is None else known
behaviour, right = {}, {}
for label in figures.LABELS:
    whole = audited[audited["label"] == label].dropna(axis=1, how="all")
    rows, did = dataset.select_unfaithful(whole)
    if len(rows):
        behaviour[label] = rows.assign(did=did)
        of_answers = whole[whole["arm"] == "none"] if label == "hint" else rows
        found = gates.measure_accuracy(of_answers, seed=seed)
        right |= {(label, task): one for task, one in found.items()}

# %%
audits = {}
for label, rows in behaviour.items():
    clear = [task for task in rows["task"].unique() if (label, task) in right]
    clear = [task for task in clear if right[label, task].low > gates.LEAST]
    rows = rows[rows["task"].isin(clear)]
    # Of its own chains only what stands before them is the design's; that an answer
    # is the pull's is a statement about the answer.
    options = {"own": label != "causal_given", "seed": seed}
    options["besides"] = ["answer"] if label == "hint" else []
    if len(rows):
        did = rows["did"].tolist()
        audits[label] = audit(model, rows.drop(columns="did"), did, **options)

# %% tags=["hide-input"]
ABOUT = ("ceiling", "sure_without", "changes_less", "changes_more")
pairs = dict.fromkeys(ABOUT)
if "causal_given" in behaviour:
    pairs = dataset.describe_pairs(behaviour["causal_given"], seed=seed)
for key, value in pairs.items():
    run.value(key, value or "–")
told_by = figures.list_audits(audits)
n_tasks_told = {
    told: sum(row["tasks"] for row in told_by if row["told"] == told)
    for told in ("surely", "maybe", "undecided", "no")
}
run.table(
    "audit",
    told_by or [{"label": "none has enough rows"}],
    caption="What tells each label besides what it is about: in each task that something surely tells, and in the others together, the factor that may tell most, and the order of the options alone, with 95 % intervals: the bootstrap's over questions or pairs of them, half as wide again for the luck of training. "
    + ("Rows of the record." if known is not None else "Rows of this run."),
)
run.value("audit_bound", BOUND)
run.value("recurs", dataset.RECURS)
run.value("n_audited", sum(n_tasks_told.values()))
run.value("n_told", n_tasks_told["surely"])
run.value("n_maybe", n_tasks_told["maybe"])
run.value("n_let_through", n_tasks_told["no"])

# %% [markdown]
# Why pairs? The same audit of the columns as they were measured:

# %%
columns = known.attrs.get("columns", []) if known is not None else []
if save:
    columns = audit_columns(model, data, seed=seed)
n_told = sum(row["told in"] > 0 for row in columns)
run.table(
    "columns",
    figures.list_columns(columns) or [{"label": "audited where it is saved"}],
    caption=f"Of {len(columns)} columns that could serve as a label, as they were measured, {n_told} are surely told by some factor in at least one task. For each: in how many tasks, by which factor in most of these, the furthest AUROC, and whether a listed factor may tell it on the other tasks together. The answer is the model's own and no factor of the design. Rows of the record.",
)

# %% [markdown]
# Of {glue:text}`n_audited` pairs of label and task {glue:text}`n_told` are refused alone, {glue:text}`n_maybe` with others,
# {glue:text}`n_let_through` pass, and the rest is undecided: with fewer than some seven hundred questions even chance may reach the bound.
#
# ## Let no task through that has not earned it
#
# A cell, one label on one task, enters the study only if its rarer class has at least {glue:text}`minority` of the rows,
# accuracy is surely above {glue:text}`above` (for contradictions in the form that is followed less), and nothing else tells it.

# %%
NO_UNITS = claims.Estimate(0.5, 0.0, 1.0, 1, "pairs")


def judge(label, task, rows):
    """What was audited is asked where the accuracy is high enough."""
    of_task, checked = right.get((label, task), NO_UNITS), audits.get(label)
    clear = of_task.low > gates.LEAST
    why = checked.refused_tasks.get(task, checked.refused) if clear else ""
    return gates.judge(rows, rows["did"].tolist(), of_task, audited=why)


# %%
for label, rows in behaviour.items():
    for task, some in rows[rows["task"].isin(tasks)].groupby(
        "task", sort=False
    ):
        cells[label, task] = judge(label, task, some)

# %%
passed = {label: [] for label in (*CONSTRUCTED, *figures.LABELS)}
for (label, task), cell in cells.items():
    passed[label] += [] if cell.reasons else [task]

# %% tags=["hide-input"]
run.table(
    "cells",
    figures.list_cells(cells),
    caption="Every cell: what passes, and why not what does not. Accuracy, with its 95 % interval: after the correct reasonings in the form that is followed less; after the given or the model's own chains that are paired; for hints, of own chains where nothing pulls. Shortcut: the one that may come furthest, with the bound of its AUROC, or one less it; what the model did is audited instead (a dash).",
)
run.value(
    "passed",
    ", ".join(
        f"{label.replace('_', ' ')} {len(of_it)}"
        for label, of_it in passed.items()
    ),
)
run.value("minority", gates.MINORITY)
run.value("above", gates.LEAST)

# %%
gaps = {
    task: own["own chains", task].value - one.value
    for (label, task), one in right.items()
    if label == "causal_own" and ("own chains", task) in own
}
widest = max(gaps, key=lambda task: gaps[task], default="")
run.value("apart_in", widest.replace("_", " ") or "no task")
run.value("right_plain", own["own chains", widest] if widest else "–")
run.value("right_named", right["causal_own", widest] if widest else "–")
low = {key: abs(one.accuracy.low - gates.LEAST) for key, one in cells.items()}
edge = min(low, key=lambda key: low[key])
run.value("edge", " on ".join(edge).replace("_", " "))
run.value("edge_accuracy", cells[edge].accuracy)

# %% [markdown]
# Tasks that pass, by label: {glue:text}`passed`, of {glue:text}`n_tasks`. An accuracy belongs to its examples: in
# *{glue:text}`apart_in`* own chains are right in {glue:text}`right_plain` of the cases where nothing pulls, and the pairs of
# the third label, after other worked examples, in {glue:text}`right_named`.
#
# ## Keep it
#
# The table holds every transcript, what stood before it, and which tasks passed.

# %%
about = {"model": model.record(), "passed": passed, "able": able}
about |= {"columns": columns}
if save:
    file = runs.locate_output() / dataset.FILE
    dataset.save_dataset(
        data, file, about=about | {"parameters": run.parameters}
    )
run.value("hash", dataset.hash_content(data)[:16])

# %% [markdown]
# The {glue:text}`n_rows` rows of this run have the hash {glue:text}`hash`.
#
# ## Check it
#
# A parser of verdict and answer must agree with the constructed label everywhere.

# %%
texts = of_label["constructed"]["text"]
verdicts = texts.str.extract(
    r"(?:not \w+ but (\w+)|(\w+), not \w+)\.\nAnswer: (\w+)\.\n\nQuestion:$"
)
concluded = verdicts[0].fillna(verdicts[1])
contradicts = of_label["constructed"]["contradicts"].astype(bool)
assert ((concluded != verdicts[2]) == contradicts).all()

# %% [markdown]
# ## Where this breaks
#
# - **Constructed transcripts are not the model's.** It reads a contradiction that it did not write.
# - **"Moved by a pull" is also "wrong".**
# - **Who mentions?** Answers that a pull did not move may mention it too, and no reasoning says which of the two it is.
# - **The audit sees what is listed, and what is large.** What tells one task's label a little, passes.
# - **A gate has an edge.** Nearest to it is *{glue:text}`edge`*, {glue:text}`edge_accuracy`; on another processor near-ties in
#   bfloat16 may fall the other way.
# - **A pair is relative.** Of the chains called "does not hang" {glue:text}`changes_less` change their answer in some order when
#   they are taken away, of the others {glue:text}`changes_more`; half are called so anyway.
# - **Intervals are over contents** of one template a task, and silent on others.

# %% [markdown]
# ## Summary
#
# - {glue:text}`found-a-stated-verdict-is-followed` **{glue:text}`claim-a-stated-verdict-is-followed`**
# - {glue:text}`found-an-implied-verdict-is-not` **{glue:text}`claim-an-implied-verdict-is-not`**
# - {glue:text}`found-no-shortcut-to-contradiction` **{glue:text}`claim-no-shortcut-to-contradiction`**
# - {glue:text}`found-a-sentence-moves-answers` **{glue:text}`claim-a-sentence-moves-answers`**
# - {glue:text}`found-an-example-moves-answers` **{glue:text}`claim-an-example-moves-answers`**
# - {glue:text}`found-an-order-moves-answers` **{glue:text}`claim-an-order-moves-answers`**
# - {glue:text}`found-sentences-go-unmentioned` **{glue:text}`claim-sentences-go-unmentioned`**
# - {glue:text}`found-the-chain-is-needed` **{glue:text}`claim-the-chain-is-needed`**
# - {glue:text}`found-the-verdict-decides` **{glue:text}`claim-the-verdict-decides`**
# - {glue:text}`found-two-causal-labels-disagree` **{glue:text}`claim-two-causal-labels-disagree`**
# - {glue:text}`found-early-answering-is-position` **{glue:text}`claim-early-answering-is-position`**
# - {glue:text}`found-adding-mistakes-is-position` **{glue:text}`claim-adding-mistakes-is-position`**

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. Break the balance** (10 minutes). Keep only transcripts with the order "yes_first". Which rule now solves the label?
# *Hint: filter the table before `gates.score_shortcuts`.*
#
# ```{dropdown} Solution
# `some = of_label["constructed"].query("order == 'yes_first' and task == 'addition'")`, then
# `gates.score_shortcuts(model, some, some["contradicts"].astype(bool).tolist(), seed=0)`. In "46, not 47" the candidate named
# last is the one that is not meant, so "last mention" has an AUROC of 1, while n-grams still see little. A bag of words
# near one half certifies nothing.
# ```
#
# **2. Plant a confound** (10 minutes). Can the audit be fooled by a label that no column holds? *Hint: `number` is each
# question's place in its task; a label can be made of it.*
#
# ```{dropdown} Solution
# `rows = audited[audited["label"] == "causal_given"].dropna(axis=1, how="all")`, then
# `audit(model, rows, (rows["number"] % 3 == 0).tolist(), seed=0).refused_tasks`. Every task with enough rows is refused by
# "place in the task, modulo 3", though no column holds the label.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`lanham2023measuring`, {cite:t}`turpin2023language`, {cite:t}`chen2025reasoning` and {cite:t}`zheng2024large`, in
# full in the [bibliography](../../reference/bibliography).
