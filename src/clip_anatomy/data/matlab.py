"""One table of numbers from a MATLAB 5 file, as `save` writes it without "-v7.3".

SciPy's `loadmat` reads far more, but a damaged file can end the whole process in it; here it is named and the rest is done.
Format: "MAT-File Format" of MathWorks, level 5. A header of 128 bytes, then elements: a tag of type and length (of at most four
bytes: in the tag itself), data up to a multiple of eight. A variable is an element of elements: flags, sizes, name, values
column by column; it may be packed by zlib.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from clip_anatomy.errors import BadInput

__all__ = ["matlab_table"]

HEADER = 128
LARGEST = 2**28  # bytes of a packed variable
MATRIX, PACKED = 14, 15
NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
NUMERIC = range(6, 16)  # classes of arrays: double to uint64; the others are cells, structures, texts, sparse tables


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
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}). Bring back the original file") from error
    if raw[:10] == b"MATLAB 7.3":
        raise BadInput(f"{path} is a MATLAB 7.3 file. Type the folder with the original files, or save it with -v7")
    try:
        if raw[126:128] not in (b"IM", b"MI"):
            raise _Damaged("no MATLAB 5 file")
        order = "<" if raw[126:128] == b"IM" else ">"
        for kind, data in _elements(raw[HEADER:], order):
            inner = next(iter(_elements(_unpacked(data), order)), (0, b"")) if kind == PACKED else (kind, data)
            if inner[0] == MATRIX and (table := _variable(inner[1], order, name)) is not None:
                return table
    except Exception as error:  # whatever a damaged length or kind leads to
        raise BadInput(f"{path} cannot be read ({error}). Bring back the original file") from error
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


def _variable(data: bytes, order: str, name: str) -> Shaped[np.ndarray, "row col"] | None:
    """Return the values of a variable, None if it is another one."""
    parts = _elements(data, order)
    (_, flags), (_, sizes), (_, label) = (next(parts, (0, b"")) for _ in range(3))
    if label != name.encode("ascii"):
        return None
    kind, stored = next(parts, (0, b""))
    if len(flags) < 4 or struct.unpack_from(f"{order}I", flags)[0] & 0xFF not in NUMERIC or kind not in NUMBERS:
        raise _Damaged(f"{name} is no table of numbers")
    shape = np.frombuffer(sizes[: len(sizes) // 4 * 4], f"{order}i4")
    dtype = np.dtype(order + NUMBERS[kind])
    if len(shape) != 2 or (shape < 0).any() or int(shape[0]) * int(shape[1]) * dtype.itemsize != len(stored):
        raise _Damaged(f"{name} is no table of row × col, or not whole")
    return np.frombuffer(stored, dtype).reshape(shape, order="F")
