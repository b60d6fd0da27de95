"""The manner of every result: `to_dict`, `summary`, `save`, `figure`, a repr of one screen, HTML in notebooks.

A result holds numbers. How it is drawn lives in `report/`, in the module that its class names; without that folder the
numbers, `to_dict` and `summary` still work.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import import_module
from inspect import signature
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, cast

from clip_anatomy.atomic_output import atomic_output
from clip_anatomy.errors import BadInput, visible
from clip_anatomy.progress import say
from clip_anatomy.public_functions import public

LONGEST = 80  # letters of one field in a repr


@public
class Result:
    """Give a dataclass of numbers the same verbs as every other result. Declare it with `@dataclass(frozen=True, repr=False)`.

    Attributes:
        presenter: module of `clip_anatomy.report` that draws it: `write(result, output)` into a folder of its `KIND` (or `save(result,
            folder)`, where that is not all), `figure(result)`, `html(result)`, those that make sense. Empty where there is nothing to draw.
    """

    presenter: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        raise NotImplementedError

    def summary(self) -> str:
        """Return what matters as text of one screen."""
        raise NotImplementedError

    def save(self, folder: str | Path, **options: Any) -> Path:
        """Write page, pictures and numbers into a folder, whole or not at all.

        Args:
            folder: to make or to fill.
            **options: of what draws it: `pictures=False` leaves away picture files, `pictures=True` draws them all, for explanations,
                maps and masks.

        Raises:
            OutputError: the folder cannot be written, or holds something else.
        """
        write = self._drawing("write")
        if write is None or self._drawing("save") is not None:
            return self._drawn_by("save", Path(folder), **options)
        self._refuse_other(write, options)
        with atomic_output(Path(folder), self._drawing("KIND")) as output:
            write(self, output, **options)
        return Path(folder)

    def figure(self) -> Any:
        """Draw it (extra `figures`)."""
        return self._drawn_by("figure")

    def show(self) -> None:
        """Show it: in a notebook as HTML, else as its summary in the terminal."""
        html = self._repr_html_()
        if html is not None and (shown := _notebook()) is not None:
            shown(html)
        else:
            say(self.summary())

    def _repr_html_(self) -> str | None:  # None: the notebook shows the repr
        return self._drawn_by("html") if self._drawing("html") is not None else None

    def __repr__(self) -> str:  # noqa: D105
        return visible(self.summary())

    def _drawing(self, verb: str) -> Any:
        return getattr(import_module(f"clip_anatomy.report.{self.presenter}"), verb, None) if self.presenter else None

    def _drawn_by(self, verb: str, *args: Any, **options: Any) -> Any:
        name, draw = type(self).__name__, self._drawing(verb)
        if draw is None:
            raise BadInput(f"a {name} has no {verb}. Its numbers are in {name}.to_dict()")
        self._refuse_other(draw, options)
        return draw(self, *args, **options)

    def _refuse_other(self, draw: Any, options: dict[str, Any]) -> None:
        """Raise BadInput for an option that what draws this result does not take."""
        known = [one.name for one in signature(draw).parameters.values() if one.default is not one.empty]
        unknown = [name for name in options if name not in known]
        if unknown:
            takes = f"takes {', '.join(f'{name}=' for name in known)}" if known else "takes no options"
            raise BadInput(f"{type(self).__name__}.save: {unknown[0]}= is not known, it {takes}. Leave it away")


class Compact:
    """Give a dataclass of tensors a repr of one line: their shapes, and everything else as it is. Declare it with `repr=False`.

    Example:
        >>> import torch
        >>> from dataclasses import make_dataclass
        >>> make_dataclass("Mean", ["values", "count"], bases=(Compact,), repr=False)(torch.zeros(2, 3), 5)
        Mean(values=[2, 3], count=5)
    """

    def __repr__(self) -> str:  # noqa: D105
        pieces: list[str] = []
        for one in fields(cast("Any", self)):
            if one.repr:
                value = getattr(self, one.name)
                shape = getattr(value, "shape", None)
                text = repr(value) if shape is None else str(list(shape))
                pieces.append(f"{one.name}={text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'}")
        return f"{type(self).__name__}({', '.join(pieces)})"


def _notebook() -> Callable[[str], None] | None:
    """Return what shows HTML in a notebook; None outside of one."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    display = import_module("IPython.display")
    return lambda html: display.display(display.HTML(html))


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", wide: int = 100, groups: bool = False
) -> str:
    """Return rows as a table of text.

    Args:
        columns: their titles; those of numbers begin with ">".
        rows: as many cells as columns.
        title: above it.
        wide: most letters of a line; longer cells are folded.
        groups: a row with something in its first cell begins a group, set apart from the one before.

    Example:
        >>> print(text_table(["text", ">cosine"], [["a dog", "+0.31"], ["a cat", "+0.2"]]))
          text    cosine
         ────────────────
          a dog    +0.31
          a cat     +0.2
        >>> print(text_table(["text", ">cosine"], [["a dog", "+0.31"]], title="a title that is longer than its table").splitlines()[0])
        a title that is longer than its table
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(pad_edge=True, box=box.SIMPLE_HEAD)
    for at, name in enumerate(columns):
        number = name.startswith(">")
        most = 30 if groups and at == 0 else None
        view.add_column(
            name.lstrip(">"), justify="right" if number else "left", overflow="fold", no_wrap=number, max_width=most
        )
    for at, row in enumerate(rows):
        if groups and at and row[0]:
            view.add_section()
        view.add_row(*(Text(visible(cell).replace("\n", "\\n")) for cell in row))  # as names of files may hold them
    console = Console(file=StringIO(), width=wide, color_system=None, highlight=False, force_terminal=False)
    with console.capture() as printed:
        if title:  # by itself: as the table's it would be folded where the table ends
            console.print(Text(visible(title)))
        console.print(view)
    return "\n".join(line.rstrip() for line in printed.get().splitlines()).strip("\n")
