"""Looks into transcripts, and stands in for a model that reasons and answers."""


def read_part(loaded, row, name):
    """The token with which a part of a transcript ends."""
    return loaded.tokenizer.decode([row["token_ids"][int(row[f"at_{name}"])]]).strip()


def planted(reply):
    """Stands in for `continue_questions`: `reply(line)` gives reasoning and answer."""
    return lambda loaded, starts, lines, **options: [reply(line) for line in lines]
