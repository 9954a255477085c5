"""The chapters as files: pairs, stripped, listed, with parameters that are literals and claims that are cited."""

import ast
import json
import re
import subprocess
import sys

import nbformat
import pytest
import tokenizers
import transformers
import yaml
from conftest import save_tiny
from tokenizers import decoders, models, pre_tokenizers, trainers

from helpers import ROOT, prompts
from studies.ioi import templates
from workflow import book, chapters

CHAPTERS = chapters.all_chapters()
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS)


def notebook(chapter):
    return nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4)


def code_cells(chapter):
    return [cell for cell in notebook(chapter).cells if cell.cell_type == "code"]


def test_the_contents_list_every_page_once_and_only_pages_that_exist():
    entries = re.findall(r"(?:file|root):\s*(\S+)", (ROOT / "_toc.yml").read_text())
    assert len(entries) == len(set(entries))
    pages = [path for suffix in ("*.py", "*.md") for path in (ROOT / "book").rglob(suffix)]
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in pages if "_ext" not in path.parts}
    assert set(entries) == pages


@every_chapter
def test_the_ipynb_is_what_its_py_says(chapter):
    text = (ROOT / "book" / f"{chapter}.ipynb").read_text(encoding="utf-8")
    assert text == book.paired(chapter), "run `make pair`"


def test_nbstripout_finds_nothing_to_strip():
    paths = [str(ROOT / "book" / f"{chapter}.ipynb") for chapter in CHAPTERS]
    keys = "metadata.papermill metadata.language_info"
    command = [sys.executable, "-m", "nbstripout", "--verify", "--extra-keys", keys, *paths]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_notebook_is_larger_than_five_megabytes():
    notebooks = [*(ROOT / "book").rglob("*.ipynb"), *(ROOT / "_build" / "runs").rglob("*.ipynb")]
    assert notebooks
    assert not [path for path in notebooks if path.stat().st_size > 5e6]


@every_chapter
def test_parameters_are_typed_literals_with_a_comment_and_come_first(chapter):
    first, second = code_cells(chapter)[:2]
    assert first.metadata.tags == ["parameters"]
    for statement, line in zip(ast.parse(first.source).body, first.source.splitlines(), strict=True):
        assert isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Constant), line
        assert re.search(r"  # \S", line), f"{line!r} does not say what is legal"
    assert "runs.validate(" in second.source
    names = {statement.target.id for statement in ast.parse(first.source).body}
    assert names == set(re.findall(r"^\s+(\w+)=\(\1\b", second.source, re.MULTILINE)), "a parameter is not validated"


@every_chapter
def test_profiles_set_only_parameters_that_the_chapter_has(chapter):
    names = {statement.target.id for statement in ast.parse(code_cells(chapter)[0].source).body}
    for profile in chapters.profiles():
        assert set(chapters.profile_parameters(profile, chapter)) <= names
    for profile in ("ci", "record"):
        assert chapters.profile_parameters(profile, chapter), f"{profile}.yaml gives {chapter} no size"


def test_profiles_name_only_chapters_that_exist():
    for profile in chapters.profiles():
        settings = yaml.safe_load((chapters.PROFILES / f"{profile}.yaml").read_text()) or {}
        assert set(settings) <= set(CHAPTERS)


@every_chapter
def test_the_summary_cites_every_claim_and_no_other(chapter):
    source = "\n".join(cell.source for cell in code_cells(chapter))
    made = set(re.findall(r'run\.claim\(\s*"([\w-]+)"', source))
    texts = [cell.source for cell in notebook(chapter).cells if cell.cell_type == "markdown"]
    summary = next(text for text in texts if "## Summary" in text).split("## Summary")[1]
    assert made and made == set(re.findall(r"`claim-([\w-]+)`", summary))


@every_chapter
def test_no_key_is_recorded_twice(chapter):
    source = "\n".join(cell.source for cell in code_cells(chapter))
    keys = re.findall(r'run\.(?:value|claim|table)\(\s*"([\w-]+)"', source)
    assert len(keys) == len(set(keys))


@every_chapter
def test_the_chapter_has_the_sections_and_exercises_of_the_house_style(chapter):
    text = "\n".join(cell.source for cell in notebook(chapter).cells if cell.cell_type == "markdown")
    assert len(re.findall(r"^# .", text, re.MULTILINE)) == 1, "one title"
    for heading in ("## Check it", "## Where this breaks", "## Summary", "## Exercises", "## References"):
        assert heading in text
    exercises = text.split("## Exercises")[1].split("## References")[0]
    count = len(re.findall(r"^\*\*\d\. .*\(\d+ minutes\)", exercises, re.MULTILINE))
    assert 2 <= count <= 4
    assert exercises.count("*Hint:") == exercises.count("```{dropdown} Solution") == count


PAGES = [
    path for suffix in ("*.py", "*.md") for path in sorted((ROOT / "book").rglob(suffix)) if "_ext" not in path.parts
]


def name_of(page):
    return page.relative_to(ROOT / "book").with_suffix("").as_posix()


def sentences(page):
    """The prose of a page, less code, mathematics, links' targets and what is glued."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        text = "\n\n".join(cell.source for cell in notebook(name_of(page)).cells if cell.cell_type == "markdown")
    text = re.sub(r"```(?!{dropdown).*?```|\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    text = re.sub(r"{cite:\w+}`[^`]*`", "CITED", text)
    text = re.sub(r"{[\w:]+}`[^`]*`|`[^`]*`|\]\([^)]*\)|<[^>]+>", "", text)
    text = re.sub(r"\(\d+ minutes\)|\b[Dd]ays? \d+((,| and| to) \d+)*", "", text)
    return [line for part in re.split(r"\n\s*\n|\n- ", text) for line in re.split(r"(?<=[.!?])\s+(?=[A-Z*\[(])", part)]


def constants(page):
    """The numbers in the code that a page rests on: its own with its helpers', or all; and in profiles and versions."""
    code = [file.read_text(encoding="utf-8") for file in (*chapters.PROFILES.glob("*.yaml"), ROOT / "pyproject.toml")]
    helpers = [*(ROOT / "helpers").glob("*.py")]
    if page.suffix == ".py":
        code += [cell.source for cell in code_cells(name_of(page))]
        files = chapters.input_files(name_of(page), "embedded")
        helpers = [ROOT / file for file in files if file.endswith(".py")]
    code += [file.read_text(encoding="utf-8") for file in helpers]
    found = re.findall(r"(?<![\w.])\d[\d_]*\.?\d*(?:e-?\d+)?", "\n".join(code))
    return {float(number.replace("_", "")) for number in found}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_number_is_typed_in_prose(page):
    # What is measured is glued, and what is quoted is cited. A number of the code is a definition.
    known = constants(page)
    found = [
        (number + share, sentence)
        for sentence in sentences(page)
        if "CITED" not in sentence
        for number, share in re.findall(
            r"(?<![\w.,-])(\d*\.\d+|\d{2,}(?:,\d{3})*|\d+(?= %))( %)?(?![\w.]*\w)", sentence
        )
        if not {value := float(number.replace(",", "")), round(value / 100, 9) if share else value} & known
    ]
    assert not found


@every_chapter
def test_the_readme_lists_the_chapter_with_its_question_time_and_memory(chapter):
    title = notebook(chapter).cells[0].source.splitlines()[0].removeprefix("# ")
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if f"(book/{chapter}.py)" in line]
    measured = r"\| (\d+ s|–) \| (\d\.\d GB|–) \|"  # a dash stands for what has not been measured yet
    assert re.fullmatch(rf"\| \[.+\]\(.+\) \| {re.escape(title)} {measured}", line)


def test_every_project_has_a_readme_and_names_follow_the_convention():
    for folder in (ROOT / "book" / "replications").iterdir():
        assert re.fullmatch(r"project-\d+-[a-z0-9-]+", folder.name)
        assert (folder / "README.md").is_file()
    for folder in (ROOT / "book" / "projects").iterdir():
        assert re.fullmatch(r"[a-z0-9-]+", folder.name)
        assert (folder / "README.md").is_file()


def test_records_belong_to_chapters_and_hold_what_a_record_must():
    for path in (ROOT / "results").rglob("*.json"):
        record = json.loads(path.read_text())
        assert record["chapter"] in CHAPTERS
        assert path.as_posix().endswith(f"record/{record['chapter']}.json")
        assert len(record["model"]["weights_sha256"]) == 64
        assert record["provenance"]["profile"] == "record"


# The replications on models that know nothing


@pytest.fixture(scope="module")
def know_nothing(tmp_path_factory):
    """Tiny models with random weights and a tokenizer to which every word of the prompts is one token."""
    words = {word for line in templates.IOI_TEMPLATES for word in re.sub(r"{\w+}", " ", line).split()}
    words |= {*prompts.NAMES[:20], *templates.PLACES, *templates.OBJECTS}
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {word}" for word in sorted(words)] * 3, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")
    folders = {}
    for family in ("gpt2", "llama", "qwen2"):
        folders[family] = tmp_path_factory.mktemp(family)
        wrapped.save_pretrained(save_tiny(family, folders[family], vocabulary_size=len(wrapped)))
    return folders


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("name", ["induction_heads_notebook", "IOI_notebook"])
def test_a_replication_runs_to_its_end_on_a_model_that_knows_nothing(name, family, know_nothing, tmp_path):
    chapter = chapters.find_chapter(name)
    parameters = chapters.profile_parameters("ci", chapter) | {"model_name": str(know_nothing[family])}
    if name == "induction_heads_notebook":
        parameters["n_training_steps"] = 40  # the toy model has a test of its own
    book.execute(chapter, parameters, tmp_path, profile="by hand")
    record = json.loads((tmp_path / f"{chapter}.json").read_text())
    verdicts = {claim["id"]: claim["verdict"] for claim in record["claims"]}
    if name == "IOI_notebook":
        assert record["values"]["outcome"] == "no circuit found"
        assert record["values"]["circuit_heads"] == "none"
        assert {verdicts[name] for name in verdicts if name.startswith("circuit-")} == {"not run"}
        assert verdicts["names-the-indirect-object"] != "holds"
    else:
        assert verdicts["induction-heads-exist"] == "fails"
        assert verdicts["repetition-lowers-loss"] != "holds"
    assert {verdicts[name] for name in verdicts if name.startswith("published-")} == {"not comparable"}
