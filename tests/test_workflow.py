"""What is run when, and what bad input does: in a copy of the checkout, at a path with a space, on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from shared.checkout import Checkout, save_model

from helpers import InputError, runs
from helpers.claims import shorten
from workflow import book, chapters

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("a model"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, model):
    checkout = Checkout(tmp_path_factory.mktemp("work") / "a check out", model)
    assert checkout.built() == ["first", "second"]
    return checkout


def test_a_second_build_runs_nothing(checkout):
    assert checkout.built() == []


def test_prose_runs_nothing_and_shows_on_the_page(checkout):
    checkout.edit("book/index.md", "Old prose.", "New prose.")
    checkout.edit("book/first.py", "# The answer is", "# The one answer is")
    assert checkout.built() == []
    assert "New prose." in checkout.page("index")
    assert "The one answer is" in checkout.page("first")


def test_the_page_shows_the_numbers_of_the_record(checkout):
    checkout.built()

    for name in ("first", "second"):
        assert shorten(checkout.record(name)["values"]["answer"]) in checkout.page(name)
        assert checkout.record(name)["model"]["weights_sha256"][:16] in checkout.page(name)


def test_another_run_goes_to_its_own_folder_and_leaves_the_book_alone(checkout):
    before = checkout.snapshot()
    result = checkout.run("run", "first", "count=7 seed=3")
    assert result.returncode == 0, result.stderr
    page = result.stdout.strip()
    assert "/runs/custom-" in page and "count = 7" in open(page).read()
    after = checkout.snapshot()
    assert {path: after[path] for path in before} == before
    assert checkout.built() == []
    assert "count = 7" not in checkout.page("first")


@pytest.mark.rare
def test_the_whole_book_on_another_model_has_runs_and_a_site_of_its_own(checkout, tmp_path):
    other = save_model(tmp_path / "other model", n_layers=3)
    before = checkout.snapshot()
    result = checkout.run("build", f"embedded@{other}")
    assert result.returncode == 0, result.stderr
    page = result.stdout.splitlines()[-1]
    assert "/_build/sites/embedded@" in page and page.endswith("/index.html")
    after = checkout.snapshot()
    assert {path: after[path] for path in before} == before
    (folder,) = (checkout.folder / "_build" / "runs").glob("embedded@*")
    record = json.loads((folder / "first.json").read_text())
    assert record["model"]["n_layers"] == 3 and record["provenance"]["profile"] == "embedded"
    shown = open(page.replace("index.html", "book/first.html")).read()
    assert record["model"]["weights_sha256"][:16] in shown and record["model"]["weights_sha256"][
        :16
    ] not in checkout.page("first")
    assert ": done" not in checkout.run("build", f"embedded@{other}").stderr
    refused = checkout.run("build", "embedded@no such model")
    assert refused.returncode == 1 and "unknown model 'no such model'" in refused.stderr


def test_the_same_seed_gives_the_same_record(checkout):
    profile = checkout.folder / "workflow" / "profiles" / "again.yaml"
    profile.write_text("first:\n  seed: 0\n")
    assert checkout.run("execute", "first", "again").returncode == 0
    profile.unlink()
    records = [checkout.record("first", run) for run in ("embedded", "again")]
    for record in records:
        for varying in (
            "profile",
            "started",
            "seconds",
            "memory_gb",
            "git_commit",
            "git_uncommitted_changes",
            "hardware",
        ):
            del record["provenance"][varying]
    assert records[0] == records[1] and records[0]["parameters"]["seed"] == 0
    made = checkout.folder / "_build" / "runs" / "again" / "first"
    assert [path.name for path in made.iterdir()] == ["0.txt"]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("run", "frist"), "there is no chapter 'frist': did you mean 'first'? legal are first, second"),
        (("run", "first", "cuont=3"), "unknown parameter 'cuont': legal are model_name, count, seed"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_earlier_results_intact(checkout, command, sentence):
    before = checkout.snapshot()
    result = checkout.run(*command)
    assert result.returncode != 0
    assert sentence in result.stderr.splitlines()[-1]
    assert checkout.snapshot() == before


@pytest.mark.parametrize("error", [InputError("too 'bad'"), OSError("no space")])
def test_an_error_ends_the_command_with_one_sentence(error, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(book, "pair", fail)
    assert book.main(["pair"]) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_cell_that_raises_is_named_and_earlier_results_stay(checkout):
    before = checkout.snapshot()
    checkout.edit("book/first.py", 'run.value("answer"', 'raise KeyError("nothing here")\nrun.value("answer"')
    result = checkout.run("build")
    checkout.edit("book/first.py", 'raise KeyError("nothing here")\n', "")
    assert result.returncode != 0
    assert "chapter first, section 'The middle part': KeyError: 'nothing here'" in result.stderr
    assert checkout.snapshot() == before


@pytest.mark.rare
def test_a_chapter_that_can_not_be_run_on_a_model_says_so_and_the_build_goes_on(checkout):
    reason = "its layers <b>are</b> of another kind"
    checkout.edit("book/first.py", 'run.value("answer"', f'run.leave("{reason}")\nrun.value("answer"')
    command = ("embedded", "--models", str(checkout.model), "--chapters", "first", "second")
    result = checkout.run(*command, module="workflow.grid")
    shown = checkout.run("build", f"embedded@{checkout.model}")
    checkout.edit("book/first.py", f'run.leave("{reason}")\n', "")
    assert result.returncode == 0 and "2 of 2 done" in result.stdout
    assert shown.returncode == 0 and f"first: not run on this model: {reason}" in shown.stderr
    page = open(shown.stdout.splitlines()[-1].replace("index.html", "book/first.html")).read()
    assert "can’t be run on this model" in page and "its layers &lt;b&gt;are&lt;/b&gt; of another kind" in page


def test_code_that_cannot_be_read_is_named(checkout):
    checkout.edit("book/first.py", "count: int = 2", "count: int = = 2")
    result = checkout.run("build")
    assert result.returncode != 0 and "book/first.py can't be parsed" in result.stderr
    checkout.edit("book/first.py", "count: int = = 2", "count: int = 2")


def test_a_killed_build_leaves_nothing_half_written_and_the_next_goes_on(checkout):
    before = checkout.snapshot()
    for name, seconds in (("first", 0), ("second", 3)):
        checkout.edit(f"book/{name}.py", "run.finish()", f"time.sleep({seconds} * (seed == 0))\nrun.finish()")
    process = checkout.start("build")
    for line in process.stderr:
        if line.startswith("first: done"):  # while the other is under way, beside it
            break
    under_way = checkout.folder / ".snakemake" / "incomplete"
    while len(list(under_way.iterdir())) > 2:  # until Snakemake has noted it, only the other's two files are not whole
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    after = checkout.snapshot()
    assert {path.name for path in before if before[path] != after.get(path)} == {"first.ipynb", "first.json"}
    assert checkout.built() == ["second"]


def test_stock_papermill_runs_a_pair(checkout, tmp_path):
    assert checkout.run("pair").returncode == 0
    command = [sys.executable, "-m", "papermill", "book/first.ipynb", str(tmp_path / "out.ipynb"), "-p", "seed", "1"]
    result = subprocess.run(command, cwd=checkout.folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    import nbformat

    record = runs.read_record(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert record["parameters"]["seed"] == 1 and record["provenance"]["profile"] == "by hand"


def test_stock_jupyter_book_builds_what_was_run(checkout, tmp_path):
    stock = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", stock, "build", ".", "-W", "--keep-going", "--path-output", str(tmp_path)]
    result = subprocess.run(command, cwd=checkout.folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 'class="provenance"' in (tmp_path / "_build" / "html" / "book" / "first.html").read_text()


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    target = tmp_path / "record.json"
    book.write(target, "old")

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match=r"record\.json could not be written \(No space left on device\)"):
        book.write(target, "new")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"] and target.read_text() == "old"


def test_a_record_publishes_the_data_set_before_the_chapters_that_read_it_are_run(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    maker, seen = chapters.find_chapter("day12-14_cot_dataset"), []

    def snakemake(targets, profile):
        made = (tmp_path / "results" / "a-model" / "datasets" / "kept.parquet").exists()
        seen.append((len(targets), made))
        for chapter in [target.removeprefix(f"_build/runs/{profile}/").removesuffix(".ipynb") for target in targets]:
            book.write(tmp_path / "runs" / profile / f"{chapter}.json", '{"model": {"name": "a-model"}}')
        book.write(tmp_path / "runs" / profile / maker / "kept.parquet", b"rows")
        book.write(tmp_path / "runs" / profile / maker / "kept.safetensors", b"matrices")
        book.write(tmp_path / "runs" / profile / maker / "graded" / "weaker.safetensors", b"matrices")

    monkeypatch.setattr(book, "snakemake", snakemake)
    book.record("record")
    assert seen == [(2, False), (len(chapters.all_chapters()), True)]
    kept = {path.relative_to(tmp_path / "results").as_posix() for path in (tmp_path / "results").rglob("*.*")}
    kept = {name for name in kept if not name.endswith(".json")}
    assert kept == {"a-model/datasets/kept.parquet", "a-model/adapters/kept.safetensors"}


def test_a_profile_publishes_only_the_chapters_that_it_names(tmp_path, monkeypatch):
    published = []
    monkeypatch.setattr(book, "snakemake", lambda targets, profile: published.append([]))
    monkeypatch.setattr(book, "publish", lambda chapter, profile: published[-1].append(chapter))
    book.record("qwen")
    named = [chapter for chapter in chapters.all_chapters() if chapters.profile_parameters("qwen", chapter)]
    assert published == [[chapters.find_chapter("day12-14_cot_dataset")], named]
    assert 0 < len(named) < len(chapters.all_chapters())


def test_what_another_process_has_under_way_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "BUILD", tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folders = {name: tmp_path / f"run-{pid}-x" for name, pid in (("ended", ended.pid), ("at work", other.pid))}
    for folder in folders.values():
        folder.mkdir()
    (tmp_path / "site-old").mkdir()
    with book.work_folder("run") as mine, book.only_one():
        assert mine.is_dir() and folders["at work"].is_dir() and not folders["ended"].exists()
        assert not (tmp_path / "site-old").exists()
    other.communicate(b"\n")
    assert not mine.exists()


ADDRESS = "https://github.com/someone/a-book"


def test_the_repositorys_address_brings_its_buttons_and_the_cell_for_colab(checkout):
    checkout.run("pair")
    without = checkout.page("first"), (checkout.folder / "book" / "first.ipynb").read_text()
    checkout.edit("_config.yml", 'url: ""', f'url: "{ADDRESS}"')
    try:
        assert checkout.built() == []
        assert checkout.run("pair").returncode == 0
        page, notebook = checkout.page("first"), json.loads((checkout.folder / "book" / "first.ipynb").read_text())
    finally:
        checkout.edit("_config.yml", f'url: "{ADDRESS}"', 'url: ""')
        checkout.run("pair")
    assert "colab.research.google.com/github/someone/a-book/blob/" in page and "book/first.ipynb" in page
    assert f"{ADDRESS}/edit/" in page
    source = "".join(notebook["cells"][0]["source"])
    assert f"git clone --depth 1 {ADDRESS} " in source and "requirements.lock" in source
    assert not [text for text in without if "colab" in text.lower() or "/edit/" in text]
    assert (checkout.folder / "book" / "first.ipynb").read_text() == without[1]


def test_the_cell_for_colab_does_nothing_elsewhere(monkeypatch, tmp_path):
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setattr(book, "ROOT", tmp_path)
    (tmp_path / "_config.yml").write_text(f"repository: {{url: {ADDRESS}}}\n")
    (cell,) = book.colab_cells()
    shell = InteractiveShell()
    monkeypatch.setattr(shell, "system", lambda command: pytest.fail(f"ran {command}"))
    assert shell.run_cell(cell.source).success
    (tmp_path / "_config.yml").write_text("repository: {url: ''}\n")
    assert book.colab_cells() == []
