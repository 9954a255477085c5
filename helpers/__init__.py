"""What the chapters import: models, hooks, prompts, claims, plots and runs.

Importing `helpers` is cheap: each module imports what it needs, torch included, by itself.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The top of the checkout, so that a path means the same from every working directory."""


class InputError(ValueError):
    """Bad input: one sentence that names the value that was given and what would be legal."""
