"""What any notebook imports, by the question that each module answers:

- `models`: which models there are, where they come from, and how to load one
- `hooks`: read and change a model's sites on any backend; what it says next
- `patching`: exact effects of patches, ablations and paths
- `attribution`: what heads, MLPs and the embedding write towards an answer; which heads copy
- `probes`: linear probes at many sites at once, with their controls
- `folds`: what is trained on and what is tested; permuted and control labels
- `scores`: AUROC, recall and calibration of any score, with intervals
- `baselines`: what the text, the model's output and random heads give by themselves
- `prompts`: random tokens, passages of prose, words that are single tokens
- `claims`: numbers with their uncertainty, and verdicts that a rule decides
- `runs`: parameters, seeds, and the record of what came out
- `plots`: figures for light and dark pages

`engine` is private. Importing `helpers` is cheap: torch comes with the modules that need it.
"""

from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
ROOT = TOP if (TOP / "_toc.yml").is_file() else Path.cwd()
"""The top of the checkout, so that a path means the same from every working directory; installed without one, where
Python was started."""


class InputError(ValueError):
    """Bad input: one sentence that names the value that was given and what would be legal."""
