"""The buttons that need the repository's address: Colab, edit this page, the repository itself.

All come from `repository.url` in `_config.yml`, and none is shown while that is empty.
"""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.config import Config


def add_buttons(app: Sphinx, config: Config) -> None:
    options = config.html_theme_options
    if options.get("repository_url"):
        options["use_repository_button"] = options["use_edit_page_button"] = True
        options.setdefault("launch_buttons", {})["colab_url"] = "https://colab.research.google.com"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", add_buttons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
