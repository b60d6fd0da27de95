"""Whether an argument is of the kind that its annotation says, and both in words.

Only kinds are told apart here, as deep as the items of a list: which values a function can take is its own business.
"""

import inspect
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin

from jaxtyping import AbstractArray

__all__ = ["OWN_CHECK", "described", "expected", "fits", "way_out"]

OWN_CHECK = "whoever takes it says what is wrong with it"
"""Marks a hint, `Annotated[..., OWN_CHECK]`, whose values are checked with better words than these."""

LARGEST = 2**63 - 1
"""The largest whole number that tensors and files hold; the functions have bounds of their own below it."""
NUMERIC = "biufc"  # kinds of numbers and switches, as NumPy abbreviates them
SHOWN = 60  # characters of a value that a message shows
NAMES: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    Path: "a path",
    types.NoneType: "None",
    "Clip": "an opened model (Clip)",
    "Module": "a live model",
    "Tensor": "a tensor",
    "ndarray": "an array of numbers",
    "Image": "a PIL image",
    "Store": "a Store",
}


def fits(value: object, hint: Any) -> bool:
    """Say whether a value is of the kind that a hint says; a hint that is not understood fits everything.

    Example:
        >>> fits(["a dog"], Sequence[str] | None), fits([3], Sequence[str]), fits(3, float), fits("a dog", Sequence[str])
        (True, False, True, False)
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is None or hint is types.NoneType:
        return value is None
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in args)
    if origin is Annotated:
        return OWN_CHECK in args[1:] or fits(value, args[0])
    if origin is Literal:
        return isinstance(value, tuple({type(one) for one in args}))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return isinstance(value, hint.array_type)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if isinstance(value, str | bytes) and kind in (Sequence, Iterable, Iterator, list, tuple):
        return False
    return _is_a(value, kind) and _holds(value, kind, args)


def _is_a(value: Any, kind: type) -> bool:
    wider: dict[type, type] = {int: Integral, float: Real, Path: PathLike}
    if kind.__name__ == type(value).__name__ == "ndarray":
        return value.dtype.kind in NUMERIC
    if isinstance(value, bool) and kind in (int, float):  # a switch where a number belongs is a mistake
        return False
    if kind in (int, float) and isinstance(value, Integral) and abs(int(value)) > LARGEST:
        return False
    if kind in wider and isinstance(value, wider[kind]):
        return True
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that cannot be asked at run time
        return True


def _holds(value: Any, kind: type, args: tuple[Any, ...]) -> bool:
    """Whether the items of a list or a mapping fit; generators are not run for it."""
    if isinstance(value, Mapping):
        return len(args) != 2 or all(
            _all_fit(some, one) for some, one in zip((value, value.values()), args, strict=True)
        )
    if args and kind in (Iterable, Collection) and hasattr(value, "tolist"):  # an array, whose items are alike
        value = value[:1].tolist() if value.ndim else []
    if not args or not isinstance(value, Sequence | Set):
        return True
    if isinstance(value, Set):
        return _all_fit(value, args[0])
    value = value if isinstance(value, list | tuple) else value[:1]  # a range, whose items are alike
    if kind is tuple and Ellipsis not in args:
        return len(value) == len(args) and all(fits(item, one) for item, one in zip(value, args, strict=True))
    return _all_fit(value, args[0])


def _all_fit(items: Iterable[object], hint: Any) -> bool:
    """Ask one item of each type, and every list or mapping: a million paths are asked once."""
    one_each = {type(item): item for item in items if not isinstance(item, list | tuple | dict)}
    deep = (item for item in items if isinstance(item, list | tuple | dict))
    return all(fits(item, hint) for item in one_each.values()) and all(fits(item, hint) for item in deep)


def described(value: object) -> str:
    """Describe a value in a few words.

    Example:
        >>> described(("a", 3)), described(len), described(Path)
        ("a tuple ('a', 3)", 'a function (len)', 'the class Path')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    if callable(value) and hasattr(value, "__name__"):
        return f"a function ({value.__name__})"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{_a(name)} {list(shape)} of {dtype}"
    if isinstance(value, str | bytes | int | float | tuple | list | dict) and not _heavy(value):
        shown = repr(value)
        shown = shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 1]}…"
        return f"{_a(name)} {shown}" if isinstance(value, tuple | list | dict) else f"{_a(name)} ({shown})"
    if isinstance(value, tuple | list):
        return f"{_a(name)} of {', '.join(type(item).__name__ for item in value[:3])}{', …' if len(value) > 3 else ''}"
    if isinstance(value, Mapping):
        return f"{_a(name)} with {', '.join(map(repr, list(value)[:3]))} …" if value else f"an empty {name}"
    return _a(name)


def _heavy(value: object) -> bool:
    """Whether a collection holds more than plain values, whose repr would be long."""
    items: Iterable[object] = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    )
    return any(not isinstance(item, str | int | float | bool | None) for item in items)


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def expected(hint: Any) -> str:
    """Put a hint into words.

    Example:
        >>> expected(str | Path | None), expected(Sequence[str]), expected(Literal["centered", "official"])
        ('a string, a path or None', 'a list of strings', "'centered' or 'official'")
    """
    words = list(dict.fromkeys(_words(hint)))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words(hint: Any) -> list[str]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return [word for one in args for word in _words(one)]
    if origin is Annotated:
        return _words(args[0])
    if origin is Literal:
        return [repr(one) for one in args]
    if isinstance(hint, ForwardRef | TypeVar):
        return ["anything"]
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return [f"{_words(hint.array_type)[0]} [{', '.join(str(hint.dim_str).split())}]"]
    kind: Any = origin or hint
    if kind is types.NoneType or hint is None:
        return ["None"]
    if kind in (Sequence, Iterable, list, tuple) and args:
        inner = [word.removeprefix("a ").removeprefix("an ") for word in _words(args[0])]
        return [f"a list of {inner[0]}s"] if len(inner) == 1 else [f"a list of {' or '.join(inner[:3])}"]
    if kind is Mapping or kind is dict:
        return ["a mapping"]
    if origin is Callable or kind is Callable:
        return ["a function"]
    name = getattr(kind, "__name__", str(kind))
    return [NAMES.get(kind) or NAMES.get(name) or _a(name)]


def way_out(value: Any, hint: Any) -> str:
    """Say what of a value, or made of it, would fit; "" where nothing is known."""
    if isinstance(value, str) and fits([value], hint):
        return f"Type: [{value!r}]"
    if isinstance(value, Integral) and abs(int(value)) > LARGEST:
        return f"Type: a number of at most {LARGEST:,}"
    if isinstance(value, tuple | list):
        wrong = next((place for place, item in enumerate(value) if not fits([item], hint)), None)
        if wrong is not None and fits([], hint) and len(value) > 1:
            return f"Look at item {wrong}: {described(value[wrong])}"
        inside = [place for place, item in enumerate(value) if item is not None and fits(item, hint)]
        if inside:
            return f"Type: its item {inside[0]}, the {type(value[inside[0]]).__name__}"
    names = {getattr(one, "__name__", "") for one in get_args(hint) or (hint,)}
    if "Preprocess" in names:
        return (
            "Type: preprocess={'size': (224, 224), 'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)} with its numbers, or leave it away and "
            "hand over pixels that it made, [image, 3, row, col], where pictures are taken"
        )
    if "Module" in names and isinstance(value, Mapping):
        return "A state dict is only the weights. Type: model.load_state_dict(state), then load(model)"
    if "Module" in names and isinstance(value, type):
        return f"Type: a model of it, for example {value.__name__}.from_pretrained(NAME)"
    opens = isinstance(value, str | PathLike) or any(one.__name__ == "Module" for one in type(value).__mro__)
    if "Clip" in names and "Module" not in names and opens:
        return f"Type: clip_anatomy.load({value!r})" if isinstance(value, str) else "Type: clip_anatomy.load(model)"
    if isinstance(value, tuple | list) and value and all(map(inspect.isfunction, value)) and fits([""], hint):
        return "Type: [template('{}') for template in templates]"  # as open_clip's own templates are
    return ""
