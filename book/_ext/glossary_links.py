"""Link the first use of each term of the glossary in a chapter, with its definition to be read in place.

Authors write no links: a term is found by its name in the glossary, by its synonyms there, and with a plural s.
The definition appears when the pointer rests on the link or the keyboard reaches it (`book.css` places it).
"""

from __future__ import annotations

import re
from html import escape

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

GLOSSARY = "book/reference/glossary"
CHAPTERS = ("book/replications/", "book/projects/")
NOT_PROSE = (nodes.title, nodes.reference, nodes.literal, nodes.raw, nodes.math, nodes.FixedTextElement)


def definitions(app: Sphinx) -> dict[str, tuple[str, str]]:
    """For each term, in lower case, its anchor and its definition in plain text."""
    found = {}
    for item in app.env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        definition = item[-1].deepcopy()
        for citation in list(definition.findall(addnodes.pending_xref)):
            citation.parent.remove(citation)
        text = re.sub(r"\s+([.,;:])", r"\1", " ".join(definition.astext().split()))
        for term in item.findall(nodes.term):
            # All names of an entry share one anchor, so that an entry is linked once.
            found[term.astext().split("\n")[0].lower()] = (item[0]["ids"][0], text)
    return found


def link_first_uses(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if not docname.startswith(CHAPTERS) or GLOSSARY not in app.env.all_docs:
        return
    terms, seen = definitions(app), set()
    names = "|".join(map(re.escape, sorted(terms, key=lambda name: (-len(name), name))))
    pattern = re.compile(rf"(?<![\w-])({names})(s?)(?![\w-])", re.IGNORECASE)
    page = app.builder.get_relative_uri(docname, GLOSSARY)
    for text in list(doctree.findall(nodes.Text)):
        if is_prose(text):
            parts, end = [], 0
            for match in pattern.finditer(text):
                anchor, definition = terms[match[1].lower()]
                if anchor not in seen:
                    seen.add(anchor)
                    link = (
                        f'<a class="term" href="{page}#{anchor}" data-definition="{escape(definition)}">'
                        f"{escape(match[0])}</a>"
                    )
                    parts += [nodes.Text(text[end : match.start()]), nodes.raw("", link, format="html")]
                    end = match.end()
            if parts:
                text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def is_prose(text: nodes.Text) -> bool:
    """Whether a text stands in a paragraph, and in nothing that is a link, code or a heading."""
    inside, node = False, text.parent
    while node is not None:
        if isinstance(node, NOT_PROSE):
            return False
        inside = inside or isinstance(node, nodes.paragraph)
        node = node.parent
    return inside


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", link_first_uses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
