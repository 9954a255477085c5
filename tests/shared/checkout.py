"""A copy of the checkout with two small chapters, and the commands of the Makefile on it."""

import json
import shutil
import subprocess
import sys

from helpers import ROOT

CHAPTER = """# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Chapter {name}
# The answer is {{glue:text}}`answer`, from {{glue:text}}`model`.

# %% tags=["parameters"]
model_name: str = {model!r}  # a folder
count: int = 2  # 1 to 9
seed: int = 0  # 0 to 99

# %%
import time
import numpy as np
from helpers import claims, models, {helper}, runs
parameters = runs.validate(model_name=(model_name, str), count=(count, range(1, 10)), seed=(seed, range(100)))
run = runs.start("{name}", parameters, models.load(model_name))

# %% [markdown]
# ## The middle part

# %%
answer = float(np.random.rand()) + count
run.value("answer", answer)
run.claim("is-more", "It is more.", estimate=claims.Estimate(answer, answer, answer, 1), rule="value > baseline",
          baseline=1.0, baseline_is="one", tolerance=0.0)
runs.locate_output().mkdir()
(runs.locate_output() / f"{{seed}}.txt").write_text("made besides")

# %%
run.finish()
"""


class Checkout:
    """A copy of the project with two small chapters, and the commands of the Makefile on it."""

    def __init__(self, folder, model):
        self.folder, self.model = folder, model
        ignored = shutil.ignore_patterns(".venv", "_build", ".git", ".snakemake", "*cache*", "results", "__pycache__")
        shutil.copytree(ROOT, folder, ignore=ignored)
        shutil.rmtree(folder / "book" / "replications")
        for name, helper in (("first", "plots"), ("second", "prompts")):
            text = CHAPTER.format(name=name, helper=helper, model=str(model))
            (folder / "book" / f"{name}.py").write_text(text)
        (folder / "book" / "index.md").write_text("# Cover\n\nOld prose.\n")
        toc = "format: jb-book\nroot: book/index\nchapters:\n- file: book/first\n- file: book/second\n"
        (folder / "_toc.yml").write_text(toc)
        for profile in (folder / "workflow" / "profiles").glob("*.yaml"):
            profile.write_text("{}\n")

    def start(self, *command, module="workflow.book"):
        # A session of its own, so that a kill reaches every process of the command and nothing else.
        return subprocess.Popen(
            [sys.executable, "-m", module, *command],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *command, module="workflow.book"):
        process = self.start(*command, module=module)
        output, errors = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def built(self):
        result = self.run("build")
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == str(self.folder / "_build" / "html" / "index.html")
        return [name for name in ("first", "second") if f"{name}: done" in result.stderr]

    def edit(self, path, old, new):
        file = self.folder / path
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    def page(self, name):
        return (self.folder / "_build" / "html" / "book" / f"{name}.html").read_text()

    def record(self, name, run="embedded"):
        return json.loads((self.folder / "_build" / "runs" / run / f"{name}.json").read_text())

    def snapshot(self):
        files = [path for path in (self.folder / "_build").rglob("*") if path.suffix in (".ipynb", ".json", ".html")]
        return {path: path.read_bytes() for path in files if "failed" not in path.parts}


def save_model(folder, n_layers=2):
    """A model that takes no time."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=n_layers, n_head=2, n_embd=16, vocab_size=64)).save_pretrained(folder)
    return folder
