"""One table of numbers, or one structure, from a MATLAB 5 file, as `save` writes it without "-v7.3".

SciPy's `loadmat` reads far more, but a damaged file can end the whole process in it; here it is named and the rest is done.
Format: "MAT-File Format" of MathWorks, level 5. A header of 128 bytes, then elements: a tag of type and length (of at most four
bytes: in the tag itself), data up to a multiple of eight. A variable is an element of elements: flags, sizes, name, values
column by column; it may be packed by zlib.
"""

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Shaped

from clip_anatomy.errors import BadInput, reading
from clip_anatomy.files import opened

__all__ = ["matlab_records", "matlab_table"]

HEADER = 128
LARGEST = 2**28  # bytes of a packed variable
MATRIX, PACKED, WIDE = 14, 15, 4  # types of elements; text may be stored 16 bits wide
STRUCTURE, TEXT = 2, 4  # classes of arrays
NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
NUMERIC = range(6, 16)  # classes of arrays: double to uint64; the others are cells, structures, texts, sparse tables


_Element = tuple[int, bytes]
Made = TypeVar("Made")


class _Damaged(ValueError):
    pass


def matlab_table(path: Path, name: str) -> Shaped[np.ndarray, "row col"]:
    """Read one variable.

    Args:
        path: the file.
        name: of the variable.

    Returns:
        Its numbers, row × col, in the type that they are stored in.

    Raises:
        BadInput: unreadable, damaged, of another version, without that variable, or the variable is no table of numbers.
    """
    return _read(path, name, _table)


def matlab_records(path: Path, name: str) -> list[dict[str, Any]]:
    """Read one structure array: a mapping for each of its elements, fields that hold neither one number nor a text None.

    Raises:
        BadInput: as `matlab_table`.
    """
    return _read(path, name, _records)


def _read(path: Path, name: str, made_of: Callable[[list[_Element], str, str], Made]) -> Made:
    """Find one variable of a file, and make something of its elements."""
    with reading(path, "Bring back the original file"):
        with opened(path) as file:
            raw = file.read()
        if raw[:10] == b"MATLAB 7.3":
            raise BadInput(f"{path} is a MATLAB 7.3 file. Type the folder with the original files, or save it with -v7")
        if raw[126:128] not in (b"IM", b"MI"):
            raise _Damaged("no MATLAB 5 file")
        order = "<" if raw[126:128] == b"IM" else ">"
        for kind, data in _elements(raw[HEADER:], order):
            inner = next(iter(_elements(_unpacked(data), order)), (0, b"")) if kind == PACKED else (kind, data)
            parts = [*_elements(inner[1], order)] if inner[0] == MATRIX else []
            if len(parts) > 3 and parts[2][1] == name.encode("ascii"):
                return made_of(parts, order, name)
    raise BadInput(f"{path} holds no {name}. Bring back the original file")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        first, second = struct.unpack_from(f"{order}II", data, at)
        small = first >> 16
        kind, length, start = (first & 0xFFFF, small, at + 4) if small else (first, second, at + 8)
        if start + length > len(data) or (small > 4):
            raise _Damaged("it ends too early")
        yield kind, data[start : start + length]
        at = at + 8 if small else start + length + (0 if kind == PACKED else -length % 8)


def _unpacked(data: bytes) -> bytes:
    inflater = zlib.decompressobj().decompress(data, LARGEST)
    if len(inflater) == LARGEST:
        raise _Damaged("a variable of more than 256 MB")
    return inflater


def _kind(flags: bytes, order: str) -> int:
    """Return the class of an array: structure, text, double …"""
    return struct.unpack_from(f"{order}I", flags)[0] & 0xFF if len(flags) >= 4 else 0


def _shape(sizes: bytes, order: str) -> tuple[int, ...]:
    return tuple(np.frombuffer(sizes[: len(sizes) // 4 * 4], f"{order}i4").tolist())


def _table(parts: list[_Element], order: str, name: str) -> Shaped[np.ndarray, "row col"]:
    (_, flags), (_, sizes), _, (kind, stored) = parts[:4]
    if _kind(flags, order) not in NUMERIC or kind not in NUMBERS:
        raise _Damaged(f"{name} is no table of numbers")
    shape, dtype = _shape(sizes, order), np.dtype(order + NUMBERS[kind])
    if len(shape) != 2 or min(shape) < 0 or shape[0] * shape[1] * dtype.itemsize != len(stored):
        raise _Damaged(f"{name} is no table of row × col, or not whole")
    return np.frombuffer(stored, dtype).reshape(shape, order="F")


def _records(parts: list[_Element], order: str, name: str) -> list[dict[str, Any]]:
    """Read the length of a name, all names, and then the fields of each element, as arrays without a name."""
    (_, flags), (_, sizes), _, (_, wide), (_, names), *values = *parts, (0, b"")
    length = struct.unpack_from(f"{order}i", wide)[0]
    if _kind(flags, order) != STRUCTURE or length < 1:
        raise _Damaged(f"{name} is no structure")
    fields = [
        names[at : at + length].split(b"\0")[0].decode("ascii")
        for at in range(0, len(names) // length * length, length)
    ]
    cells = [_cell(data, order) for kind, data in values if kind == MATRIX]
    if not fields or len(cells) != len(fields) * math.prod(_shape(sizes, order)):
        raise _Damaged(f"{name} is not whole")
    return [dict(zip(fields, cells[at : at + len(fields)], strict=True)) for at in range(0, len(cells), len(fields))]


def _cell(data: bytes, order: str) -> float | str | None:
    parts = [*_elements(data, order)]
    if len(parts) < 4:
        return None
    kind, stored = parts[3]
    if _kind(parts[0][1], order) == TEXT:
        return stored.decode("utf-16-le" if order == "<" else "utf-16-be") if kind == WIDE else stored.decode("utf-8")
    one = kind in NUMBERS and len(stored) == np.dtype(NUMBERS[kind]).itemsize
    return float(np.frombuffer(stored, order + NUMBERS[kind])[0]) if one else None
