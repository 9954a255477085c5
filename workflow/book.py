"""Execute chapters and build the site; the Makefile and the Snakefile call this.

python -m workflow.book build [PROFILE[@MODEL]] run what is out of date, then the site
python -m workflow.book run CHAPTER [PARAMS]    one chapter with other parameters, in its own folder
python -m workflow.book record [PROFILE[@MODEL]] the `record` profile, or another, copied to results/
python -m workflow.book pair                    each chapter's .ipynb from its .py
python -m workflow.book new-chapter NAME        a new chapter, listed, with sizes, that runs as it stands
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import ROOT, InputError, models, runs
from workflow import chapters

BUILD = ROOT / "_build"
RUNS = BUILD / "runs"
SITE = BUILD / "html"


def build(run: str) -> None:
    """Bring the runs of a profile, maybe on another model, and the site up to date; print its first page's path."""
    snakemake(["site"], run)
    print(locate_site(run) / "index.html")


def locate_site(run: str) -> Path:
    """Where the pages of a run are: those on another model than the profile's own have a site of their own."""
    return BUILD / "sites" / chapters.name_folder(run) if chapters.split_run(run)[2] else SITE


def render_site(run: str) -> None:
    """Build the pages of a run."""
    if chapters.split_run(run)[2]:
        folder = RUNS / chapters.name_folder(run)
        left = [chapter for chapter in chapters.all_chapters() if "not_run" in (folder / f"{chapter}.json").read_text()]
        strict = () if left else ("-W", "--keep-going")  # else numbers of chapters that were not run are missed
        render(locate_site(run), *strict, BOOK_CUSTOM_RUN=str(folder))
        return
    write(BUILD / "profile", run)  # which runs the pages show, by stock Jupyter Book too
    render(SITE, "-W", "--keep-going")


def record(run: str) -> None:
    """Run the chapters that a profile names, and copy what each recorded to `results/`.

    Chapters that make a data set are run and copied first, as others read the one that is kept there.
    """
    named = [chapter for chapter in chapters.all_chapters() if chapters.run_parameters(run, chapter)]
    makers = [chapter for chapter in named if chapters.run_parameters(run, chapter).get("save")]
    for some in filter(None, (makers, named)):
        snakemake([f"_build/runs/{chapters.name_folder(run)}/{chapter}.ipynb" for chapter in some], run)
        for chapter in some:
            publish(chapter, run)


def publish(chapter: str, run: str) -> None:
    """Copy a chapter's record, and what else its run made, to `results/`: nothing else writes there.

    Of a run with a seed of its own, another draw, only the record is copied, beside the others of that seed.
    """
    source, seed = RUNS / chapters.name_folder(run), chapters.split_run(run)[1]
    text = (source / f"{chapter}.json").read_text(encoding="utf-8")
    folder = runs.locate_results(json.loads(text)["model"]["name"])
    kind = "record" if seed is None else f"record+{seed}"
    write(folder / kind / f"{chapter}.json", text)
    made_besides = (source / chapter).glob("*.*") if seed is None else ()
    for made in (path for path in made_besides if path.suffix in chapters.KEPT):
        kept = folder / chapters.KEPT[made.suffix] / made.name
        if not kept.exists() or kept.read_bytes() != made.read_bytes():  # else its readers would be out of date
            write(kept, made.read_bytes())
    print(folder / kind / f"{chapter}.json")


def run(name: str, text: str) -> None:
    """Execute one chapter with other parameters in a folder of its own, and print its page's path."""
    chapter, parameters = chapters.find_chapter(name), chapters.parse_parameters(text)
    digest = hashlib.sha256(json.dumps([chapter, parameters], sort_keys=True).encode()).hexdigest()[:8]
    folder = RUNS / f"custom-{digest}"
    execute(chapter, parameters, folder, profile=f"custom-{digest}")
    # Other chapters are shown as they are, so what they lack is no error here.
    render(folder / "html", BOOK_CUSTOM_RUN=str(folder))
    print(folder / "html" / "book" / f"{chapter}.html")


def pair() -> None:
    """Write the `.ipynb` beside each chapter anew where it does not hold what its `.py` says."""
    for chapter in chapters.all_chapters():
        target = ROOT / "book" / f"{chapter}.ipynb"
        text = paired(chapter)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            write(target, text)
            print(target)


def new_chapter(name: str) -> None:
    """Write a chapter from the scaffold beside this file, and list it where the others of its folder are.

    Args:
        name: of the notebook, in the research project; or a path below `book/` into a folder of another project.

    Raises:
        InputError: the name can't be a chapter's, its folder is no project's, or the chapter exists.
    """
    folder, _, last = name.removeprefix("book/").removesuffix(".py").rpartition("/")
    folders = sorted({chapter.rpartition("/")[0] for chapter in chapters.all_chapters()})
    folder = folder or "projects/probe-based-faithfulness-detection"
    if not re.fullmatch(r"[A-Za-z][\w-]*", last):
        raise InputError(f"{last!r} can't be the name of a chapter: legal are letters, digits, _ and -, a letter first")
    if folder not in folders:
        raise InputError(f"there is no project {folder!r}: legal are {', '.join(folders)}")
    chapter = f"{folder}/{last}"
    target = ROOT / "book" / f"{chapter}.py"
    if target.exists() or last in [other.rpartition("/")[2] for other in chapters.all_chapters()]:
        raise InputError(f"there is a chapter {last!r} already: choose another name")
    words = {
        "TITLE": last.replace("_", " "),
        "NAME": last,
        "BIBLIOGRAPHY": "../" * chapter.count("/") + "reference/bibliography",
    }
    scaffold = (ROOT / "workflow" / "new_chapter.txt").read_text(encoding="utf-8")
    write(target, re.sub("|".join(words), lambda found: words[found[0]], scaffold))
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8").splitlines(keepends=True)
    last_of_folder = [other for other in chapters.all_chapters() if other.rpartition("/")[0] == folder][-1]
    place = next(number for number, line in enumerate(contents) if line.endswith(f"file: book/{last_of_folder}\n"))
    entry = contents[place][: contents[place].index("file:")] + f"file: book/{chapter}\n"
    write(ROOT / "_toc.yml", "".join([*contents[: place + 1], entry, *contents[place + 1 :]]))
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines(keepends=True)
    place = max(number for number, line in enumerate(readme) if re.match(r"\| \[.+\]\(book/.+\.py\) \|", line))
    title = re.search(r"^# # (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)[1]
    row = f"| [{words['TITLE']}](book/{chapter}.py) | {title} | – | – |\n"
    write(ROOT / "README.md", "".join([*readme[: place + 1], row, *readme[place + 1 :]]))
    for profile, size in (("ci", 4), ("record", 50)):
        path = chapters.PROFILES / f"{profile}.yaml"
        write(path, path.read_text(encoding="utf-8") + f"{chapter}:\n  n_passages: {size}\n")
    write(target.with_suffix(".ipynb"), paired(chapter))
    print(target)


def paired(chapter: str) -> str:
    """The `.ipynb` that belongs to a chapter's `.py`, as nbstripout leaves it, with the set-up cell for Colab."""
    import jupytext
    import nbformat
    from nbstripout import strip_output

    notebook = jupytext.read(ROOT / "book" / f"{chapter}.py")
    notebook.cells = colab_cells() + notebook.cells
    notebook = strip_output(notebook, keep_output=False, keep_count=False, keep_id=False)
    return nbformat.writes(notebook) + "\n"


def colab_cells() -> list[Any]:
    """On Colab, which opens the notebook alone: a first cell that fetches the rest. None without an address."""
    import nbformat
    import yaml

    address = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    source = f"""# On Colab only: fetch the book's helpers and the packages they need.
import sys

if "google.colab" in sys.modules:
    !git clone --depth 1 {address} book
    %cd book
    %pip install -q -r requirements.lock"""
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["colab", "remove-cell"]})
    return [cell] if address else []


def snakemake(targets: list[str], *all_runs: str, options: Sequence[str] = (), grid: bool = False) -> None:
    """Let Snakemake bring targets of some runs up to date.

    Its own lock, which a killed process leaves behind, is switched off: `only_one` holds one that does not.
    """
    for run in all_runs:
        if model := chapters.split_run(run)[2]:
            models.find(model)
        for chapter in chapters.all_chapters():  # what Snakemake will ask, so that an error is told in one sentence
            chapters.input_files(chapter, run)
    folders = json.dumps({chapters.name_folder(run): run for run in all_runs})
    command = [sys.executable, "-m", "snakemake", *targets, "--snakefile", "workflow/Snakefile", "--cores", "all"]
    command += [
        "--nolock",
        "--rerun-incomplete",
        "--quiet",
        "all",
        *options,
        "--config",
        f"runs={folders}",
        f"grid={grid}",
    ]
    result = subprocess.run(command, cwd=ROOT)
    if result.returncode:
        profile = chapters.split_run(all_runs[0])[0]
        raise InputError(
            f"{', '.join(targets)} of profile {profile!r} could not be made: see above, and .snakemake/log/"
        )


@contextmanager
def only_one() -> Iterator[None]:
    """Wait until no other build runs in this checkout, and clear away what a killed one left.

    The lock is the operating system's, which goes with the process that holds it.
    """
    from filelock import FileLock, Timeout

    BUILD.mkdir(exist_ok=True)
    lock = FileLock(BUILD / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another build is running in this checkout; waiting for it to end")
        lock.acquire()
    try:
        for rest in (*BUILD.glob("run-*"), *BUILD.glob("site-*")):
            if is_abandoned(rest):
                shutil.rmtree(rest, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextmanager
def work_folder(kind: str) -> Iterator[Path]:
    """A folder in `_build` for what is not whole yet, named after the process that it belongs to."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{kind}-{os.getpid()}-", dir=BUILD) as work:
        yield Path(work)


def is_abandoned(folder: Path) -> bool:
    """Whether the process that a work folder belongs to has ended; others, tests among them, may still be at work."""
    try:
        os.kill(int(folder.name.split("-")[1]), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return True
    except PermissionError:  # it lives, under another user
        return False
    return False


def execute(chapter: str, parameters: dict[str, Any], folder: Path, *, profile: str) -> None:
    """Run a chapter through papermill; its notebook and its record appear in `folder` when both are whole.

    Raises:
        InputError: a cell raised; the sentence names chapter, section and error.
    """
    import jupytext
    import nbformat

    os.environ |= {"BOOK_PROFILE": profile, "PYTHONWARNINGS": "ignore:IProgress not found"}
    notebook = jupytext.read(ROOT / "book" / f"{chapter}.py")
    started = time.time()
    with work_folder("run") as work:
        source, result, made = work / "source.ipynb", work / "executed.ipynb", work / "made"
        os.environ["BOOK_OUTPUT"] = str(made)
        nbformat.write(notebook, source)
        executed = run_notebook(chapter, notebook, parameters, source, result)
        record = runs.read_record(executed)
        shutil.rmtree(folder / chapter, ignore_errors=True)
        if made.exists():
            (folder / chapter).parent.mkdir(parents=True, exist_ok=True)
            made.rename(folder / chapter)
    write(folder / f"{chapter}.json", json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
    write(folder / f"{chapter}.ipynb", nbformat.writes(executed))
    say(f"{chapter}: done in {time.time() - started:.0f} s")


def run_notebook(chapter: str, notebook: Any, parameters: dict[str, Any], source: Path, result: Path) -> Any:
    """The executed notebook; one whose chapter can't be run on the model says so in its metadata.

    Raises:
        InputError: as `execute`.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    try:
        return papermill.execute_notebook(
            source,
            result,
            parameters,
            engine_name=register_engine(chapter),
            progress_bar=False,
            cwd=ROOT,
            stderr_file=sys.stderr,
            request_save_on_cell_execute=False,
            extra_arguments=["--log-level=40"],
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == runs.NotRun.__name__:
            executed = nbformat.read(result, as_version=4)
            executed.metadata["not_run"] = error.evalue
            say(f"{chapter}: not run on this model: {error.evalue}")
            return executed
        section = section_of(notebook, error.source)
        kept = BUILD / "failed" / f"{chapter}.ipynb"
        if result.exists():
            write(kept, result.read_text(encoding="utf-8"))
        raise InputError(
            f"chapter {chapter}, section {section!r}: {error.ename}: {error.evalue} (traceback in {kept})"
        ) from None
    except DeadKernelError:
        raise InputError(f"chapter {chapter}: its process was killed, most likely for lack of memory") from None
    except RuntimeError as error:
        raise InputError(f"chapter {chapter}: its process could not be started ({error})") from None


def register_engine(chapter: str) -> str:
    """Papermill's own engine, which besides says which chapter and which section it is at."""
    from papermill.engines import NBClientEngine, papermill_engines

    class SpokenEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, manager: Any, kernel_name: str, **options: Any) -> Any:
            start_cell, said = manager.cell_start, []

            def start_aloud(cell: Any, cell_index: int, **more: Any) -> None:
                section = section_of(manager.nb, cell.source)
                if cell.cell_type == "code" and said[-1:] != [section]:
                    say(f"{chapter}: {section} (cell {cell_index + 1} of {len(manager.nb.cells)})")
                    said.append(section)
                start_cell(cell, cell_index, **more)

            manager.cell_start = start_aloud
            return super().execute_managed_notebook(manager, kernel_name, **options)

    papermill_engines.register("spoken", SpokenEngine)
    return "spoken"


def section_of(notebook: Any, source: str) -> str:
    """The last heading before the cell with this source."""
    heading = "parameters"
    for cell in notebook.cells:
        if cell.source == source:
            break
        if cell.cell_type == "markdown":
            titles = (line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#"))
            heading = next(titles, heading)
    return heading


def render(target: Path, *options: str, **environment: str) -> None:
    """Build the site with stock Jupyter Book; `target` is replaced when all of it is there.

    Raises:
        InputError: Jupyter Book failed, or warned and `options` make that an error.
    """
    with work_folder("site") as work:
        stock = "from jupyter_book.cli.main import main; main()"  # what the program `jupyter-book` is
        command = [sys.executable, "-c", stock, "build", ".", "--all", "--path-output", str(work), *options]
        output = {"capture_output": True, "text": True, "encoding": "utf-8"}
        result = subprocess.run(command, cwd=ROOT, env=os.environ | environment, **output)
        if result.returncode:
            told = (result.stdout + result.stderr).splitlines()
            lines = [line for line in told if re.search(r"WARNING|\b(ERROR|CRITICAL)\b|\b[A-Z]\w*Error\b", line)]
            raise InputError("the site could not be built: " + "\n".join(lines or [result.stderr[-500:]]))
        old = work / "old"
        if target.exists():
            target.rename(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        (work / "_build" / "html").rename(target)


def write(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either whole or as it was.

    Raises:
        InputError: the disk is full or the place can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror}); what was there is as it was") from None
    finally:
        partial.unlink(missing_ok=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m workflow.book")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("build", "site"):
        commands.add_parser(command).add_argument("run", nargs="?", default="embedded", metavar="PROFILE[@MODEL]")
    commands.add_parser("record").add_argument("run", nargs="?", default="record", metavar="PROFILE[@MODEL]")
    commands.add_parser("pair")
    commands.add_parser("new-chapter").add_argument("name")
    for command, last in (("run", "parameters"), ("execute", "run")):
        added = commands.add_parser(command)
        added.add_argument("chapter")
        added.add_argument(last, nargs="?", default="")
    options = parser.parse_args(arguments)
    try:
        if options.command == "pair":
            pair()
        elif options.command == "new-chapter":
            new_chapter(options.name)
        elif options.command == "execute":
            parameters = chapters.run_parameters(options.run, options.chapter)
            profile, folder = chapters.split_run(options.run)[0], RUNS / chapters.name_folder(options.run)
            execute(options.chapter, parameters, folder, profile=profile)
        elif options.command == "site":
            render_site(options.run)
        else:
            with only_one():
                if options.command == "build":
                    build(options.run)
                elif options.command == "record":
                    record(options.run)
                else:
                    run(options.chapter, options.parameters)
    except (InputError, OSError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
