"""Read the plain values of a pickle file without running anything in it.

A pickle is a program. Python's own reader runs it, and with it whatever function the file names. Here its instructions are
only *parsed* (`pickletools.genops`, which runs nothing) and a small closed list of them is interpreted: numbers, texts, bytes,
lists, tuples, dicts, and numpy's recipe for a plain array, which is carried out by our own code below. Every other instruction, and
every other name, is refused.
"""

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_anatomy.errors import BadInput
from clip_anatomy.files import opened

__all__ = ["read_safe_pickle"]

DTYPE = re.compile(r"[<>|=]?[uif][1248]$")
MOST = 2**20  # instructions; a batch of CIFAR has about 60,000


@dataclass(frozen=True)
class _Name:
    """A name that a pickle would import. Never imported here."""

    module: str
    name: str


@dataclass
class _Kind:
    """A numpy dtype being described."""

    code: str
    order: str = ""

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code.lstrip("<>|="))


@dataclass
class _Array:
    """A numpy array being described."""

    value: np.ndarray | None = None


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
KNOWN = frozenset(
    {
        *((module, "_reconstruct") for module in _MULTIARRAY),
        *((module, "_frombuffer") for module in _NUMERIC),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }
)
VALUES = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "INT", "BINFLOAT"),
        *("BINSTRING", "SHORT_BINSTRING", "STRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)


class _Refused(ValueError):
    """An instruction that no plain value needs."""


def read_safe_pickle(path: Path, kind: type = dict, *, most: int = MOST) -> Any:
    """Read a pickled dict or list of plain values; nothing in the file is executed.

    Args:
        path: a file of any pickle protocol, by Python 2 or 3.
        kind: dict or list.
        most: instructions of a file that is read.

    Returns:
        The dict, its keys as texts and its arrays read-only, or the list; texts of Python 2 as latin-1.

    Raises:
        BadInput: not a pickle, of another kind, damaged, or it holds something else than plain values.
    """
    try:
        with opened(path) as file:
            content = _run(file, most)
        if not isinstance(content, kind):
            raise _Refused(f"it holds a {type(content).__name__}, a {kind.__name__} was expected")
        if not isinstance(content, dict):
            return content
        return {_text(key): value.value if isinstance(value, _Array) else value for key, value in content.items()}
    except _Refused as error:
        raise BadInput(
            f"{path} is not read: {error}. Nothing of it was run. Fetch a fresh copy from the data set's own page"
        ) from error
    except Exception as error:  # whatever damaged instructions lead to
        raise BadInput(f"{path} is damaged or no pickle file ({error}). Fetch a fresh copy") from error


def _run(file: Any, most: int) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list[Any]:
        low = marks[-1] if marks else 0
        if len(stack) - low < count:
            raise _Refused("its instructions take more values than there are")
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    def since_mark() -> list[Any]:
        at = marks.pop()
        taken = stack[at:]
        del stack[at:]
        return taken

    steps: dict[str, Callable[[Any], Any]] = {
        "PROTO": lambda _: None,
        "FRAME": lambda _: None,
        "MARK": lambda _: marks.append(len(stack)),
        "POP": lambda _: pop(1),
        "NONE": lambda _: stack.append(None),
        "NEWTRUE": lambda _: stack.append(True),
        "NEWFALSE": lambda _: stack.append(False),
        "EMPTY_DICT": lambda _: stack.append({}),
        "EMPTY_LIST": lambda _: stack.append([]),
        "EMPTY_TUPLE": lambda _: stack.append(()),
        "TUPLE": lambda _: stack.append(tuple(since_mark())),
        "TUPLE1": lambda _: stack.append(tuple(pop(1))),
        "TUPLE2": lambda _: stack.append(tuple(pop(2))),
        "TUPLE3": lambda _: stack.append(tuple(pop(3))),
        "LIST": lambda _: stack.append(since_mark()),
        "DICT": lambda _: stack.append(_pairs({}, since_mark())),
        "APPEND": lambda _: _extend(stack, pop(1)),
        "APPENDS": lambda _: _extend(stack, since_mark()),
        "SETITEM": lambda _: _update(stack, pop(2)),
        "SETITEMS": lambda _: _update(stack, since_mark()),
        "MEMOIZE": lambda _: memo.__setitem__(len(memo), stack[-1]),
        "GLOBAL": lambda argument: stack.append(_name(*argument.split(" ", 1))),
        "STACK_GLOBAL": lambda _: stack.append(_name(*pop(2))),
        "REDUCE": lambda _: stack.append(_reduce(*pop(2))),
        "BUILD": lambda _: _build(stack, pop(1)[0]),
    }
    for name in ("PUT", "BINPUT", "LONG_BINPUT"):
        steps[name] = lambda at: memo.__setitem__(int(at), stack[-1])
    for name in ("GET", "BINGET", "LONG_BINGET"):
        steps[name] = lambda at: stack.append(memo[int(at)])
    for done, (kind, argument, _) in enumerate(pickletools.genops(file)):
        if done > most:
            raise _Refused(f"it has more than {most:,} instructions")
        if kind.name == "STOP":
            return pop(1)[0]
        if kind.name in VALUES:
            stack.append(argument)
        elif kind.name in steps:
            steps[kind.name](argument)
        else:
            raise _Refused(f"it uses the instruction {kind.name}, which plain values do not need")
    raise _Refused("it ends in its middle")


def _name(module: Any, name: Any) -> _Name:
    if (module, name) not in KNOWN:
        raise _Refused(f"it asks for {module}.{name}, and would run it")
    return _Name(module, name)


def _reduce(name: Any, given: Any) -> Any:
    """Carry out one of the known recipes by ourselves."""
    if not isinstance(name, _Name) or not isinstance(given, tuple):
        raise _Refused("it calls something that is no name")
    if name.name == "_reconstruct":
        return _Array()
    if name.name == "dtype":
        code = _text(given[0])
        if not DTYPE.match(code):
            raise _Refused(f"it holds an array of {code!r}, numbers were expected")
        return _Kind(code)
    if name.name == "encode":  # how Python 3 writes bytes for Python 2's readers
        if len(given) != 2 or not isinstance(given[0], str) or given[1] not in ("latin1", "latin-1"):
            raise _Refused("it encodes a text in a way that bytes do not need")
        return given[0].encode("latin-1")
    if name.name == "_frombuffer":
        raw, kind, shape, order = given
        return _Array(_array(raw, kind, shape, order == "F"))
    raise _Refused(f"it calls {name.module}.{name.name}")


def _build(stack: list[Any], state: Any) -> None:
    """Fill an array or a dtype that a recipe began."""
    target = stack[-1]
    if not isinstance(state, tuple):
        raise _Refused("it sets the inside of something that is no array")
    if isinstance(target, _Kind) and len(state) >= 2 and state[1] in ("<", ">", "|", "=", b"<", b">", b"|", b"="):
        target.order = _text(state[1])
    elif isinstance(target, _Array) and len(state) == 5:
        _, shape, kind, fortran, raw = state
        target.value = _array(raw, kind, shape, bool(fortran))
    else:
        raise _Refused("it sets the inside of something that is no array")


def _array(raw: Any, kind: Any, shape: Any, fortran: bool) -> np.ndarray:
    data = raw.encode("latin-1") if isinstance(raw, str) else bytes(raw) if isinstance(raw, bytes | bytearray) else None
    sizes = shape if isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape) else None
    if data is None or sizes is None or not isinstance(kind, _Kind):
        raise _Refused("it holds an array of something else than numbers")
    if math.prod(sizes) * kind.numpy.itemsize != len(data):
        raise _Refused(f"it holds an array of shape {list(sizes)} with {len(data):,} bytes")
    return np.frombuffer(data, kind.numpy).reshape(sizes, order="F" if fortran else "C")


def _extend(stack: list[Any], values: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise _Refused("it appends to something that is no list")
    stack[-1].extend(values)


def _update(stack: list[Any], values: list[Any]) -> None:
    if not isinstance(stack[-1], dict):
        raise _Refused("it sets entries of something that is no dict")
    _pairs(stack[-1], values)


def _pairs(into: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | bytes | int):
            raise _Refused(f"it uses a {type(key).__name__} as the key of a dict")
        into[key] = value
    return into


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
