"""The documentation site: Sphinx over the Markdown pages of this folder.

Owns how pages become HTML, and when the pages of reference/ are made from the code
(tools/reference.py): at each build, so that they are never older than it. Links that leave docs/
lead to files of the repository, which the site does not have: the site shows their names, and
tests/python/test_docs.py checks that they exist.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

project = "osloxide"
author = "The osloxide authors"
copyright = author
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["README.md", "_build"]
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
nitpicky = True
smartquotes = False  # it makes one dash of the two that an option has
suppress_warnings = ["myst.header"]  # the tables of benchmarks, written by benches/run.py
html_static_path = ["_static"]  # custom.css, which the theme reads
html_theme = "alabaster"
html_theme_options = {
    "description": "OpenStack services on a native core",
    "fixed_sidebar": True,
    "page_width": "1100px",
    "sidebar_width": "250px",
}
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tools"))

import reference  # noqa: E402 - found by the line above

reference.write(HERE / "reference")


def name_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give links what a reader of the site knows: a page's title instead of its file's name, and
    the mere name of a file outside of the site, to which there is nothing to lead."""

    def plain(match: re.Match[str]) -> str:
        text, target = match.groups()
        file = target.partition("#")[0]
        if not file or "://" in file or target.startswith("mailto:"):
            return match[0]
        path = (HERE / docname).parent.joinpath(file).resolve()
        inside = path.parent in (HERE, HERE / "reference")
        if path.suffix == ".md" and inside and path.name != "README.md":
            is_named = text.strip("`").rpartition("/")[2] == path.name
            return f"*[]({target})*" if is_named else match[0]  # Sphinx fills in the title
        if path.suffix in {".svg", ".png"} and inside:
            return match[0]
        return text if text.startswith("`") else f"{text} (`{path.name}`)"

    source[0] = re.sub(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)", plain, source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", name_pages)
