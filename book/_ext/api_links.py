"""Link names of `helpers` and `studies` in the code of a page to the API pages, each where it is first used.

A name means what the import statements of the page say. One that is imported by itself is linked there as well.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from contextlib import suppress
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

BLOCK = re.compile(r'<div class="highlight-i?python3?\b.+?</pre>', re.DOTALL)
DOT = '<span class="o">.</span>'
NAME = re.compile(
    r'(?<!DOT)<span class="n">\w+</span>(?:DOT<span class="n">\w+</span>)*'.replace("DOT", re.escape(DOT))
)


def find_imports(page: nodes.document) -> dict[str, str]:
    """The full name of each name that the code of a page imports."""
    found = {}
    for block in page.findall(nodes.literal_block):
        with suppress(SyntaxError):  # of what is no Python, or has magics in it
            for node in ast.walk(ast.parse(block.astext())):
                if isinstance(node, ast.ImportFrom):
                    found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return found


def link_first_uses(app: Sphinx, pagename: str, template: str, context: dict[str, Any], page: nodes.document) -> None:
    entries, imports = app.env.get_domain("py").objects, find_imports(page) if page else {}
    seen: Counter[str] = Counter()

    def link(match: re.Match[str]) -> str:
        first, *rest = re.findall(r">(\w+)<", match[0])
        names = [".".join([imports.get(first, ""), *rest[:n]]) for n in range(len(rest) + 1)]  # a, a.b, a.b.c
        known = [n for n, name in enumerate(names) if name in entries]
        if not known or (rest and entries[names[known[-1]]].objtype == "module"):
            return match[0]
        last, name = known[-1], names[known[-1]]
        seen[name] += 1
        if seen[name] > (1 if last else 2):
            return match[0]
        url = f"{app.builder.get_relative_uri(pagename, entries[name].docname)}#{entries[name].node_id}"
        spans = match[0].split(DOT)
        return DOT.join([f'<a class="api" href="{url}">{DOT.join(spans[: last + 1])}</a>', *spans[last + 1 :]])

    if imports:
        context["body"] = BLOCK.sub(lambda block: NAME.sub(link, block[0]), context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", link_first_uses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
