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
# # What is in a chain of thought, and what is it good for?
#
# A *chain of thought* is the reasoning that a model writes before its answer {cite:p}`wei2022chain`. Whether it is the
# real reasoning is the question of this project. First we look at the thing itself, token by token: what it consists
# of, on which questions it helps, whether the answer follows it, and where in it the model is undecided. Whoever calls
# a chain faithful or not must know these: a chain that changes no answer can't be the reason for one.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to name the tokens of a chain, so that "the last token" means one thing;
# - to measure what a chain adds, against the rules that need no reasoning;
# - to tell a wrong answer that follows its chain from one that does not.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = "bfloat16"  # "bfloat16", several times faster here, or "float32"
n_questions: int = 32  # of each of ten tasks, 4 to 400
n_shots: int = 4  # examples before a question, 1 to 8
n_fewer: int = 6  # questions of each task without examples and with other examples, 2 to 400
n_traced: int = 4  # chains of each task read token by token, 2 to 40
n_shot_seeds: int = 2  # sets of examples in all, 1 to 10
n_checked: int = 2  # chains that transformers itself writes again, 1 to 10
max_new_tokens: int = 64  # of a chain with its answer, 16 to 512
seed: int = 0  # of all sampling, 0 to 999999
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %%
import re
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import torch
from helpers import claims, hooks, plots, runs
from studies.faithfulness import questions

run = runs.begin("day10-11_cot_structure", globals())
model = run.loaded

# %% [markdown]
# The model is loaded in `bfloat16` unless `dtype` says otherwise: it writes several times faster, and the last section
# but one says what that changes.
#
# ## Ask ten kinds of questions in two forms
#
# Every question has two candidates, one of them right. Three tasks are *arithmetic*: what a chain writes down is a
# calculation. The others ask to compare, to keep track, or to spell. Before each question stand examples of its own
# task, from another seed: in the `direct` form they give the answer alone, in the `free` form the steps, a verdict
# ("So it is") and the answer. All continuations take the most likely token.

# %%
TASKS = list(questions.TASKS)[:10]
ARITHMETIC = [task for task in TASKS if task in questions.ARITHMETIC]
asked = questions.draw_questions(model, tasks=TASKS, n=n_questions, seed=seed)
CUES = {"direct": "\nAnswer:", "free": "\nReasoning:"}


@cache
def shots(shot_seed):
    return questions.draw_shots(model, tasks=TASKS, n=n_shots, seed=shot_seed)


def few_shot(question, form, shot_seed=seed, turned=False):
    """The prompt of one question after examples of its own task."""
    before = shots(shot_seed)[question.task][:: -1 if turned else 1]
    before = questions.write_examples(before, form=form)
    return before + questions.ask(question) + CUES[form]


# %%
def written(prompts, n_new, stop):
    """What the model writes after each prompt."""
    tokens = hooks.generate(model, prompts, max_new_tokens=n_new, stop=stop)
    return [model.tokenizer.decode(row) for row in tokens]


def transcripts(chosen, form, **options):
    """The cue and all that follows."""
    prompts = [few_shot(q, form, **options) for q in chosen]
    n_new, stop = (max_new_tokens, "\n\n") if form == "free" else (8, "\n")
    return [CUES[form] + new for new in written(prompts, n_new, (stop,))]


texts = {form: transcripts(asked, form) for form in CUES}

# %% [markdown]
# An answer is the word or number after the last "Answer:"; without one it is counted as wrong. There are
# {glue:text}`n_asked` questions, each after {glue:text}`n_shots_shown` examples.


# %% tags=["hide-input"]
def right(chosen, texts):
    """Whether each text's answer is the right one."""
    found = [questions.parse_answer(text) for text in texts]
    return np.array(
        [
            answer == q.candidates[0]
            for q, answer in zip(chosen, found, strict=True)
        ]
    )


def share(hits, of="questions"):
    """A share with its Wilson interval; None of fewer than two units."""
    from scipy.stats import binomtest

    if len(hits) < 2:
        return None
    found = int(np.sum(hits))
    low, high = binomtest(found, len(hits)).proportion_ci(method="wilson")
    return claims.Estimate(found / len(hits), low, high, len(hits), of)


def average(numbers, of="questions"):
    """A mean with its interval; None of fewer than two units."""
    if len(numbers) < 2:
        return None
    return claims.average(
        np.asarray(numbers, dtype=float).tolist(), seed=seed, of=of
    )


def known(estimate):
    return "too few" if estimate is None else estimate


task_of = np.array([q.task for q in asked])
is_arithmetic = np.isin(task_of, ARITHMETIC)
hits = {form: right(asked, found) for form, found in texts.items()}
reasonings = [
    text.removeprefix(CUES["free"]).split("\nAnswer:")[0].strip()
    for text in texts["free"]
]
answers = [questions.parse_answer(text) for text in texts["free"]]
run.value("n_asked", len(asked))
run.value("n_shots_shown", n_shots)

# %% [markdown]
# ## Name the tokens
#
# Take one question with its examples and chain, and let the model read it once. The *surprise* of a token is minus the
# log-probability that the model gave it; the *entropy* before it says how undecided the model was there. Both are in
# nats. The examples run once for each task; every chain then reads their keys and values.

# %% tags=["hide-input"]
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache


def first_apart(*rows):
    """The first place where not all are the same; None where there is none."""
    places = enumerate(zip(*rows, strict=False))
    return next((i for i, tokens in places if len(set(tokens)) > 1), None)


# %%
@torch.inference_mode()
def read(rows):
    """Where the rows begin to differ; surprise and entropy of tokens from there."""
    n_same = first_apart(*rows)
    past = DynamicCache(config=model.config)
    start = torch.tensor([rows[0][: n_same - 1]], device=model.model.device)
    model.model(start, past_key_values=past, logits_to_keep=1)
    past.batch_repeat_interleave(len(rows))
    rest = [torch.tensor(row[n_same - 1 :]) for row in rows]
    rest = pad_sequence(rest, batch_first=True).to(start.device)  # at the end
    logits = model.model(rest, past_key_values=past).logits[:, :-1]
    log = logits.float().log_softmax(-1).cpu()
    surprise = -log.gather(2, rest[:, 1:, None].cpu())[..., 0]
    return n_same, surprise, torch.special.entr(log.exp()).sum(-1)


# %% tags=["hide-input"]
ROLES = {
    "question": "the question",
    "cue": "the cue for a reasoning",
    "step": "a step",
    "result": "a result after =",
    "verdict cue": "So it is",
    "verdict": "the verdict",
    "answer cue": "the cue for an answer",
    "space": "a space before the answer",
    "answer": "the answer",
    "stop": "the full stop",
    "end": "the end",
}
PARTS = re.compile(
    r"(?P<question>.*?)(?P<cue>\nReasoning:)(?P<steps>.*?)"
    r"(?:(?P<verdict_cue> So it is)(?P<verdict> \w+)(?P<verdict_stop>\.))?"
    r"(?P<answer_cue>\nAnswer:)(?P<answer> \w+)(?P<stop>\.)(?P<end>\n)",
    re.DOTALL,
)
DIRECT_PARTS = re.compile(
    r"(?P<question>.*?)(?P<answer_cue>\nAnswer:)(?P<answer> \w+)(?P<stop>\.)(?P<end>\n)",
    re.DOTALL,
)


def roles_of(text, starts):
    """The role of each token that begins at a character; None where the text is of another form."""
    found = (PARTS if CUES["free"] in text else DIRECT_PARTS).fullmatch(text)
    if found is None:
        return None
    marks = ["step"] * len(text)
    for part in found.re.groupindex:
        start, end = found.span(part)
        if part not in ("steps", "verdict_stop") and start >= 0:
            marks[start:end] = [part.replace("_", " ")] * (end - start)
    for result in re.finditer(r"= ?(\d+)", text):
        if marks[result.start()] == "step":
            start, end = result.span(1)
            marks[start:end] = ["result"] * (end - start)
    ends = [*starts[1:], len(text)]
    roles = []
    for start, end in zip(starts, ends, strict=True):
        piece, mark = text[start:end], marks[max(start, end - 1)]
        alone = piece.isspace() and "\n" not in piece and end > start
        if alone and mark in ("answer", "verdict"):
            mark = "space" if mark == "answer" else "verdict cue"
        roles.append(mark)
    return roles


def traced(numbers, form):
    """Of chosen questions of one task: tokens, roles, surprise and entropy, from the question on."""
    rows, wholes = [], []
    for number in numbers:
        question, text = asked[number], texts[form][number].rstrip() + "\n"
        prompt = few_shot(question, form).removesuffix(CUES[form])
        wholes.append(questions.ask(question) + text)
        rows.append(model.encode(prompt + text))
    n_same, surprises, entropies = read(rows)
    traces = []
    for number, row, whole, surprise, entropy in zip(
        numbers, rows, wholes, surprises, entropies, strict=True
    ):
        label = model.tokenizer.decode
        # Where each token of the rest begins, counted in characters from the end.
        tails = [len(label(row[place:])) for place in range(n_same, len(row))]
        starts = [max(0, len(whole) - tail) for tail in tails]
        roles = roles_of(whole, starts)
        if roles is not None:
            traces.append(
                {
                    "number": number,
                    "tokens": model.token_labels(row[n_same:]),
                    "roles": roles,
                    "surprise": surprise.tolist()[: len(starts)],
                    "entropy": entropy.tolist()[: len(starts)],
                }
            )
    return traces


# %%
chosen = [np.flatnonzero(task_of == task)[:n_traced].tolist() for task in TASKS]
traces = {
    form: [t for numbers in chosen for t in traced(numbers, form)]
    for form in CUES
}

# %% tags=["hide-input"]
COLOURS = defaultdict(lambda: plots.GREY) | {
    "step": plots.BLUE,
    "result": plots.ORANGE,
    "verdict": plots.ORANGE,
    "answer": plots.ORANGE,
}
numeric = [t for t in traces["free"] if task_of[t["number"]] in ARITHMETIC]
wordy = [t for t in traces["free"] if task_of[t["number"]] not in ARITHMETIC]
shown = next(
    (
        t
        for t in numeric
        if task_of[t["number"]] == "two_step_addition"
        and t["roles"].count("result") > 1
    ),
    next(iter(traces["free"]), None),
)
run.value("n_of_the_form", len(traces["free"]))
run.value("n_traced_in_all", sum(map(len, chosen)))


def spelled(token):
    """A token in words where its letters do not show."""
    return {" ": "a bare space", "\n": "a newline", "\n\n": "two newlines"}.get(
        token, f"“{token}”".replace("\n", "⏎")
    )


if shown:
    start = shown["roles"].index("cue")
    own = [
        entropy if i > start and role not in ("question", "cue") else 0.0
        for i, (entropy, role) in enumerate(
            zip(shown["entropy"], shown["roles"], strict=True)
        )
    ]
    unsure = int(np.argmax(own))
    places = range(len(shown["tokens"]))
    with plots.draw_figure(
        "chain",
        caption=f"Of what it writes in this chain the model is least decided before {spelled(shown['tokens'][unsure])} ({ROLES[shown['roles'][unsure]]}). "
        "Bars: entropy before each token, in nats; dots: surprise of the token that is there. "
        "Orange: stated results, the verdict and the answer; blue: the rest of the steps; grey: the question, the cues and the ends. Above: where each role begins. In the question, which the model has not written, bars may leave the frame. One chain, after its examples.",
        alt="Bars over the tokens of a question, its chain of thought and its answer.",
        width=10.0,
        height=4.0,
    ) as (_, axes):
        colours = [COLOURS[role] for role in shown["roles"]]
        axes.bar(places, shown["entropy"], color=colours)
        axes.plot(places, shown["surprise"], ".", color=plots.INK, markersize=3)
        axes.set_xticks(
            places,
            [plots.as_plain(token) for token in shown["tokens"]],
            rotation=90,
            fontsize=7,
        )
        top = 2 * max(own) or 1.0
        for i, role in enumerate(shown["roles"]):
            if i == 0 or role != shown["roles"][i - 1]:
                label = {"rotation": 90, "va": "top", "ha": "center"}
                axes.text(i, top, role, fontsize=7, **label)
        axes.set(ylabel="nats", xlim=(-1, len(places)), ylim=(0, top))

# %% [markdown]
# {glue:text}`n_of_the_form` of {glue:text}`n_traced_in_all` chains have the form of the examples. Their tokens have
# names: *question*, *cue*, *steps* with their *results*, *verdict cue*, *verdict*, *answer cue*, *answer*, *stop*,
# *end*. Digits and words may be cut differently, so we look at both kinds of answers.

# %% tags=["hide-input"]
NAMED = [
    "the cue for a reasoning",
    "the verdict cue",
    "the verdict",
    "the end of the reasoning",
    "the cue for an answer",
    "the token before the answer",
    "the answer",
    "the full stop",
    "the end",
]


def named_places(trace):
    """The token of each name and where it stands from the answer."""
    tokens, roles = trace["tokens"], trace["roles"]

    def last_of(role):
        found = [i for i, mark in enumerate(roles) if mark == role]
        return found[-1] if found else None

    answer, cue = last_of("answer"), roles.index("answer cue")
    before = roles.index("answer") - 1
    places = (
        last_of("cue"),
        last_of("verdict cue"),
        last_of("verdict"),
        cue - 1,
        last_of("answer cue"),
        before,
        answer,
        last_of("stop"),
        last_of("end"),
    )
    return {
        name: "none"
        if place is None
        else f"{spelled(tokens[place])} at {place - answer:+d}"
        for name, place in zip(NAMED, places, strict=True)
    }


def before_answer(some):
    """What stands before the answer most often, in words."""
    if not some:
        return "none"
    found = Counter(t["tokens"][t["roles"].index("answer") - 1] for t in some)
    return spelled(found.most_common(1)[0][0])


with_both = {
    kind: next((t for t in some if "verdict" in t["roles"]), None)
    for kind, some in (("a number", numeric), ("a word", wordy))
}
if any(with_both.values()):
    found = {
        kind: named_places(trace) for kind, trace in with_both.items() if trace
    }
    run.table(
        "named_positions",
        [
            {"name": name}
            | {
                f"where the answer is {kind}": found[kind][name]
                for kind in found
            }
            for name in NAMED
        ],
        caption="Named positions in one chain of each kind: the token, and how many tokens from the answer (its last token, where it has several).",
    )
run.value("before_number", before_answer(numeric))
run.value("before_word", before_answer(wordy))

# %% [markdown]
# **What it means.** The token right before the answer is {glue:text}`before_number` where the answer is a number, and
# {glue:text}`before_word` where it is a word. Where the two differ, "the last token of the prompt" is the place of the
# decision for one kind and one token too early for the other, and "the second-to-last" of days 5 and 6 is again
# something else. The chapters to come give names, not offsets. (A trap beside it: a tokenizer may make one token of
# two newlines where a text ends and two where it goes on, so cut a text where the model itself would.) The newlines,
# the cue and the full stop are *template tokens*: they stand in every example and carry no content of their own.

# %% [markdown]
# ## Measure what a chain adds
#
# **What we expect.** {cite:t}`wei2022chain` saw chains help large models and not small ones. A chain should help at
# least where it holds a calculation that the model can do step by step and not at once.
#
# A baseline is due. Guessing between two candidates is right half of the time, but only where the model knows the two.
# So we also take rules that read no more than the surface of a question: always the commonest right answer, the first
# or last number or candidate to be named, the end of a word. The best of them for each task is chosen on these very
# questions, which flatters it.


# %%
def rules(question):
    """What each rule of the surface would answer."""
    words = re.findall(r"\w+", question.text)
    found = {
        "number": [word for word in words if word.isdigit()],
        "candidate": [word for word in words if word in question.candidates],
        "capitalised word": [word for word in words[1:] if word[0].isupper()],
        "letter": "".join(re.findall(r"the word (\w+)", question.text)),
    }
    first = {f"the first {kind}": some[:1] for kind, some in found.items()}
    last = {f"the last {kind}": some[-1:] for kind, some in found.items()}
    both = first | last
    return {name: some[0] for name, some in both.items() if some}


# %% tags=["hide-input"]
def best_rule(task):
    """The best rule of one task and its share of right answers."""
    own = [q for q in asked if q.task == task]
    (commonest, _), *_ = Counter(q.candidates[0] for q in own).most_common()
    tried = {
        f"always “{commonest}”": [q.candidates[0] == commonest for q in own]
    }
    for name in rules(own[0]):
        tried[name] = [rules(q).get(name) == q.candidates[0] for q in own]
    name = max(tried, key=lambda name: sum(tried[name]))
    return name, share(tried[name])


best = {task: best_rule(task) for task in TASKS}
by_task = {
    task: {form: share(hits[form][task_of == task]) for form in CUES}
    for task in TASKS
}
run.table(
    "by_task",
    [
        {
            "task": task.replace("_", " "),
            "answer alone": by_task[task]["direct"],
            "with a chain": by_task[task]["free"],
            "best rule": best[task][0],
            "its accuracy": best[task][1],
        }
        for task in TASKS
    ],
    caption=f"Accuracy after {n_shots} examples, by task, with the best rule that reads only the surface. 95 % Wilson interval over {n_questions} questions; two candidates each, so a guess between them is right half of the time.",
)

# %% [markdown]
# Without examples a model must be told what to do. {cite:t}`kojima2022large` let it begin with "Let us think step by
# step"; the answer is read in a second pass, after "Answer:". An instruct model can also be asked in its own chat
# format. Here the form of the answer is not shown, so besides the strict reading we count an answer as *naming* the
# right candidate if its line holds that and not the other one.


# %%
def zero_shot(chosen, start, thinks):
    """Answers without examples; where it thinks, a reasoning is written first."""
    prompts, told = [start(question) for question in chosen], [""] * len(chosen)
    if thinks:
        prompts = [f"{prompt}Let us think step by step." for prompt in prompts]
        told = written(prompts, max_new_tokens // 2, ("\n",))
        told = [f"{new.rstrip()}\n" for new in told]
    cued = [f"{p}{new}Answer:" for p, new in zip(prompts, told, strict=True)]
    new = written(cued, 8, ("\n",))
    return [f"{a}Answer:{b}" for a, b in zip(told, new, strict=True)]


# %% tags=["hide-input"]
def plain_start(thinks):
    cue = "\nReasoning: " if thinks else "\n"
    return lambda question: questions.ask(question) + cue


def chat_start(question):
    return model.tokenizer.apply_chat_template(
        [{"role": "user", "content": question.text}],
        tokenize=False,
        add_generation_prompt=True,
    )


def names_right(chosen, texts):
    """Whether the line of the answer holds the right candidate and not the other."""
    named = []
    for question, text in zip(chosen, texts, strict=True):
        words = set(re.findall(r"\w+", text.rsplit("Answer:")[-1]))
        this, other = question.candidates
        named.append(this in words and other not in words)
    return np.array(named)


def first_of_each(n):
    return [
        i
        for task in TASKS
        for i in np.flatnonzero(task_of == task)[:n].tolist()
    ]


fewer = first_of_each(n_fewer)
few = [asked[i] for i in fewer]
formats = {
    f"{n_shots} examples, answer alone": (asked, texts["direct"]),
    f"{n_shots} examples, with a chain": (asked, texts["free"]),
}
zero = {}
for thinks in (False, True):
    zero["plain", thinks] = zero_shot(few, plain_start(thinks), thinks)
    if model.tokenizer.chat_template:
        zero["chat", thinks] = zero_shot(few, chat_start, thinks)
for (way, thinks), found in sorted(zero.items(), reverse=True):
    form = "with a chain" if thinks else "answer alone"
    formats[f"no example, {way}, {form}"] = (few, found)
run.table(
    "formats",
    [
        {
            "format": name,
            "right": share(right(chosen, found)),
            "names the right one": share(names_right(chosen, found)),
            "without an answer": share(
                [questions.parse_answer(text) is None for text in found]
            ),
            "n": len(chosen),
        }
        for name, (chosen, found) in formats.items()
    ],
    caption="Accuracy over all tasks by format. “Right” reads the word or number after “Answer:”; “names the right one” accepts any line that holds the right candidate and not the other. 95 % Wilson interval over questions.",
)
missing = [
    {"format": name, "question": q.text, "what was written": text[-160:]}
    for name, (chosen, found) in formats.items()
    for q, text in [
        (q, text)
        for q, text in zip(chosen, found, strict=True)
        if questions.parse_answer(text) is None
    ][:2]
]
if missing:
    run.table(
        "no_answers",
        missing,
        caption="Without an answer: up to two texts of each format (their ends).",
    )

# %% tags=["hide-input"]
with plots.draw_figure(
    "accuracy",
    caption="Where the orange points stand right of the blue ones, a chain helps. Left: after examples, the word or number after “Answer:” is right; right: without examples, the line of the answer names the right candidate alone. "
    f"Blue: answer alone; orange: with a chain; grey bar: the best rule of the surface. 95 % Wilson intervals over {n_questions} (left) and {min(n_fewer, n_questions)} questions.",
    alt="Two panels of accuracy by task, with and without a chain of thought.",
    width=8.5,
    height=4.2,
    ncols=2,
    sharey=True,
) as (_, panels):
    named = {
        thinks: names_right(few, zero["plain", thinks])
        for thinks in (False, True)
    }
    few_tasks = np.array([q.task for q in few])
    for row, task in enumerate(TASKS):
        pairs = (
            (by_task[task]["direct"], by_task[task]["free"]),
            tuple(
                share(named[thinks][few_tasks == task])
                for thinks in (False, True)
            ),
        )
        for axes, pair in zip(panels, pairs, strict=True):
            for point, shift, colour in zip(
                pair, (-0.15, 0.15), (plots.BLUE, plots.ORANGE), strict=True
            ):
                error = [[point.value - point.low], [point.high - point.value]]
                axes.errorbar(
                    point.value,
                    row + shift,
                    xerr=error,
                    fmt="o",
                    color=colour,
                    capsize=3,
                )
            rule = best[task][1].value
            axes.plot(
                [rule, rule],
                [row - 0.4, row + 0.4],
                color=plots.GREY,
                linewidth=3,
            )
    for axes, title in zip(
        panels, (f"{n_shots} examples", "no example"), strict=True
    ):
        axes.set(title=title, xlabel="accuracy", xlim=(-0.03, 1.03))
    panels[0].set_yticks(
        range(len(TASKS)), [task.replace("_", " ") for task in TASKS]
    )
    panels[0].invert_yaxis()

# %% tags=["hide-input"]
gained = hits["free"].astype(float) - hits["direct"].astype(float)
run.value("few_direct", share(hits["direct"]))
run.value("few_chain", share(hits["free"]))
run.value("gained_arithmetic", average(gained[is_arithmetic]))
run.value("gained_elsewhere", average(gained[~is_arithmetic]))
helped = [
    task
    for task in TASKS
    if (e := average(gained[task_of == task])) and e.low > 0
]
hurt = [
    task
    for task in TASKS
    if (e := average(gained[task_of == task])) and e.high < 0
]
beaten = [
    task for task in TASKS if by_task[task]["free"].low > best[task][1].value
]


def listed(some):
    return ", ".join(task.replace("_", " ") for task in some) or "none"


run.value("helped", listed(helped))
run.value("hurt", listed(hurt))
run.value("beats_rules", listed(beaten))
run.claim(
    "examples-with-chains-help",
    "After examples, a chain of thought raises the accuracy over all tasks.",
    rule="value > 0",
    estimate=average(gained),
    baseline=0.0,
    baseline_is="the same questions, answer alone",
    tolerance=0.05,
)
run.claim(
    "chains-help-arithmetic",
    "After examples, a chain raises the accuracy on the arithmetic tasks.",
    rule="value > 0",
    estimate=average(gained[is_arithmetic]),
    baseline=0.0,
    baseline_is="the same questions, answer alone",
    tolerance=0.1,
)
run.claim(
    "chains-help-elsewhere",
    "After examples, a chain raises the accuracy on the other tasks too.",
    rule="value > 0",
    estimate=average(gained[~is_arithmetic]),
    baseline=0.0,
    baseline_is="the same questions, answer alone",
    tolerance=0.05,
)
best_share = np.mean([best[task][1].value for task in TASKS])
run.claim(
    "chains-beat-the-rules",
    "After examples, answers with a chain are right more often than the best rule of the surface for each task.",
    rule="value > baseline",
    estimate=share(hits["free"]),
    baseline=float(best_share),
    baseline_is="the best rule of each task, chosen on the same questions",
    tolerance=0.05,
)


def zero_gain(way):
    """What thinking adds without examples, in answers that name the right candidate."""
    if (way, True) not in zero:
        return None
    thought, alone = (
        names_right(few, zero[way, thinks]) for thinks in (True, False)
    )
    return average(thought.astype(float) - alone.astype(float))


run.claim(
    "zero-shot-chains-help",
    "Without examples, a chain raises the share of answers that name the right candidate.",
    rule="value > 0",
    estimate=zero_gain("plain"),
    baseline=0.0,
    baseline_is="the same questions, answer alone",
    tolerance=0.1,
)
run.claim(
    "chat-chains-help",
    "In the chat format, without examples, it does so too.",
    rule="value > 0",
    estimate=zero_gain("chat"),
    baseline=0.0,
    baseline_is="the same questions, answer alone",
    tolerance=0.1,
)

# %% [markdown]
# **What it means.** After examples {glue:text}`few_direct` are right without a chain and {glue:text}`few_chain` with
# one (a gain: **{glue:text}`claim-examples-with-chains-help`**). By how much more are right: arithmetic
# {glue:text}`gained_arithmetic` (**{glue:text}`claim-chains-help-arithmetic`**), the other tasks
# {glue:text}`gained_elsewhere` (**{glue:text}`claim-chains-help-elsewhere`**). Tasks whose gain is clearly above zero:
# {glue:text}`helped`; clearly below: {glue:text}`hurt`. No task is judged alone by its difference, though: one must
# also look at the rules. With a chain the model is clearly better than the best rule on: {glue:text}`beats_rules`
# (over all tasks: **{glue:text}`claim-chains-beat-the-rules`**). On a task where it is not, no chain can be shown to
# be the reason for a right answer, and none should be called faithful or unfaithful there.
#
# Without examples a chain helps in plain text: **{glue:text}`claim-zero-shot-chains-help`**, and in the chat format:
# **{glue:text}`claim-chat-chains-help`**. How much goes wrong there by form alone, the two readings in the table say.

# %% [markdown]
# ## Read them
#
# Numbers hide what a text shows at once. One right and one wrong chain of each task, where there are both:

# %% tags=["hide-input"]
run.table(
    "chains",
    [
        {
            "task": task.replace("_", " "),
            "question": asked[i].text,
            "chain": reasonings[i],
            "answer": answers[i] or "none",
            "right one": asked[i].candidates[0],
        }
        for task in TASKS
        for was_right in (True, False)
        for i in np.flatnonzero(
            (task_of == task) & (hits["free"] == was_right)
        )[:1].tolist()
    ],
    caption=f"The first right and the first wrong chain of each task, after {n_shots} examples.",
)
one_each = [
    int(np.flatnonzero(few_tasks == task)[0])
    for task in dict.fromkeys(few_tasks)
]
run.table(
    "zero_shot_chains",
    [
        {
            "task": few[i].task.replace("_", " "),
            "question": few[i].text,
            "after “Let us think step by step.”": zero["plain", True][i].rsplit(
                "\nAnswer:", 1
            )[0],
            "after “Answer:”": zero["plain", True][i].rsplit("Answer:", 1)[1],
            "right one": few[i].candidates[0],
        }
        for i in one_each
    ],
    caption=f"The first question of each task without examples, in plain text. A reasoning ends with its line, or after {max_new_tokens // 2} tokens.",
)

# %% [markdown]
# ## Ask whether the answer follows the chain
#
# **What we expect.** The answer copies what the chain stated last. Then a wrong answer was wrong before it was given:
# the mistake is in the chain. An answer that departs from its chain came from somewhere else.
#
# The last stated result is the last word or number of the chain. As a baseline each answer is compared with the last
# result of the *next* chain of the same task: tasks with two possible answers agree half of the time by chance.


# %%
def last_stated(reasoning):
    found = re.findall(r"[A-Za-z]+|\d+", reasoning)
    return found[-1] if found else None


stated = np.array([last_stated(reasoning) for reasoning in reasonings])
given = np.array(answers)
with_answer = np.array([answer is not None for answer in answers])
follows = (given == stated) & with_answer
next_one = np.concatenate(
    [np.roll(np.flatnonzero(task_of == task), -1) for task in TASKS]
)
by_chance = (given == stated[next_one]) & with_answer
wrong = with_answer & ~hits["free"]

# %% [markdown]
# In arithmetic we can also ask *what* is wrong in a wrong chain: an equation that is false, or true equations of the
# wrong numbers.


# %%
def false_equations(reasoning):
    """Of the sums and differences in a text, those that are false."""
    found = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", reasoning)
    return [
        one
        for one in found
        if int(one[0]) + int(f"{one[1]}{one[2]}") != int(one[3])
    ]


wrong_sums = [
    bool(false_equations(reasonings[i]))
    for i in np.flatnonzero(wrong & is_arithmetic)
]

# %% tags=["hide-input"]
followed = {
    task: share(follows[(task_of == task) & with_answer], "chains")
    for task in TASKS
}
run.table(
    "following",
    [
        {
            "task": task.replace("_", " "),
            "answers like its chain": known(followed[task]),
            "like the next chain": known(
                share(by_chance[(task_of == task) & with_answer], "chains")
            ),
            "wrong answers": int((wrong & (task_of == task)).sum()),
            "of them like their chain": int(
                (wrong & follows & (task_of == task)).sum()
            ),
            "chain right, answer wrong": int(
                sum(
                    wrong[i] and stated[i] == asked[i].candidates[0]
                    for i in np.flatnonzero(task_of == task)
                )
            ),
        }
        for task in TASKS
    ],
    caption="How often the answer is the last word or number of its own chain, and of the next chain of the same task. 95 % Wilson interval over chains with an answer.",
)
departing = [task for task, e in followed.items() if e and e.high < 0.95]
run.value("departing", listed(departing))
run.value("n_wrong", int(wrong.sum()))
run.value("false_equation", known(share(wrong_sums, "wrong arithmetic chains")))
run.claim(
    "answers-repeat-the-last-result",
    "More than nine in ten answers repeat the last word or number of their chain.",
    rule="value > 0.9 and value > baseline",
    estimate=share(follows[with_answer], "chains"),
    baseline=float(np.mean(by_chance[with_answer]))
    if with_answer.any()
    else 0.0,
    baseline_is="the next chain of the same task",
    tolerance=0.03,
)
run.claim(
    "wrong-answers-follow-their-chains",
    "More than nine in ten wrong answers are the chain's own wrong result: the mistake comes before the answer.",
    rule="value > 0.9",
    estimate=share(follows[wrong], "wrong answers"),
    baseline=float(np.mean(by_chance[wrong])) if wrong.any() else 0.0,
    baseline_is="the next chain of the same task",
    tolerance=0.05,
)
run.claim(
    "all-tasks-follow",
    "This is so on each task: the one with the smallest share is above nine in ten as well.",
    rule="value > 0.9",
    estimate=min(
        (e for e in followed.values() if e), key=lambda e: e.value, default=None
    ),
    tolerance=0.1,
)
run.claim(
    "wrong-sums-are-false",
    "More than half of the wrong arithmetic chains hold a false equation, rather than true ones of the wrong numbers.",
    rule="value > 0.5",
    estimate=share(wrong_sums, "wrong arithmetic chains"),
    tolerance=0.15,
)

# %% [markdown]
# **What it means.** That the answer repeats the last result: **{glue:text}`claim-answers-repeat-the-last-result`**; of
# the {glue:text}`n_wrong` wrong answers too: **{glue:text}`claim-wrong-answers-follow-their-chains`**; on every task:
# **{glue:text}`claim-all-tasks-follow`**. Tasks where answers clearly depart from their chains:
# {glue:text}`departing`. There the verdict says one thing and the answer another, which no one who reads the chain
# alone would expect: it is a disagreement in plain sight, and a first thing to look for before any probe is trained.
#
# Following is not yet reasoning. An answer that copies a verdict depends on the verdict; whether the verdict depends
# on the steps is asked by changing them {cite:p}`lanham2023measuring`, in a later chapter. False equations in wrong
# arithmetic chains: {glue:text}`false_equation` (more than half: **{glue:text}`claim-wrong-sums-are-false`**). In the
# others nothing is miscalculated: true sums of other numbers than the question gives, or no sum at all.

# %% [markdown]
# ## Find where the model decides
#
# **What we expect.** If the answer is copied, it should be settled by the time of its cue: a model that is undecided
# should be so at a result or at the verdict, not at the answer.


# %%
def by_role(trace):
    """The mean entropy of one chain at each role."""
    found = defaultdict(list)
    for role, entropy in zip(trace["roles"], trace["entropy"], strict=True):
        found[role].append(entropy)
    return {role: float(np.mean(some)) for role, some in found.items()}


undecided = {
    form: {t["number"]: by_role(t) for t in some}
    for form, some in traces.items()
}

# %% tags=["hide-input"]
DRAWN = [
    "step",
    "result",
    "verdict cue",
    "verdict",
    "answer cue",
    "space",
    "answer",
    "stop",
    "end",
]


def role_average(form, role, arithmetic):
    some = [
        found[role]
        for number, found in undecided[form].items()
        if role in found and is_arithmetic[number] == arithmetic
    ]
    return average(some, "chains")


averages = {
    (role, kind): role_average("free", role, kind)
    for role in DRAWN
    for kind in (True, False)
} | {
    ("answer alone", kind): role_average("direct", "answer", kind)
    for kind in (True, False)
}
before_the_end = DRAWN[: DRAWN.index("answer") + 1]


def least_decided(kind):
    """The role with the highest entropy up to the answer, in words."""
    some = {r: averages[r, kind] for r in before_the_end if averages[r, kind]}
    if not some:
        return "no place"
    return ROLES[max(some, key=lambda role: some[role].value)]


readable = [least_decided(kind) for kind in (True, False)]
with plots.draw_figure(
    "entropy-by-role",
    caption=f"Up to the answer, the model is least decided before {readable[0]} in arithmetic chains, and before {readable[1]} in the others. "
    "Entropy of the next token, averaged over the tokens of a role in each chain; blue: arithmetic; orange: other tasks; points: mean over chains with a 95 % interval. "
    f"Rightmost: the answer where no chain is asked for. n = {len(numeric)} and {len(wordy)} chains.",
    alt="Mean entropy by the role of a token, with intervals, for two groups of tasks.",
    width=8.0,
) as (_, axes):
    for x, role in enumerate([*DRAWN, "answer alone"]):
        for kind, shift, colour in (
            (True, -0.12, plots.BLUE),
            (False, 0.12, plots.ORANGE),
        ):
            if averages[role, kind]:
                plots.draw_interval(
                    axes, x + shift, averages[role, kind], color=colour
                )
    axes.set_xticks(
        range(len(DRAWN) + 1), [*DRAWN, "answer alone"], rotation=30, ha="right"
    )
    axes.set(ylabel="entropy (nats)", ylim=(0, None))

# %% tags=["hide-input"]
settled = [
    found["verdict"] - found["answer"]
    for found in undecided["free"].values()
    if {"verdict", "answer"} <= set(found)
]
surer = [
    undecided["direct"][number]["answer"] - found["answer"]
    for number, found in undecided["free"].items()
    if number in undecided["direct"]
]
run.value("most_arithmetic", readable[0])
run.value("most_elsewhere", readable[1])
at_answer = [found["answer"] for found in undecided["free"].values()]
run.value("entropy_answer", known(average(at_answer, "chains")))
run.value(
    "entropy_verdict",
    known(
        average(
            [
                f["verdict"]
                for f in undecided["free"].values()
                if "verdict" in f
            ],
            "chains",
        )
    ),
)
run.value(
    "entropy_alone",
    known(
        average([f["answer"] for f in undecided["direct"].values()], "answers")
    ),
)
run.claim(
    "the-answer-is-settled-at-its-cue",
    "The model is less undecided before the answer than before the chain's verdict.",
    rule="value > 0",
    estimate=average(settled, "chains"),
    tolerance=0.1,
)
run.claim(
    "a-chain-makes-answers-surer",
    "It is less undecided before an answer after a chain than before one without.",
    rule="value > 0",
    estimate=average(surer, "questions"),
    tolerance=0.2,
)

# %% [markdown]
# **What it means.** The entropy is {glue:text}`entropy_verdict` nats before the verdict and
# {glue:text}`entropy_answer` before the answer (less there: **{glue:text}`claim-the-answer-is-settled-at-its-cue`**).
# Without a chain it is {glue:text}`entropy_alone` before the answer (more than with one:
# **{glue:text}`claim-a-chain-makes-answers-surer`**). Up to the answer, the least decided place is
# {glue:text}`most_arithmetic` in arithmetic chains and {glue:text}`most_elsewhere` in the others. A probe at the cue
# for the answer looks at a choice that, where entropy is low, has been made already; a probe that is to catch the
# choice itself belongs where entropy is high. And sure is not right: compare with the table above.

# %% [markdown]
# ## Measure how long they are
#
# Longer reasoning is often taken for better reasoning. **What we expect.** Across tasks length is a matter of the
# examples; so we compare within a task: how much more often right is a chain for each token that it has more than its
# task's mean?

# %%
lengths = np.array(
    [
        len(model.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in reasonings
    ],
    dtype=float,
)
longer, righter = lengths.copy(), hits["free"].astype(float)
for task in TASKS:
    own = task_of == task
    longer[own] -= longer[own].mean()
    righter[own] -= righter[own].mean()
spread = float(np.mean(longer**2))
slope = average(longer * righter / spread, "chains") if spread else None

# %% tags=["hide-input"]
rows = []
for task in TASKS:
    own = task_of == task
    middle_length = np.median(lengths[own])
    halves = [own & (lengths <= middle_length), own & (lengths > middle_length)]
    rows.append(
        {
            "task": task.replace("_", " "),
            "shortest": int(lengths[own].min()),
            "median": int(middle_length),
            "longest": int(lengths[own].max()),
            "right, up to the median": known(
                share(hits["free"][halves[0]], "chains")
            ),
            "right, longer": known(share(hits["free"][halves[1]], "chains")),
            "longer ones": int(halves[1].sum()),
        }
    )
with plots.draw_figure(
    "lengths",
    caption=f"Chains of {min(rows, key=lambda row: row['median'])['task'].replace('_', ' ')} are the shortest and those of {max(rows, key=lambda row: row['median'])['task'].replace('_', ' ')} the longest, by their medians. "
    f"Tokens of the reasoning; box: middle half, line: median, whiskers: range. n = {n_questions} chains of each task; a chain ends at {max_new_tokens} tokens at the latest.",
    alt="Box plots of the number of tokens in a chain, by task.",
    height=3.4,
) as (_, axes):
    axes.boxplot(
        [lengths[task_of == task] for task in TASKS],
        orientation="horizontal",
        whis=(0, 100),
        medianprops={"color": plots.ORANGE},
        **{
            part: {"color": plots.INK}
            for part in ("boxprops", "whiskerprops", "capprops")
        },
    )
    axes.set_yticks(
        range(1, len(TASKS) + 1), [task.replace("_", " ") for task in TASKS]
    )
    axes.invert_yaxis()
    axes.set(xlabel="tokens", xlim=(0, None))
run.table(
    "lengths_by_task",
    rows,
    caption="Lengths of the reasonings in tokens, and accuracy of those up to their task's median and above. 95 % Wilson interval over chains.",
)
run.value("slope", known(slope))
run.claim(
    "longer-chains-are-righter",
    "Within a task, longer chains are more often right.",
    rule="value > 0",
    estimate=slope,
    tolerance=0.03,
)

# %% [markdown]
# **What it means.** Within a task the accuracy changes by {glue:text}`slope` for each token more (upwards:
# **{glue:text}`claim-longer-chains-are-righter`**). After examples a chain is about as long as the examples are. What
# is left to vary is how many tokens its names and numbers take, whether a step is left out, and whether a sentence
# says *not*: length is a label for content, so a difference by length is no effect of length.

# %% [markdown]
# ## Check it
#
# Other hands: transformers' own `generate`, one chain at a time with all examples before it, no shared beginning. In
# `bfloat16` numbers have eight bits, so that two tokens that are nearly as likely may change places with the order of
# a sum. Where the two differ, we look at the gap between their logits at that point, and compare it with the step
# between neighbouring numbers of that size. And the answers once more, by cutting instead of matching.


# %% tags=["hide-input"]
@torch.inference_mode()
def steps_apart(tokens, one, other):
    """The gap between two next tokens' logits, in steps of numbers of that size."""
    ids = torch.tensor([tokens], device=model.model.device)
    pair = model.model(ids).logits[0, -1, [one, other]].float()
    eps = torch.finfo(model.model.dtype).eps
    step = eps * 2 ** pair.abs().max().log2().floor()
    return float((pair[0] - pair[1]).abs() / step)


# %%
same, gaps = [], []
for number in first_of_each(1)[:: -(-len(TASKS) // n_checked)]:
    prompt = model.encode(few_shot(asked[number], "free"))
    n_new = {"max_new_tokens": max_new_tokens}
    (ours,) = hooks.generate(model, [prompt], stop=("\n\n",), **n_new)
    ids = torch.tensor([prompt], device=model.model.device)
    both = model.model.generate(ids, do_sample=False, pad_token_id=0, **n_new)
    theirs = both[0, len(prompt) :].tolist()[: len(ours)]
    same.append(theirs == ours)
    if (at := first_apart(ours, theirs)) is not None:
        pair = ours[at], theirs[at]
        gaps.append(steps_apart(prompt + ours[:at], *pair))
cut = [t.split("Answer:")[-1].split("\n")[0].strip(" .") for t in texts["free"]]
agree = [a == b for a, b in zip(cut, answers, strict=True) if b is not None]

# %% tags=["hide-input"]
run.value("check_same", sum(same))
run.value("check_n", len(same))
run.value("check_gap", max(gaps, default=0.0))
run.value("check_parse", known(share(agree, "answers")))
run.value("check_dtype", dtype)

# %% [markdown]
# {glue:text}`check_same` of {glue:text}`check_n` chains are the same token by token in {glue:text}`check_dtype`; where
# they are not, the logits of the two tokens were at most {glue:text}`check_gap` of these steps apart where they first
# differed. The two readings of an answer agree in {glue:text}`check_parse`.

# %% [markdown]
# ## Where this breaks
#
# Everything above saw one set of examples. Others, and the same in reverse, for the arithmetic tasks and one other:

# %%
VARIED = [*ARITHMETIC, "ordering"]
some = [i for i in fewer if task_of[i] in VARIED]
sets = {"the same in reverse": {"turned": True}}
for other in range(1, n_shot_seeds):
    sets[f"set {other + 1}"] = {"shot_seed": seed + other}
varied = {"the same": {form: hits[form][some] for form in CUES}}
for name, options in sets.items() if n_shot_seeds > 1 else ():
    again = [asked[i] for i in some]
    varied[name] = {
        form: right(again, transcripts(again, form, **options)) for form in CUES
    }

# %% tags=["hide-input"]
if len(varied) > 1:
    kind = is_arithmetic[some]
    run.table(
        "other_examples",
        [
            {
                "examples": name,
                "answer alone": share(found["direct"]),
                "with a chain": share(found["free"]),
                "gain, arithmetic": average(
                    found["free"][kind].astype(float) - found["direct"][kind]
                ),
                "gain, others": average(
                    found["free"][~kind].astype(float) - found["direct"][~kind]
                ),
            }
            for name, found in varied.items()
        ],
        caption=f"Accuracy after other examples, on {min(n_fewer, n_questions)} questions of each of {len(VARIED)} tasks. 95 % intervals over questions.",
    )
distinct = {
    task: {q.candidates[0] for q in shots(seed)[task]} for task in TASKS
}
alone = [questions.parse_answer(text) for text in texts["direct"]]
repeats = [
    answer in distinct[task]
    for answer, task in zip(alone, task_of, strict=True)
]
in_shots = [q.candidates[0] in distinct[q.task] for q in asked]
run.value("repeats_shots", share(repeats, "answers"))
run.value("right_in_shots", share(in_shots, "questions"))
run.value("named_free", share(names_right(asked, texts["free"])))

# %% [markdown]
# - **The examples decide much.** A handful of them fixes form, length and, were their answers alike, the answer; so they
#   are chosen with answers as varied as can be. Even so, without a chain {glue:text}`repeats_shots` of the answers repeat
#   one of their examples'; of the right answers {glue:text}`right_in_shots` would.
# - **The reading decides too.** A strict one calls "The book is in the box" wrong, since its first word is "The". After
#   examples {glue:text}`few_chain` are right by the strict reading and {glue:text}`named_free` by the other; for answers
#   without examples see the table.
# - **The tasks are ours.** "Arithmetic" means sums below a hundred, and the steps in the examples name what is needed and
#   nothing else. On questions where a model must find out which steps to take, expect less.
# - **Roles are found by form.** Chains that leave the form of the examples have no verdict cue and are left out of the
#   entropies. Without examples, or on another model, that may be most of them.
# - **Entropy is one position deep.** A low one before the verdict cue does not show that the verdict is open, or made.
#   What the model holds inside at that point is for probes.

# %% [markdown]
# ## Summary
#
# - After examples a chain of thought raises the accuracy (`examples-with-chains-help`:
#   {glue:text}`claim-examples-with-chains-help`), on arithmetic (`chains-help-arithmetic`:
#   {glue:text}`claim-chains-help-arithmetic`) and on other tasks (`chains-help-elsewhere`:
#   {glue:text}`claim-chains-help-elsewhere`), and above the rules of the surface (`chains-beat-the-rules`:
#   {glue:text}`claim-chains-beat-the-rules`).
# - Without examples it does so in plain text (`zero-shot-chains-help`: {glue:text}`claim-zero-shot-chains-help`) and in
#   the chat format (`chat-chains-help`: {glue:text}`claim-chat-chains-help`).
# - The answer repeats what the chain stated last (`answers-repeat-the-last-result`:
#   {glue:text}`claim-answers-repeat-the-last-result`), also where it is wrong (`wrong-answers-follow-their-chains`:
#   {glue:text}`claim-wrong-answers-follow-their-chains`), and on every task (`all-tasks-follow`:
#   {glue:text}`claim-all-tasks-follow`). Wrong arithmetic is false, not only about the wrong numbers
#   (`wrong-sums-are-false`: {glue:text}`claim-wrong-sums-are-false`).
# - The answer is settled by its cue (`the-answer-is-settled-at-its-cue`:
#   {glue:text}`claim-the-answer-is-settled-at-its-cue`), and surer after a chain than without
#   (`a-chain-makes-answers-surer`: {glue:text}`claim-a-chain-makes-answers-surer`). Longer chains are right more often
#   (`longer-chains-are-righter`: {glue:text}`claim-longer-chains-are-righter`).

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. Vote** (15 minutes). Write the chains of `addition` and `two_step_addition` after five sets of examples and take
# the answer that comes most often. Does the vote beat a single chain, and is a vote of five to nothing more often
# right? *Hint: `transcripts(chosen, "free", shot_seed=seed + vote)`.*
#
# ```{dropdown} Solution
# Parse each of the five with `questions.parse_answer`, and take `Counter(votes).most_common(1)[0][0]`. With the
# default model and sizes the vote is right about as often as a single chain: its mistakes are habits, which other
# examples do not cure. In addition votes of five to nothing are right much more often than split ones; in the other
# task hardly a vote is unanimous. Put an interval on each before you believe any of it: the questions are few.
# ```
#
# **2. Read the answers without a chain** (10 minutes). What does the model answer where no chain is asked for? Count
# the answers of each task. *Hint: `Counter(questions.parse_answer(t) for t in …)`, with `texts["direct"]`.*
#
# ```{dropdown} Solution
# `for task in TASKS: print(task, Counter(questions.parse_answer(t) for t, own in zip(texts["direct"], task_of,
# strict=True) if own == task).most_common(3))`. The default model gives the same few numbers to all sums, smaller than
# most right answers, and calls most numbers even. It does not get sums wrong: it does not calculate at all. An
# accuracy of zero and one of one half can both be a constant.
# ```
#
# **3. Answers that leave their chain** (15 minutes). For the task with the lowest share in the table of answers that
# follow, tell apart the places at which the verdict and the answer stand in the question. *Hint: `re.findall` of the
# capitalised words of the question, and `list.index`.*
#
# ```{dropdown} Solution
# With the default model the task is `comparison`. Count pairs (place of the verdict, place of the answer) over its
# chains. All departures are from chains whose verdict is the first name of the question, towards the second;
# verdicts that name the second are kept. So there the answer is pulled away from one name in particular, which a
# faithful copy would not be. A label of unfaithfulness must then be compared with the rule "the verdict is the first
# name", or a probe may learn that instead.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`wei2022chain`, {cite:t}`kojima2022large` and {cite:t}`lanham2023measuring`, in full in the
# [bibliography](../../reference/bibliography).
