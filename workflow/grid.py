"""Run chapters on several models with several seeds, each combination a job of its own, and gather their claims.

python -m workflow.grid PROFILE --models A B --chapters C D --seeds 0 1 2

A job that was killed is run again by the same command, and one that fails stops no other. The claims of all that are
done land in `_build/grid/claims.parquet`, a row for each model, chapter, seed and claim; with --keep the whole records
go to `results/` too, as other draws than the one on record.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from helpers import InputError, models
from workflow import book, chapters

OUTCOMES = book.BUILD / "grid"
EXECUTORS = {
    "local": (
        "--resources",
        f"mem_mb={chapters.INSTALLED_MB}",
        f"gpu={max(1, len(list(Path('/dev').glob('nvidia[0-9]*'))))}",
    ),
    "slurm": ("--workflow-profile", "workflow/profiles/slurm"),
}
"""What Snakemake is told of where jobs run: on this machine, within its memory; or on a cluster."""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    model: str
    chapter: str
    seed: int
    run: str

    @property
    def record(self) -> Path:
        return book.RUNS / chapters.name_folder(self.run) / f"{self.chapter}.json"

    def state(self) -> str:
        """Whether it is done, by what its last run said; a record alone may be that of an earlier one."""
        log = self.record.with_suffix(".log")
        if not log.exists():
            return "to do"
        text = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())[-1].strip()
        if text.startswith("error: "):
            return text.replace("error:", "failed:", 1)
        ended = re.search(rf"{re.escape(self.chapter)}: done in \d+ s$", text)
        return "done" if ended and self.record.exists() else "running, or stopped"


def list_cells(profile: str, names: list[str], some: list[str], seeds: list[int]) -> list[Cell]:
    """Every combination.

    Raises:
        InputError: no such profile, model or chapter; a chapter without a seed.
    """
    chapters.profile_parameters(profile, "")
    chosen = [chapters.find_chapter(name) for name in some] if some else chapters.all_chapters()
    for model in names:
        models.find(model)
    cells = [
        Cell(model, chapter, seed, f"{profile}+{seed}@{model}")
        for model, seed, chapter in product(dict.fromkeys(names), dict.fromkeys(seeds), dict.fromkeys(chosen))
    ]
    for cell in cells:
        if "seed" not in chapters.run_parameters(cell.run, cell.chapter):
            raise InputError(f"chapter {cell.chapter!r} has no parameter seed: legal are chapters with one")
    return cells


def gather_claims(cells: list[Cell]) -> pd.DataFrame:
    """A row for each claim of each cell that is done."""
    rows = []
    for cell in cells:
        if cell.state() != "done":
            continue
        record = json.loads(cell.record.read_text(encoding="utf-8"))
        common = {"model": cell.model, "chapter": cell.chapter, "seed": cell.seed}
        common |= {name: record["model"][name] for name in ("weights_sha256", "dtype")}
        common |= {name: record["provenance"][name] for name in ("profile", "seconds", "memory_gb")}
        for claim in record["claims"]:
            found = claim["estimate"] or {}
            estimate = {name: found.get(name) for name in ("value", "low", "high", "n")}
            told = {name: claim[name] for name in ("id", "verdict", "baseline", "rule")}
            rows.append(common | told | estimate)
    return pd.DataFrame(rows)


def run_cells(cells: list[Cell], executor: str) -> bool:
    """Let Snakemake run what is not done, and write the claims of all that is then; whether it came to its end."""
    targets = [str(cell.record.relative_to(book.ROOT).with_suffix(".ipynb")) for cell in cells]
    with book.only_one():
        try:
            options = ("--keep-going", *EXECUTORS[executor])
            book.snakemake(targets, *dict.fromkeys(cell.run for cell in cells), options=options, grid=True)
            ended = True
        except InputError:  # which jobs failed, and why, is in the table
            book.say("error: not every job came to its end: see the table, and .snakemake/log/")
            ended = False
        OUTCOMES.mkdir(parents=True, exist_ok=True)
        gather_claims(cells).to_parquet(partial := OUTCOMES / ".claims.parquet")
        partial.replace(OUTCOMES / "claims.parquet")
    return ended


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m workflow.grid")
    parser.add_argument("profile", nargs="?", default="ci")
    parser.add_argument("--models", nargs="+", default=[models.DEFAULT_MODEL])
    parser.add_argument("--chapters", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="where the jobs run")
    parser.add_argument("--keep", action="store_true", help="copy what is done to results/, as other draws")
    parser.add_argument("--status", action="store_true", help="only say what is done, running or failed")
    options = parser.parse_args(arguments)
    try:
        cells = list_cells(options.profile, options.models, options.chapters, options.seeds)
        if options.keep and options.profile != "record":
            raise InputError(f"--keep of the profile {options.profile!r}: legal is record")
        ended = options.status or run_cells(cells, options.executor)
        for cell in cells if options.keep else ():
            if cell.state() == "done":
                book.publish(cell.chapter, cell.run)
    except (InputError, OSError) as error:
        book.say(f"error: {error}")
        return 1
    states = pd.DataFrame([{"model": c.model, "chapter": c.chapter, "seed": c.seed, "state": c.state()} for c in cells])
    done = (states["state"] == "done").sum()
    print(states.to_string(index=False), f"{done} of {len(states)} done", OUTCOMES / "claims.parquet", sep="\n")
    return 0 if ended and done == len(states) else 1


if __name__ == "__main__":
    sys.exit(main())
