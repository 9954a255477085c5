"""What notebooks as files must keep to, asked of the book's chapters and, in a book made to fail, of what is wrong."""

import nbformat

from workflow import book


def read_notebook(chapter):
    return nbformat.read(book.ROOT / "book" / f"{chapter}.ipynb", as_version=4)


def check_pair(chapter):
    text = (book.ROOT / "book" / f"{chapter}.ipynb").read_text(encoding="utf-8")
    assert text == book.paired(chapter), "run `make pair`"


def check_sizes():
    notebooks = [*(book.ROOT / "book").rglob("*.ipynb"), *(book.ROOT / "_build" / "runs").rglob("*.ipynb")]
    assert notebooks
    assert not [path for path in notebooks if path.stat().st_size > 5e6]
