"""Write environment.yml, the list for conda users, from pyproject.toml.

python -m workflow.environment
"""

import tomllib

from helpers import ROOT

TEXT = """\
# For conda users, see SETUP.md. Written by `make environment.yml` from pyproject.toml: change that.
name: {name}
channels: [conda-forge]
dependencies:
  - python{python}
  - pip
  - pip:
      # The next line brings torch without CUDA; leave it out for the CUDA build.
      - --extra-index-url https://download.pytorch.org/whl/cpu
"""


def list_environment() -> str:
    """The text of environment.yml: the package's own dependencies, then those of every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    head = TEXT.format(name=project["name"], python=project["requires-python"])
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return head + "".join(f"      - {dependency}\n" for group in groups for dependency in group)


if __name__ == "__main__":
    (ROOT / "environment.yml").write_text(list_environment(), encoding="utf-8")
