"""What autodoc leaves to be done for the API pages, whose docstrings are written to be read in an editor.

Names are found by their ends, such as `probes.Sweep` or `LoadedModel`, and indented lines are shown as they are.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def keep_text(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before a colon for an attribute's type, and tables from being filled."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]
    for i in reversed(range(2, len(lines))):
        if what == "module" and lines[i].startswith("    ") and not lines[i - 1] and not lines[i - 2].endswith("::"):
            lines[i:i] = ["::", ""]


def skip_aliases(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples that have no docstring of their own."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


def find_entry(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element) -> nodes.Element | None:
    """The one entry whose full name ends like this; a bare name must be a class's, as others may be mere words."""
    target = node["reftarget"]
    if node["refdomain"] == "py" and ("." in target or target[:1].isupper()):
        entries = env.get_domain("py").objects
        found = {(entry.docname, entry.node_id) for name, entry in entries.items() if name.endswith(f".{target}")}
        if len(found) == 1:
            return make_refnode(app.builder, node["refdoc"], *found.pop(), text, target)
    return None


def mend_signatures(app: Sphinx, pagename: str, template: str, context: dict[str, Any], page: object) -> None:
    """A signature over several lines is no list of definitions, which would be one without terms."""
    context["body"] = re.sub(
        r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>",
        lambda found: found[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>"),
        context.get("body", ""),
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.napoleon")  # which brings autodoc
    app.connect("autodoc-process-docstring", keep_text, priority=400)
    app.connect("autodoc-skip-member", skip_aliases)
    app.connect("missing-reference", find_entry)
    app.connect("html-page-context", mend_signatures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
