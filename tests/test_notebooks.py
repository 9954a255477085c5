"""The chapters as files: pairs, stripped, listed, with parameters that are literals and claims that are cited."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from string import Formatter
from types import SimpleNamespace

import pytest
import tokenizers
import torch
import transformers
import yaml
from shared.notebooks import check_pair, check_sizes, read_notebook
from shared.tiny import save_tiny
from tokenizers import decoders, models, pre_tokenizers, trainers

import helpers.models
from helpers import ROOT, claims, hooks, prompts, runs
from helpers.models import REGISTRY
from studies.ioi import roles, templates
from workflow import book, chapters

CHAPTERS = chapters.all_chapters()
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS)


def code_cells(chapter):
    return [cell for cell in read_notebook(chapter).cells if cell.cell_type == "code"]


def test_the_contents_list_every_page_once_and_only_pages_that_exist():
    entries = re.findall(r"(?:file|root):\s*(\S+)", (ROOT / "_toc.yml").read_text())
    assert len(entries) == len(set(entries))
    pages = [path for suffix in ("*.py", "*.md") for path in (ROOT / "book").rglob(suffix)]
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in pages if "_ext" not in path.parts}
    assert set(entries) == pages


@every_chapter
def test_the_ipynb_is_what_its_py_says(chapter):
    check_pair(chapter)


def test_nbstripout_finds_nothing_to_strip():
    paths = [str(ROOT / "book" / f"{chapter}.ipynb") for chapter in CHAPTERS]
    keys = "metadata.papermill metadata.language_info"
    command = [sys.executable, "-m", "nbstripout", "--verify", "--extra-keys", keys, *paths]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_notebook_is_larger_than_five_megabytes():
    check_sizes()


@every_chapter
def test_parameters_are_typed_literals_with_a_comment_and_come_first(chapter):
    first, second = code_cells(chapter)[:2]
    assert first.metadata.tags == ["parameters"]
    for statement, line in zip(ast.parse(first.source).body, first.source.splitlines(), strict=True):
        assert isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Constant), line
        assert re.search(r"  # \S", line), f"{line!r} does not say what is legal"
    assert f'runs.begin("{chapter.rsplit("/", 1)[-1]}", globals())' in second.source
    names = {statement.target.id for statement in ast.parse(first.source).body}
    legal = runs.read_legal((ROOT / "book" / f"{chapter}.py").read_text(encoding="utf-8"))
    assert set(legal) == names
    counts = {name for name in names if isinstance(legal[name], range)}
    kinds = {statement.target.id: statement.annotation.id for statement in ast.parse(first.source).body}
    assert counts == {name for name in names if kinds[name] == "int"}, "a count has no bounds"


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
    protocol = ROOT / "book" / f"{chapter}.claims.yaml"
    made = set(re.findall(r'run\.claim\(\s*"([\w-]+)"', source))
    if protocol.is_file():  # a run ends with an error if one of these is never tested
        made |= set(claims.read_protocol(protocol.read_text(encoding="utf-8")))
    texts = [cell.source for cell in read_notebook(chapter).cells if cell.cell_type == "markdown"]
    summary = next(text for text in texts if "## Summary" in text).split("## Summary")[1]
    assert made and made == set(re.findall(r"`claim-([\w-]+)`", summary))


@every_chapter
def test_no_key_is_recorded_twice(chapter):
    source = "\n".join(cell.source for cell in code_cells(chapter))
    keys = re.findall(r'run\.(?:value|claim|table)\(\s*"([\w-]+)"', source)
    assert len(keys) == len(set(keys))


@every_chapter
def test_the_chapter_has_the_sections_and_exercises_of_the_house_style(chapter):
    text = "\n".join(cell.source for cell in read_notebook(chapter).cells if cell.cell_type == "markdown")
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
        text = "\n\n".join(cell.source for cell in read_notebook(name_of(page)).cells if cell.cell_type == "markdown")
    text = re.sub(r"```(?!{dropdown).*?```|\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    text = re.sub(r"{cite:\w+}`[^`]*`", "CITED", text)
    text = re.sub(r"{[\w:]+}`[^`]*`|`[^`]*`|\]\([^)]*\)|<[^>]+>", "", text)
    text = re.sub(r"\(\d+ minutes\)|\b[Dd]ays? \d+((,| and| to) \d+)*", "", text)
    return [line for part in re.split(r"\n\s*\n|\n- ", text) for line in re.split(r"(?<=[.!?])\s+(?=[A-Z*\[(])", part)]


TYPED = yaml.safe_load((ROOT / "tests" / "typed_numbers.yaml").read_text(encoding="utf-8"))
"""For each page the numbers that stand typed in its prose, and what each is: see the file's head."""


def numbers_of(text):
    """Numbers of two digits or more, decimals and shares, as floats."""
    found = re.findall(r"(?<![\w.])\d[\d_]*\.?\d*(?:e-?\d+)?", text)
    return {float(number.replace("_", "")) for number in found}


def typed_numbers(page):
    """(number as it is typed, its sentence)"""
    pattern = r"(?<![\w.,-])(\d*\.\d+|\d{2,}(?:,\d{3})*|\d+(?= %))( %)?(?![\w.]*\w)"
    return [("".join(found), line) for line in sentences(page) for found in re.findall(pattern, line)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_number_is_typed_in_prose_but_those_that_are_listed(page):
    # What is measured is glued. What is left is cited, or defined in a file, or a fact; a list names each occurrence.
    listed = {number: kinds.split(", ") for number, kinds in TYPED.get(name_of(page), {}).items()}
    found = typed_numbers(page)
    assert Counter(number for number, _ in found) == {number: len(kinds) for number, kinds in listed.items()}, (
        "glue it, or name it in tests/typed_numbers.yaml"
    )
    for number, line in found:
        kind = listed[number].pop(0)
        if kind == "cited":
            assert "CITED" in line, f"{number} is listed as cited, but not cited in {line!r}"
        elif kind != "fact":
            assert stands_in(number, kind), f"{number} does not stand in {kind}"


def stands_in(number, file):
    """Whether a file, or the code of a chapter, has the number."""
    code = (ROOT / file).read_text(encoding="utf-8")
    if file.startswith("book/"):
        code = "\n".join(cell.source for cell in code_cells(file.removeprefix("book/").removesuffix(".py")))
    value = float(number.removesuffix(" %").replace(",", ""))
    return bool(({value, round(value / 100, 9)} if number.endswith("%") else {value}) & numbers_of(code))


LONG = yaml.safe_load((ROOT / "tests" / "long_cells.yaml").read_text(encoding="utf-8"))
"""Visible cells of more than fifteen lines by chapter: first line → lines."""


def test_the_list_of_long_cells_only_shrinks():
    assert sum(map(len, LONG.values())) <= 10, "lower this number with the list"


@every_chapter
def test_no_visible_cell_is_longer_than_fifteen_lines_but_those_that_are_listed(chapter):
    long = {}
    for cell in code_cells(chapter)[2:]:
        first, n_lines = cell.source.split("\n")[0], sum(map(bool, map(str.strip, cell.source.split("\n"))))
        if n_lines > 15 and "hide-input" not in cell.metadata.get("tags", []):
            assert first not in long, f"two long cells begin with {first!r}"
            long[first] = n_lines
    assert long == LONG.get(chapter, {}), "shorten the cell, or the list"


REPLICATIONS = [chapter for chapter in CHAPTERS if chapter.startswith("replications/")]


@pytest.mark.parametrize("chapter", REPLICATIONS)
def test_a_replication_keeps_to_its_length(chapter):
    """Without exemption, so with the cell that sets up; a blank line is a line, and what is hidden is also weighed."""
    cells = read_notebook(chapter).cells
    assert sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown") <= 1800
    hidden, visible = [], []
    for cell in code_cells(chapter):
        size = len(cell.source.split("\n")), len(cell.source)
        (hidden if "hide-input" in cell.metadata.get("tags", []) else visible).append(size)
    assert len(visible) <= 40 and max(n_lines for n_lines, _ in visible) <= 15
    for of_hidden, of_visible in zip(zip(*hidden, strict=True), zip(*visible, strict=True), strict=True):
        assert sum(of_hidden) <= (sum(of_hidden) + sum(of_visible)) / 3


@every_chapter
def test_every_value_that_a_reading_names_is_one_that_the_chapter_records(chapter):
    protocol = ROOT / "book" / f"{chapter}.claims.yaml"
    if not protocol.is_file():
        pytest.skip("no protocol")
    sources = [cell.source for cell in code_cells(chapter)]
    sources += [path.read_text("utf-8") for path in (ROOT / "studies").glob("*/*.py")]
    parsed = [node for source in sources for node in ast.walk(ast.parse(source))]
    texts = [node for node in parsed if isinstance(node, ast.Constant | ast.JoinedStr)]
    whole = {node.value for node in texts if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    filled = [
        "".join(re.escape(part.value) if isinstance(part, ast.Constant) else r"[\w-]+" for part in node.values)
        for node in texts
        if isinstance(node, ast.JoinedStr)
    ]
    patterns = [pattern for pattern in filled if re.match("[a-z]+(_|\\\\-)", pattern)]
    for known in claims.read_protocol(protocol.read_text("utf-8")).values():
        for reading in known.readings.values():
            names = {name for _, name, *_ in Formatter().parse(reading) if name}
            made = whole | {text.replace(" ", "_") for text in whole} | {"value", "size", "n", "baseline"}
            assert [name for name in names - made if not any(re.fullmatch(one, name) for one in patterns)] == []


PROTOCOLS = {
    (chapter, id): known
    for chapter in REPLICATIONS
    for id, known in claims.read_protocol((ROOT / "book" / f"{chapter}.claims.yaml").read_text("utf-8")).items()
}


@pytest.mark.parametrize(("chapter", "id"), PROTOCOLS, ids=lambda name: name.rsplit("/", 1)[-1])
def test_every_claim_of_a_replication_can_hold_fail_and_depend_and_has_words_for_each(chapter, id):
    known = PROTOCOLS[chapter, id]
    published = known.evidence.get("published")

    def decide(low, high, model="gpt2-small"):
        estimate = claims.Estimate((low + high) / 2, low, high, 10, "templates")
        return claims.decide(id, known.sentence, estimate=estimate, baseline=0.1, model_name=model, **known.evidence)

    tried = [*((published.value,) if published else ()), -3.0, -0.5, 0.05, 0.8, 4.0]
    verdicts = {value: decide(value, value).verdict for value in tried}
    right, wrong = (next(value for value in tried if verdicts[value] == verdict) for verdict in ("holds", "fails"))
    values = dict.fromkeys(
        set(re.findall(r"{(\w+)}", " ".join(known.readings.values()))) - {"value", "n", "baseline"}, "x"
    )
    read = {}
    for verdict, ends in (("holds", [right, right]), ("fails", [wrong, wrong]), ("depends", sorted((right, wrong)))):
        claim = decide(*ends)
        assert claim.verdict == verdict and verdict in known.readings
        read[verdict] = known.read(claim, values)
    assert len(set(read.values())) == 3 and not any("{" in text for text in read.values())
    if published:
        elsewhere = decide(right, right, model="other")
        assert elsewhere.verdict == "not comparable" and "not comparable" in known.readings
        assert known.read(replace(elsewhere, baseline=None), values)


MODULES = {path.stem: path for package in ("helpers", "studies") for path in sorted((ROOT / package).rglob("*.py"))}


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: page.stem)
def test_prose_names_only_what_there_is(page):
    """`module.name` and paths between single backticks; a changelog also tells of what is gone."""
    if page.name == "CHANGELOG.md":
        return
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        cells = read_notebook(name_of(page)).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    names = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    for module, name in re.findall(r"(?<![\w./])(\w+)\.([a-z]\w+)\b(?!\.)", "\n".join(names)):
        if module in MODULES and name not in ("py", "ipynb", "md"):
            source = MODULES[module].read_text(encoding="utf-8")
            assert re.search(rf"\b{name}\b", source), f"`{module}.{name}` is no more"
    for path in re.findall(r"(?<![\w./<-])(?:helpers|studies|workflow|tests|book)/[\w./-]+\.\w+", "\n".join(names)):
        assert (ROOT / path).exists(), f"{path} is no more"


def test_only_make_record_writes_below_results(tmp_path, monkeypatch):
    """The cell that keeps the data set, run by hand with `save`: it writes where the run's own things go."""
    monkeypatch.setenv("BOOK_OUTPUT", str(tmp_path))
    (cell,) = [
        cell for cell in code_cells(chapters.find_chapter("day12-14_cot_dataset")) if "save_dataset" in cell.source
    ]
    written = []
    kept = SimpleNamespace(
        FILE="cot_faithfulness.parquet",
        save_dataset=lambda table, path, about: written.append(path),
        hash_content=lambda table: "",
    )
    run = SimpleNamespace(parameters={}, value=lambda key, value: None)
    names = {"dataset": kept, "data": [], "model": SimpleNamespace(record=dict), "runs": runs, "run": run}
    exec(cell.source, names | {"passed": {}, "able": [], "columns": [], "save": True})
    assert written == [tmp_path / "cot_faithfulness.parquet"]


@every_chapter
def test_the_readme_lists_the_chapter_with_its_question_time_and_memory(chapter):
    title = read_notebook(chapter).cells[0].source.splitlines()[0].removeprefix("# ")
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
        kind = path.as_posix().removesuffix(f"/{record['chapter']}.json").rsplit("/", 1)[-1]
        assert kind in ("record", f"record+{record['parameters'].get('seed')}")
        assert len(record["model"]["weights_sha256"]) == 64
        assert record["provenance"]["profile"].partition("+")[0] in ("record", "models", "larger")


# The replications on models that know nothing


@pytest.fixture(scope="module")
def know_nothing(tmp_path_factory):
    """Tiny models with random weights and a tokenizer to which every word of the prompts is one token."""
    lines = [line for samples in templates.SENTENCES.values() for sample in samples for line in sample]
    words = {word for line in lines for word in re.sub(r"{\w+}", " ", line).split()}
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


RARE = pytest.mark.rare  # one family a chapter in full is enough for the inner loop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("induction_heads_notebook", "gpt2"),
        ("IOI_notebook", "llama"),
        pytest.param("induction_heads_notebook", "llama", marks=RARE),
        pytest.param("induction_heads_notebook", "qwen2", marks=RARE),
        pytest.param("IOI_notebook", "gpt2", marks=RARE),
        pytest.param("IOI_notebook", "qwen2", marks=RARE),
    ],
)
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
        assert {verdicts[name] for name in verdicts if name.startswith("circuit-")} == {"not run"}
        assert verdicts["names-the-indirect-object"] != "holds"
    else:
        assert verdicts["induction-heads-exist"] == "fails"
        assert verdicts["repetition-lowers-loss"] != "holds"
    assert {verdicts[name] for name in verdicts if name.startswith("published-")} == {"not comparable"}


@pytest.mark.slow
@pytest.mark.rare
@pytest.mark.parametrize("name", ["induction_heads_notebook", "IOI_notebook"])
def test_under_gpt2_smalls_name_every_published_figure_is_compared(name, know_nothing, tmp_path, monkeypatch):
    """With random weights, so that what is compared on that model alone is compared, and comes out wrong."""
    card, home = REGISTRY["gpt2-small"], tmp_path / "home"
    snapshot = home / "hub" / f"models--{card.hub_id.replace('/', '--')}" / "snapshots" / card.revision
    shutil.copytree(know_nothing["gpt2"], snapshot)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    chapter = chapters.find_chapter(name)
    parameters = chapters.profile_parameters("ci", chapter) | {"model_name": "gpt2-small"}
    if name == "induction_heads_notebook":
        parameters["n_training_steps"] = 40
    book.execute(chapter, parameters, tmp_path, profile="by hand")
    record = json.loads((tmp_path / f"{chapter}.json").read_text())
    published = {claim["id"]: claim["verdict"] for claim in record["claims"] if claim["published"]}
    assert len(published) >= 3 and "not comparable" not in published.values()
    assert "holds" not in published.values()
    assert {verdict for id, verdict in published.items() if id != "published-heads"} & {"fails", "depends"}


@pytest.mark.slow
@pytest.mark.rare
def test_with_a_circuit_the_figures_published_for_one_are_compared_too(know_nothing, monkeypatch, capsys):
    """Roles are planted in a search that found none, so that every branch runs that needs a circuit."""
    card, load = REGISTRY["gpt2-small"], helpers.models.load
    search, draw = roles.search, templates.draw_ioi
    monkeypatch.setattr(helpers.models, "load", lambda *_, **__: replace(load(str(know_nothing["gpt2"])), card=card))
    planted = dict.fromkeys(roles.ROLES, ()) | {
        name: ((layer, head),)
        for layer, names in enumerate((("S-inhibition", "induction", "duplicate token"), roles.FINAL_ROLES))
        for head, name in enumerate(names)
    }

    def plant(loaded, data, *rest, **options):
        found = search(loaded, data, *rest, **options)
        effect = -torch.ones(loaded.n_layers, loaded.n_heads, len(data.prompts))
        stage = roles.Stage(effect, 0.0, 0.0, template=data.template)
        limits = {(name, score): 0.0 for name, role in roles.ROLES.items() for score in role.scores}
        return replace(found, stages=dict.fromkeys(roles.RECEIVERS, stage), limits=limits, roles=planted)

    def draw_preferred(loaded, **options):
        """Whichever name the model prefers counts as right, so that there is a preference to keep."""
        data = draw(loaded, **options)
        logits = hooks.capture(loaded, data.prompts, "logits")["logits"][:, 0]
        right = [bool(logits[i, io] > logits[i, s]) for i, (io, s) in enumerate(data.answers)]
        parts = (data.io, data.subject), (data.positions["IO"], data.positions["S1"])
        swapped = [
            tuple(zip(*(pair if so else pair[::-1] for so, *pair in zip(right, *both, strict=True)), strict=True))
            for both in parts
        ]
        (io, subject), (at_io, at_s1) = swapped
        return replace(data, io=io, subject=subject, positions=data.positions | {"IO": at_io, "S1": at_s1})

    monkeypatch.setattr(roles, "search", plant)
    monkeypatch.setattr(templates, "draw_ioi", draw_preferred)
    chapter = chapters.find_chapter("IOI_notebook")
    parameters = chapters.profile_parameters("ci", chapter) | {"model_name": "gpt2-small"}
    names = {}
    for cell in code_cells(chapter):
        exec(cell.source, names)
        names |= parameters if "parameters" in cell.metadata.get("tags", []) else {}
    found = names["run"].claims
    published = {id: claim.verdict for id, claim in found.items() if claim.published}
    assert len(published) == 6 and not {*published.values()} & {"not comparable", "not run"}
    tested = ("circuit-is-complete", "circuit-is-minimal", "one-head-dominates")
    assert {found[id].verdict for id in tested} <= {"holds", "fails", "depends"}
    assert names["run"].values["outcome"].startswith("a circuit of 6 heads")
