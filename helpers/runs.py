"""What a chapter needs to be a run: checked parameters, seeds, and a record of what came out.

The record (claims, values, parameters, provenance) travels inside the executed notebook, as one
output of the cell that calls `Run.finish`; `read_record` takes it out again. So the numbers on a page
and those in the JSON file can't differ, and stock papermill needs nothing besides.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from helpers import ROOT, InputError
from helpers.claims import Claim, Estimate, Expected, as_html, as_line, as_record, decide, read_protocol, shorten

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from helpers.models import LoadedModel


class NotRun(InputError):
    """A chapter can't be run on this model; raised by `Run.leave`, and no failure of the build."""


Item = TypeVar("Item")
STARTED = time.time()
"""When the run began: a chapter imports this module first of all."""
RECORD = "book_record"
"""The key under which the metadata of an output holds the record."""
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "numpy", "scipy", "scikit-learn", "safetensors")


def locate_results(model_name: str) -> Path:
    """Where records and data sets of a model are kept with the book; only `make record` writes there.

    A registered model's folder bears its name. Other names, which may be paths, get a safe one of their own.
    """
    if re.fullmatch(r"\w[\w.-]*", model_name):
        return ROOT / "results" / model_name
    last = re.sub(r"[^\w.-]+", "-", model_name).strip(".-")[-40:]
    return ROOT / "results" / f"{last}-{hashlib.sha256(model_name.encode()).hexdigest()[:8]}"


def locate_output() -> Path:
    """Where a run leaves what it makes besides its record: beside that, or where it is run by hand below `_build`."""
    return Path(os.environ.get("BOOK_OUTPUT", ROOT / "_build" / "by-hand"))


def validate(**rules: tuple[Any, Any]) -> dict[str, Any]:
    """Check a chapter's parameters and return them as a dictionary.

    Each keyword is a parameter, with its value and what is legal: a type, a tuple of choices, or a
    `range` for counts. A parameter that papermill injected and that is not among them is an error, as
    papermill itself only warns.

    Raises:
        InputError: the first value that is not legal, with its name.

    >>> validate(seed=(1, range(0, 100)), device=("cpu", ("cpu", "cuda")))
    {'seed': 1, 'device': 'cpu'}
    """
    if unknown := sorted(_injected_names() - set(rules)):
        raise InputError(f"unknown parameter {unknown[0]!r}: legal are {', '.join(rules)}")
    for name, (value, legal) in rules.items():
        if isinstance(legal, range):
            if type(value) is not int:
                raise InputError(f"parameter {name} must be a whole number, not {value!r}")
            if value not in legal:
                raise InputError(f"parameter {name} = {value} is out of range: legal are {legal[0]} to {legal[-1]}")
        elif isinstance(legal, tuple):
            if (type(value), value) not in [(type(choice), choice) for choice in legal]:  # True is no 1 here
                raise InputError(f"parameter {name} = {value!r} is not legal: legal are {', '.join(map(repr, legal))}")
        elif type(value) is not legal:
            raise InputError(f"parameter {name} must be of type {legal.__name__}, not {value!r}")
    return {name: value for name, (value, _) in rules.items()}


def begin(name: str, namespace: dict[str, Any]) -> Run:
    """Check a chapter's parameters, load its model and start its run.

    What is legal is read from the comments of the chapter's parameters cell, which is what its readers see: "2 to 100",
    "4 to 400 by 4", or a choice of texts between quotation marks; where a comment has neither, only the type counts.

    Args:
        name: of the notebook, without folder and suffix.
        namespace: `globals()` of the notebook: the parameters, of which `model_name`, `device` and `dtype` say what is
            loaded.

    Raises:
        InputError: a parameter or model that is not legal, or no such notebook.
    """
    from helpers import models

    found = sorted((ROOT / "book").rglob(f"{name}.py"))
    if len(found) != 1:
        raise InputError(f"{len(found)} notebooks are called {name!r}: legal is the name of one below book/")
    legal = read_legal(found[0].read_text(encoding="utf-8"))
    if missing := sorted(set(legal) - set(namespace)):
        raise InputError(f"parameter {missing[0]} is missing: legal are all of {', '.join(legal)}")
    parameters = validate(**{key: (namespace[key], rule) for key, rule in legal.items()})
    place = {"device": parameters.get("device", "cpu"), "dtype": parameters.get("dtype") or None}
    loaded = models.load(parameters["model_name"], **place)
    return start(found[0].relative_to(ROOT / "book").with_suffix("").as_posix(), parameters, loaded)


def read_legal(source: str) -> dict[str, Any]:
    """The parameters of a chapter, each with what `validate` takes as legal, from the lines of its parameters cell."""
    cell = re.search(r'^# %% tags=\["parameters"\]\n(.*?)^# %%', source, re.DOTALL | re.MULTILINE)
    legal: dict[str, Any] = {}
    for name, kind, comment in re.findall(r"^(\w+): (\w+) = .*?  # (.+)$", cell[1] if cell else "", re.MULTILINE):
        bounds = re.search(r"(\d+) to (\d+)(?: by (\d+))?", comment)
        choices = tuple(re.findall(r'"([^"]*)"', comment))
        if kind == "int" and bounds:
            legal[name] = range(int(bounds[1]), int(bounds[2]) + 1, int(bounds[3] or 1))
        else:
            legal[name] = choices or {"int": int, "str": str, "bool": bool, "float": float}[kind]
    return legal


def start(chapter: str, parameters: dict[str, Any], loaded: LoadedModel) -> Run:
    """Seed everything, use all usable cores, and begin the record.

    Args:
        chapter: path of the notebook below `book/`, without suffix.
        parameters: what `validate` returned; `seed` seeds Python, NumPy and torch where it is given.
        loaded: the model that the chapter's numbers come from.
    """
    import joblib
    import torch
    import transformers

    torch.set_num_threads(joblib.cpu_count())
    if "seed" in parameters:
        transformers.set_seed(parameters["seed"])
    return Run(chapter, parameters, loaded)


@dataclass
class Run:
    """The record of one execution of a chapter, filled as its cells run.

    A cell may be run again, as one does while writing: what it records replaces what it had recorded.
    """

    chapter: str
    parameters: dict[str, Any]
    loaded: LoadedModel
    claims: dict[str, Claim] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    code: dict[str, Any] = field(default_factory=lambda: find_code_version())
    """Taken when the run starts, since files may be edited while it lasts."""
    protocol: dict[str, Expected] = field(init=False)
    """What the chapter claims, by id, as `<notebook>.claims.yaml` beside it says; empty without one."""

    _texts: dict[str, str] = field(default_factory=dict)
    """The values as tables show them, for the readings of claims."""

    def __post_init__(self) -> None:
        file = ROOT / "book" / f"{self.chapter}.claims.yaml"
        self.protocol = read_protocol(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def value(self, key: str, value: Estimate | float | int | str) -> None:
        """Record a value and glue it, so that prose can say {glue:text}`key`.

        Raises:
            InputError: a number that is not finite.
        """
        self.values[key] = _plain(key, value)
        self._texts[key] = _text(value, brief=True)
        _glue(key, _text(value))

    def table(self, key: str, rows: list[dict[str, Any]], *, caption: str) -> None:
        """Record a table, a dictionary for each row, and show it with every text escaped.

        Args:
            key: unique in the chapter; becomes the anchor `table-<key>`.
            rows: cells by column name: numbers, texts or estimates.
            caption: plain text.

        Raises:
            InputError: a number that is not finite.
        """
        import pandas
        from IPython.display import HTML, display

        self.values[key] = [{name: _plain(name, cell) for name, cell in row.items()} for row in rows]
        frame = pandas.DataFrame([{name: _text(cell, brief=True) for name, cell in row.items()} for row in rows])
        html = frame.to_html(index=False, border=0, classes="table").replace(
            "<thead>", f"<caption>{escape(caption)}</caption><thead>", 1
        )
        display(HTML(f'<div class="wide-table" id="table-{key}" tabindex="0">{html}</div>'))

    def claim(self, id: str, sentence: str = "", **evidence: Any) -> None:
        """Record a claim, decided by its rule (see `claims.decide`), and glue its verdict as `claim-<id>`.

        Where the chapter has a protocol, this has the sentence, the rule and one reading for each verdict: the
        reading that the verdict chooses is shown with the number behind it, and glued as `found-<id>`.

        Args:
            id: short and unique within the chapter.
            sentence: what is claimed; left out where the protocol says it.
            **evidence: the rest of what `claims.decide` takes, or of it what the protocol does not say.

        Raises:
            InputError: the rule can't be decided, or the claim is in no protocol.
        """
        from IPython.display import HTML, display

        known = self.protocol.get(id)
        if known is None and not sentence:
            raise InputError(
                f"claim {id!r} has no sentence: legal are those of the protocol: {', '.join(self.protocol)}"
            )
        written = known.evidence | evidence if known else evidence
        claim = decide(id, known.sentence if known else sentence, model_name=self.loaded.card.name, **written)
        self.claims[id] = claim
        reason = "" if known and claim.verdict in known.readings else claim.reason
        _glue(f"claim-{id}", " ".join(filter(None, (claim.verdict, reason))))
        if known:
            reading = known.read(claim, self._texts)
            _glue(f"found-{id}", reading)
            display(HTML(as_line(claim, reading)))

    def leave(self, reason: str) -> NoReturn:
        """End the chapter here, as it can't be run on this model: every claim it has on record is "not run".

        Args:
            reason: a sentence that begins with a small letter, for the page and for each claim.
        """
        from IPython.display import display

        kept = sorted(ROOT.glob(f"results/*/record/{self.chapter}.json"))
        known = json.loads(kept[0].read_text(encoding="utf-8"))["claims"] if kept else []
        claims = [claim | {"verdict": "not run", "reason": f"({reason})", "estimate": None} for claim in known]
        display({"text/html": escape(reason)}, metadata={RECORD: self._record(claims) | {"not_run": reason}}, raw=True)
        raise NotRun(reason)

    def _record(self, claims: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "chapter": self.chapter,
            "model": self.loaded.record(),
            "parameters": self.parameters,
            "values": self.values,
            "claims": claims,
            "provenance": collect_provenance() | self.code,
        }

    def finish(self) -> None:
        """Show the claims and what made them, and leave the record in this cell's output.

        Raises:
            InputError: a claim of the protocol was not put to the test.
        """
        from IPython.display import display

        if missing := sorted(set(self.protocol) - set(self.claims)):
            raise InputError(f"claims of the protocol that the chapter never tests: {', '.join(missing)}")
        record = self._record(as_record(self.claims.values()))
        model, origin = record["model"], record["provenance"]
        _glue("model", ", ".join(filter(None, (model["title"], model["quantisation"], model["dtype"]))))
        _glue("profile", origin["profile"])
        _glue("threads", str(origin["hardware"]["threads"]))
        _glue("seconds", f"{origin['seconds']:.0f}")
        _glue("memory", f"{origin['memory_gb']:.1f}")
        told = [claim for claim in self.claims.values() if claim.id not in self.protocol]  # others have their line
        html = (as_html(told) if told else "") + _provenance_html(record)
        display({"text/html": html}, metadata={RECORD: record}, raw=True)


def read_record(notebook: NotebookNode) -> dict[str, Any]:
    """The record that an executed notebook carries.

    Raises:
        InputError: it carries none, so it did not run to its end.
    """
    for cell in reversed(notebook.cells):
        for output in cell.get("outputs", []):
            if RECORD in output.get("metadata", {}):
                return output["metadata"][RECORD]
    raise InputError("the notebook carries no record: its last code cell must call run.finish()")


def show_progress(items: Iterable[Item], step: str) -> Iterator[Item]:
    """Go through `items` with a progress line on standard error that names the step."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=step, mininterval=2, leave=False, file=sys.stderr))


def collect_provenance() -> dict[str, Any]:
    """Where and when a run took place: versions, hardware, seconds since this module was imported, peak memory."""
    import joblib
    import torch

    unit = 1 if sys.platform == "darwin" else 1024  # bytes of what the system counts in

    return {
        "profile": os.environ.get("BOOK_PROFILE", "by hand"),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(STARTED)),
        "seconds": round(time.time() - STARTED, 1),
        "memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": joblib.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "packages": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
    }


def find_code_version() -> dict[str, Any]:
    """The commit that is checked out, and whether files differ from it; both None where there is no git."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_uncommitted_changes": None if changes is None else bool(changes),
    }


def _plain(key: str, value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, Estimate):
        return asdict(value)
    value = value.item() if hasattr(value, "item") else value  # NumPy's and torch's numbers as Python's
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"value {key!r} must be finite, not {value}")
    return value


def _text(value: Any, *, brief: bool = False) -> str:
    """A value as a page shows it."""
    if isinstance(value, Estimate):
        return value.brief() if brief else str(value)
    value = value.item() if hasattr(value, "item") else value
    return shorten(value) if isinstance(value, float) else str(value)


def _git(*command: str) -> str | None:
    try:
        result = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _injected_names() -> set[str]:
    """Names that the cell injected by papermill assigns, where this runs in such a notebook."""
    from IPython import get_ipython

    shell = get_ipython()
    sources = shell.user_ns.get("In", []) if shell else []
    injected = next((source for source in sources if source.startswith("# Parameters\n")), "")
    statements = ast.parse(injected).body
    targets = [target for line in statements if isinstance(line, ast.Assign) for target in line.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _glue(key: str, text: str) -> None:
    """The output that `myst_nb.glue(key, text, display=False)` makes, without importing Sphinx."""
    from IPython.display import display

    prefix = "application/papermill.record/"
    # As a literal: a bare 2.80 would be read as a number and shown as 2.8.
    output = {prefix + "text/plain": repr(text)}
    display(output, metadata={"scrapbook": {"name": key, "mime_prefix": prefix}}, raw=True)


def _provenance_html(record: dict[str, Any]) -> str:
    model, origin = record["model"], record["provenance"]
    hardware = origin["hardware"]
    changed = ", with uncommitted changes" if origin["git_uncommitted_changes"] else ""
    rows = {
        "Model": f"{model['title']}" + (f"; {model['quantisation']}" if model["quantisation"] else ""),
        "Weights": f"sha256 {model['weights_sha256'][:16]}…, {model['dtype']}, {model['device']}, {model['backend']}",
        "Profile": origin["profile"],
        "Parameters": ", ".join(f"{name} = {value}" for name, value in record["parameters"].items()),
        "Commit": f"{(origin['git_commit'] or 'unknown')[:12]}{changed}",
        "Ran": f"{origin['started']}, {origin['seconds']:.0f} s on {hardware['threads']} threads"
        f" ({hardware['system']} {hardware['machine']}{', ' + hardware['gpu'] if hardware['gpu'] else ''})",
        "Versions": ", ".join(f"{name} {version}" for name, version in origin["packages"].items()),
    }
    body = "".join(f'<tr><th scope="row">{name}</th><td>{escape(text)}</td></tr>' for name, text in rows.items())
    return f'<details class="provenance"><summary>This run</summary><table>{body}</table></details>'
