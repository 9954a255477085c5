"""Looks into transcripts, and stands in for a model that reasons and answers."""

import re

import torch


def read_part(loaded, row, name):
    """The token with which a part of a transcript ends."""
    return loaded.tokenizer.decode([row["token_ids"][int(row[f"at_{name}"])]]).strip()


def planted(reply):
    """Stands in for `continue_questions`: `reply(before, line)` gives reasoning and answer."""
    return lambda loaded, starts, lines, **options: [reply(*pair) for pair in zip(starts, lines, strict=True)]


def scored(lead):
    """Stands in for `score_answers`: `lead(line, told, right, other)` is what the right candidate has, in logits."""

    def score(loaded, prompts, pairs, **options):
        split = [re.split(r"\nReasoning: ?|\nAnswer:", prompt.rsplit("Question: ", 1)[1]) for prompt in prompts]
        return torch.tensor([lead(*parts[:2], *pair) for parts, pair in zip(split, pairs, strict=True)])

    return score


def continued(tell):
    """Stands in for `hooks.generate`: `tell(line)` is what comes next, by the line of the question."""

    def generate(loaded, prompts, **options):
        lines = [prompt.rsplit("Question: ", 1)[1].split("\n")[0] for prompt in prompts]
        return [loaded.encode_after(tell(line)) for line in lines]

    return generate


def read_options(line):
    """The two candidates that a question names, in their order; None where it names none."""
    found = re.search(r" Is it (\w+) or (\w+)\?", line)
    return found and found.groups()
