"""How large a picture is when a model looks at it: the model's own resize and crop, or whole at a size of its own."""

from operator import index
from typing import Annotated, Literal

from clip_anatomy.argument_kinds import OWN_CHECK
from clip_anatomy.errors import BadSpec
from clip_anatomy.images.preprocess import Preprocess

__all__ = ["Size", "describe_size", "parse_size", "sized"]

LARGEST_CELLS = 2**16  # patches of one picture: beyond it a picture is a slip of the finger, not a map
MOST_CELLS = 4096  # patches of a picture whose size nobody named: attention takes their square

Size = Annotated[int | tuple[int, int] | Literal["whole"] | None, OWN_CHECK]
"""None: the model's own resize and crop. "whole": nothing cropped, the model's own short side, fewer pixels for very long pictures.
A number: the short side in pixels, nothing cropped. (row, col): squashed to these."""


def sized(preprocess: Preprocess, patch: tuple[int, int], picture: tuple[int, int], size: Size) -> Preprocess:
    """Return the preprocessing for one picture: the model's own, or to whole patches without a crop.

    Args:
        preprocess: the model's own.
        patch: (row, col) pixels of one patch.
        picture: its (row, col) pixels.
        size: see `Size`.

    Raises:
        BadSpec: a size that is none, or too large.
    """
    if size is None:
        return preprocess
    wanted = _pixels(preprocess, patch, picture, size)
    sides = [max(1, round(side / cell)) * cell for side, cell in zip(wanted, patch, strict=True)]
    if sides[0] * sides[1] > LARGEST_CELLS * patch[0] * patch[1]:
        raise BadSpec(
            f"size {size!r} makes {sides[0]} × {sides[1]} pixels of this picture. Type a smaller one: size={preprocess.size[0]}"
        )
    return preprocess.squashed((sides[0], sides[1]))


def _pixels(
    preprocess: Preprocess, patch: tuple[int, int], picture: tuple[int, int], size: int | tuple[int, int] | str
) -> tuple[float, float]:
    """(row, col) before they are rounded to whole patches."""
    if isinstance(size, str) and size == "whole":
        scale = min(preprocess.size) / min(picture)
        most = MOST_CELLS * patch[0] * patch[1]
        scale *= min(1.0, (most / (picture[0] * picture[1] * scale * scale)) ** 0.5)
        return picture[0] * scale, picture[1] * scale
    try:
        given = [index(side) for side in (size if isinstance(size, tuple | list) else (size,))]  # pyright: ignore[reportArgumentType]
    except TypeError:
        given = []
    if len(given) not in (1, 2) or min(given) < 1:
        raise BadSpec(
            f"size {size!r}: pixels were expected. Type: size=336 (the short side), size=(336, 448) or size='whole'"
        )
    if len(given) == 2:
        return float(given[0]), float(given[1])
    scale = given[0] / min(picture)
    return picture[0] * scale, picture[1] * scale


def parse_size(text: str | None) -> Size:
    """Read a size as typed: nothing or "crop", "whole", "336" or "336x448" (row x col).

    Raises:
        BadSpec: none of these.

    Example:
        >>> parse_size("336x448"), parse_size("whole"), parse_size(None)
        ((336, 448), 'whole', None)
    """
    if text is None or text == "crop":
        return None
    if text == "whole":
        return "whole"
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise BadSpec(
            f"size={text!r}: pixels were expected. Type size=336 (short side), size='336x448' or size='whole'"
        )
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def describe_size(size: Size, preprocess: Preprocess) -> str:
    """Say in words what the model looks at.

    Example:
        >>> from clip_anatomy.images.preprocess import OPENAI_MEAN, OPENAI_STD
        >>> describe_size("whole", Preprocess(size=(32, 32), mean=OPENAI_MEAN, std=OPENAI_STD))
        'the whole picture, short side 32'
    """
    rows, cols = preprocess.size
    if size is None:
        return f"the model's crop, {rows} × {cols} pixels"
    if isinstance(size, tuple):
        return f"the whole picture, squashed to {size[0]} × {size[1]}"
    return f"the whole picture, short side {min(rows, cols) if size == 'whole' else size}"
