"""Show chapters as they were run: `jupyter-book build .` reads the sources, this adds the outputs.

The page of a chapter is its present source with the outputs of its executed copy below the code cells, so
prose can change without a run, while a changed code cell is reported. The copy is that of the profile
that was built last (`_build/runs/<profile>/`), or that in the folder `BOOK_CUSTOM_RUN` where it has one. The
scripts behind the figures are copied into the site once, as no page may ask the network for anything.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import jupytext
import nbformat
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
# For the extensions that follow: `workflow` is no installed package.
sys.path.insert(0, str(ROOT))
LOG = logging.getLogger(__name__)
SCRIPTS = {  # name in the site: file in site-packages, and what a page that needs it holds
    "plotly.min.js": ("plotly/package_data/plotly.min.js", "Plotly.newPlot"),
    "circuitsvis.js": ("circuitsvis/dist/cdn/iife.js", "CircuitsVis.render"),
    "mathjax.js": ("sphinx-mathjax-offline/static/mathjax/tex-svg.js", ""),
}
NOT_RUN = """
```{admonition} This chapter has not been run in this build
`make book` runs it and shows its figures and numbers here.
```
"""


LEFT = """
```{{admonition}} This chapter can't be run on this model
{reason}
```
"""


def executed_copy(chapter: str) -> Path | None:
    """The executed notebook of a chapter (its path below `book/`, without suffix), if there is one."""
    shown = ROOT / "_build" / "profile"
    profile = shown.read_text(encoding="utf-8") if shown.is_file() else "embedded"
    folders = [os.environ.get("BOOK_CUSTOM_RUN", ""), f"_build/runs/{profile}"]
    copies = [ROOT / folder / f"{chapter}.ipynb" for folder in folders if folder]
    return next((copy for copy in copies if copy.is_file()), None)


def with_outputs(source: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """`source` with the outputs of the same code cells in `executed`; None where these differ."""
    ours = [cell for cell in source.cells if cell.cell_type == "code"]
    theirs = [
        cell
        for cell in executed.cells
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    if [cell.source for cell in ours] != [cell.source for cell in theirs]:
        return None
    for cell, run in zip(ours, theirs, strict=True):
        cell.outputs, cell.execution_count = run.outputs, run.execution_count
    return source


def read_chapter(app: Sphinx, docname: str, content: list[str]) -> None:
    """Replace the text of a `.py` page by a notebook that has its outputs."""
    if not app.env.doc2path(docname).endswith(".py"):
        return
    source = jupytext.reads(content[0], fmt="py:percent")
    heading = source.cells[0].source.splitlines()[0]
    page, message = None, NOT_RUN
    if copy := executed_copy(docname.removeprefix("book/")):
        app.env.note_dependency(str(copy))
        executed = nbformat.read(copy, as_version=4)
        if reason := executed.metadata.get("not_run"):
            message = LEFT.format(reason=re.sub(r"([\\`*_{}\[\]<>$#])", r"\\\1", reason))
        elif (page := with_outputs(source, executed)) is None:
            LOG.warning("%s: its code has changed since it was run; `make book` runs it again", docname)
    if page is None:
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"{heading}\n{message}")])
    content[0] = nbformat.writes(page)


def add_page_scripts(app: Sphinx, pagename: str, template: str, context: dict, doctree: object) -> None:
    """Load a figure's script on the pages that show such a figure, and on no other."""
    for name, (_, mark) in SCRIPTS.items():
        if mark and mark in context.get("body", ""):
            app.add_js_file(name, priority=100)


def finish_site(app: Sphinx, error: Exception | None) -> None:
    """Copy the scripts, each once for the whole site, and make the pages work when opened as files."""
    if error is not None or app.builder.format != "html":
        return
    site, packages = Path(app.outdir), Path(sysconfig.get_paths()["purelib"])
    for name, (path, _) in SCRIPTS.items():
        shutil.copyfile(packages / path, site / "_static" / name)
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        # The theme preloads its icon fonts, which a browser refuses, with an error, for a page opened as a file.
        text = re.sub(r'<link rel="preload" as="font"[^>]*>\n?', "", text)
        # Its buttons that unfold the contents have no name for those who do not see the arrow.
        text = text.replace(
            '<summary><span class="toctree-toggle"',
            '<summary aria-label="Show or hide the pages below"><span class="toctree-toggle"',
        )
        # A list whose entries are no list items is none to a screen reader.
        text = text.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read_chapter, priority=1)
    app.connect("html-page-context", add_page_scripts)
    app.connect("build-finished", finish_site)
    app.config.mathjax_path = "mathjax.js"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
