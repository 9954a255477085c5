"""The API pages: one for each public module, each with an example that prints what its page says."""

import ast
import contextlib
import io
import re

import pytest

import helpers
from helpers import ROOT, models
from workflow import chapters

pytestmark = pytest.mark.usefixtures("one_thread")

API = ROOT / "book" / "reference" / "api"
PUBLIC = sorted(path.stem for path in (ROOT / "helpers").glob("*.py") if path.stem != "__init__")
PAGES = sorted(path.stem for path in API.glob("*.md") if path.stem != "index")


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(code):
    """What code prints, in a namespace of its own."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "example", "exec"), {})
    return printed.getvalue().rstrip()


def test_helpers_say_which_public_modules_there_are():
    listed = re.findall(r"^- `(\w+)`: \w", helpers.__doc__, re.MULTILINE)
    assert sorted(listed) == PUBLIC and len(PUBLIC) <= 12
    assert {path.parent.name for path in (ROOT / "helpers").glob("*/__init__.py")} == {"engine"}
    assert "`engine` is private" in helpers.__doc__


def test_every_public_module_and_every_module_of_the_studies_has_its_entries_on_one_page():
    assert PAGES == sorted([*PUBLIC, "studies"])
    studies = [path for path in (ROOT / "studies").rglob("*.py") if path.stem != "__init__"]
    wanted = [(f"helpers.{name}", name) for name in PUBLIC]
    wanted += [(".".join(path.relative_to(ROOT).with_suffix("").parts), "studies") for path in studies]
    shown = [
        (module, page)
        for page in PAGES
        for module in re.findall(r"automodule:: (\S+)\n   :members:", (API / f"{page}.md").read_text(encoding="utf-8"))
    ]
    assert sorted(shown) == sorted(wanted)


@pytest.mark.parametrize("page", PAGES)
def test_an_example_is_short_and_prints_what_its_page_says(page, monkeypatch, embedded, shown):
    monkeypatch.setattr(models, "load", lambda: embedded)
    (code,) = blocks(API / f"{page}.md", "python")
    (printed,) = blocks(API / f"{page}.md", "text")
    assert len(code.splitlines()) <= 10 and page in code
    assert run(code) == printed.rstrip() != ""
    assert len(shown) == (page == "plots")  # a figure is displayed


def test_twenty_lines_work_on_a_model_of_ones_own(tiny_folders, embedded, monkeypatch):
    (code,) = blocks(ROOT / "book" / "reference" / "use-it-in-your-own-notebook.md", "python")
    assert len(code.splitlines()) <= 20
    shape, head, table = run(code.replace("models.DEFAULT_MODEL", repr(str(tiny_folders["llama"])))).split("\n", 2)
    assert shape == "{'example': 20, 'layer': 2, 'position': 1, 'd_model': 16}"
    assert re.fullmatch(r"head [01]\.[0-3]: -?\d\S*", head)
    assert len(table.splitlines()) == 1 + 2
    monkeypatch.setattr(models, "load", {models.DEFAULT_MODEL: embedded}.get)
    _, head, *rows = run(code).splitlines()
    assert 0.2 < float(head.split()[-1]) < 1
    aurocs = [float(row.split()[2]) for row in rows[1:]]
    assert aurocs[0] < 0.8 and aurocs[-1] > 0.95  # the first layer reads the word, the last one the judgement


# The built pages

SITE = ROOT / "_build" / "html"


@pytest.mark.site
@pytest.mark.parametrize("chapter", chapters.all_chapters())
def test_what_a_chapter_calls_leads_to_its_entry_at_the_first_use(chapter):
    tree = ast.parse((ROOT / "book" / f"{chapter}.py").read_text(encoding="utf-8"))
    imported = {
        name.asname or name.name: f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("helpers", "studies")
        for name in node.names
    }
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = [name for name in called if re.fullmatch(r"\w*[a-z]\w*(\.\w+)?", name)]  # no method of a result
    wanted = {
        ".".join([imported[first], *rest]) for first, *rest in (name.split(".") for name in called) if first in imported
    }
    html = (SITE / "book" / f"{chapter}.html").read_text(encoding="utf-8")
    linked = re.findall(r'<a class="api" href="[^"#]+/reference/api/\w+\.html#([^"]+)"', html)
    assert len(wanted) > 5 and wanted <= set(linked)
    assert all(linked.count(name) == 1 + (name in imported.values()) for name in wanted)


@pytest.mark.site
def test_the_search_knows_every_public_module():
    index = (SITE / "searchindex.js").read_text(encoding="utf-8")
    assert all(re.search(rf'"helpers\.{name}": ?\[\[', index) for name in PUBLIC)
