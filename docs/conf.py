"""Build the documentation as a site: `python -m sphinx -W docs site`.

The pages are the Markdown files beside this one, and the notebooks of examples/. Two are made anew by each build, so that they cannot say
something else than the code: the reference of the public names, from `__init__.pyi` and docstrings, and that of the command line, from its help.
"""

import io
import re
from pathlib import Path

from rich.console import Console

import clip_anatomy as ca
from clip_anatomy.cli.main import VERBS, app

project, author, copyright = "clip-anatomy", "the clip-anatomy team", "2026, the clip-anatomy team (MIT)"
version = release = ca.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme, html_title = "furo", "clip-anatomy"
html_extra_path = ["llms.txt"]
root_doc, source_suffix, exclude_patterns = "index", {".md": "markdown"}, ["_build"]
myst_enable_extensions, myst_heading_anchors = ["colon_fence", "dollarmath"], 4
autodoc_typehints, autodoc_member_order, autodoc_preserve_defaults = "description", "bysource", True
napoleon_google_docstring, napoleon_numpy_docstring, napoleon_use_rtype = True, False, False
suppress_warnings = ["myst.xref_missing", "ref.python"]  # links to files of the repository; names that two classes have
default_role = "code"  # one backtick in a docstring, as in Markdown
smartquotes = False  # two hyphens begin an option

HERE = Path(__file__).parent


def api_page() -> str:
    """List every public name with its docstring: functions first, then the classes of their arguments and results."""
    functions = [name for name in ca.__all__ if name[0].islower() and name != "errors"]
    classes = [name for name in ca.__all__ if name[0].isupper()]
    listed = [f".. autofunction:: clip_anatomy.{name}" for name in functions]
    listed += [f".. autoclass:: clip_anatomy.{name}\n   :members:\n" for name in classes]
    listed += [".. automodule:: clip_anatomy.errors\n   :members:\n"]
    body = "\n".join(listed)
    return f"# Python reference\n\nEvery public name. Functions of verbs have the options and defaults of the command line.\n\n```{{eval-rst}}\n{body}\n```\n"


def cli_page() -> str:
    """Print the help of every verb, as the terminal shows it."""
    pages = ["# Command line reference\n\nEach verb is a Python function of the same name with the same options.\n"]
    for verb in VERBS:
        screen = io.StringIO()
        app(verb).help_print([verb], console=Console(file=screen, width=86, no_color=True, legacy_windows=False))
        text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).rstrip()
        pages.append(f"## {verb}\n\n```text\n{text}\n```\n")
    return "\n".join(pages)


def notebook_page(notebook: Path) -> str:
    """Show a notebook's cells as code, without the lines that only jupytext reads."""
    text = notebook.read_text(encoding="utf-8").split("---\n", 2)[2]
    return text.replace("{code-cell} python", "python")


NOTEBOOKS = {f"notebook-{path.stem}": path for path in sorted((HERE.parent / "examples" / "notebooks").glob("*.md"))}
for name, page in (
    ("api", api_page()),
    ("cli", cli_page()),
    *((name, notebook_page(path)) for name, path in NOTEBOOKS.items()),
):
    (HERE / f"{name}.md").write_text(page, encoding="utf-8")


SHELVES = {
    "Start": ["tutorial", "how-to", "gallery", "coming-from", "troubleshooting", *NOTEBOOKS],
    "One picture, one text": ["explain", "studio", "maps", "segment", "pairs", "refer", "concepts", "second-order"],
    "Many pictures": ["store", "atlas", "retrieval", "ablate", "repair", "edit", "align", "scale"],
    "Measured": ["sanity", "protocols", "datasets"],
    "Reference": ["cli", "api", "models", "resnet", "integrations", "reliability", "architecture", "decisions"],
}
"""The site's list of pages; a page that is on no shelf is a warning, and so fails the build."""


def setup(app: object) -> None:
    """Give the index its list of pages, which on GitHub would show as code."""
    tree = "".join(
        f"\n\n```{{toctree}}\n:hidden:\n:caption: {shelf}\n" + "\n".join(pages) + "\n```\n"
        for shelf, pages in SHELVES.items()
    )

    def read(_: object, name: str, source: list[str]) -> None:
        if name == "index":
            source[0] = source[0].replace("../examples/notebooks/", "notebook-") + tree

    app.connect("source-read", read)  # type: ignore[attr-defined]
