"""The site of these pages: `make docs` writes build/site. Sphinx with MyST, without a network."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

from fr_edge import __version__

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

project = "fr-edge"
release = version = __version__
author = "the fr-edge authors"
copyright = "the fr-edge authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "deflist"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["man"]

html_theme = "furo"
html_title = f"fr-edge {version}"
html_copy_source = False
html_show_sphinx = False
html_search_scorer = str(ROOT / "docs" / "search_scorer.js")

add_module_names = False
default_role = "literal"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_use_ivar = True

nitpicky = True
# Types in signatures: other projects' have sites that a build without a network cannot ask, and the
# parts of results are fields of the JSON documents. References that people write are all checked.
nitpick_ignore_regex = [("py:class", ".*"), ("py:obj", "typing.*"), ("py:exc", "^[A-Z][A-Za-z]*$")]


# Pages whose text stands outside docs/, where people and indexes look for it.
TEXT_OUTSIDE = {
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "vulnerabilities": "SECURITY.md",
    "examples": "examples/README.md",
}


def setup(app: Sphinx) -> None:
    """Links to files outside docs/ work where the repository is browsed; here they are their text, or
    lead to the page that has it."""
    app.connect("source-read", _read_text_outside)
    app.connect("source-read", _unlink_files_outside)
    app.connect("html-page-context", _give_headings_a_level, priority=900)


def _read_text_outside(app: Sphinx, page: str, source: list[str]) -> None:
    if file := TEXT_OUTSIDE.get(page):
        app.env.note_dependency(str(ROOT / file))
        text = (ROOT / file).read_text(encoding="utf-8")
        # What is beside the file lies above docs/.
        source[0] = re.sub(r"\]\((?!https?:|#|\.\./)(?!docs/)", f"]({_above(file)}", text)
        source[0] = re.sub(r"\]\((?:\.\./)*docs/", "](", source[0])


def _above(file: str) -> str:
    folder = Path(file).parent.as_posix()
    return "../" if folder == "." else f"../{folder}/"


def _unlink_files_outside(app: Sphinx, page: str, source: list[str]) -> None:
    up = "../" * page.count("/")
    for name, file in TEXT_OUTSIDE.items():
        source[0] = source[0].replace(f"]({up}../{file})", f"]({up}{name}.md)")
    source[0] = re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?:[A-Z]|examples/)[^)]*\)", r"\1", source[0])


def _give_headings_a_level(
    app: Sphinx, page: str, template: str, context: dict[str, object], tree: object
) -> None:
    """Furo's captions are headings without a level, which screen readers need (axe-core)."""
    menu = str(context.get("furo_navigation_tree", ""))
    context["furo_navigation_tree"] = menu.replace(
        'role="heading"', 'role="heading" aria-level="2"'
    )
    # What may scroll sideways on a narrow screen can be reached by the keyboard.
    body = str(context.get("body", ""))
    body = re.sub(r'<pre\b|<div(?= class="table-wrapper)', r'\g<0> tabindex="0"', body)
    context["body"] = body
