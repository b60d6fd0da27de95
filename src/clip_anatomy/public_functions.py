"""What stands between a person's program and every public function: arguments of the right kind, and torch's own state put aside.

Functions of this package that call each other are inside already and pass at once.
"""

import inspect
import re
import threading
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast, get_type_hints

from clip_anatomy.argument_kinds import described, expected, fits, way_out
from clip_anatomy.errors import BadInput, BadText
from clip_anatomy.number_ranges import whole
from clip_anatomy.torch_state import plain_torch

__all__ = ["public"]

Public = TypeVar("Public", bound=Callable[..., Any])
_thread = threading.local()


def public(thing: Public) -> Public:
    """Mark a function, or a class with all its public methods, as what people call.

    Its arguments are held to their annotations, so that a wrong one is named at once and not by a traceback from somewhere inside;
    and it computes what it would compute if the program around had left torch alone (`torch_state`).

    Raises:
        BadInput: an argument is missing, unknown or of another kind.
    """
    if inspect.isclass(thing):
        for name, member in list(vars(thing).items()):
            if not name.startswith("_"):
                setattr(thing, name, _guarded_member(member))
        return cast("Public", thing)
    return cast("Public", _guarded(thing))


def _guarded_member(member: Any) -> Any:
    if isinstance(member, classmethod | staticmethod):
        return type(member)(_guarded(member.__func__))
    return _guarded(member) if inspect.isfunction(member) else member


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    lazy = inspect.isgeneratorfunction(function)  # runs later, when this call is over

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if getattr(_thread, "inside", False):
            return function(*args, **kwargs)
        _check(function, args, kwargs)
        if lazy:
            return function(*args, **kwargs)
        _thread.inside = True
        try:
            with plain_torch():
                return function(*args, **kwargs)
        finally:
            _thread.inside = False

    # What `torch.compiler.disable` sets, without importing the compiler: a compiled program runs our functions as they are.
    guarded._torchdynamo_disable = True  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
    return guarded


def _check(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise BadInput for the first argument that is not of the kind it should be."""
    signature, hints = _signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise BadInput(f"{_name(function)}: {error}. It is {_name(function)}{_outline(signature)}") from error
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if name not in hints or kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            continue
        if isinstance(value, str | Path) and "\0" in str(value):
            raise BadInput(
                f"{_name(function)}: {name} holds a NUL character, as no name and no text does. Type it without"
            )
        if not fits(value, hints[name]):
            one_text = isinstance(value, str) and fits([value], hints[name])
            if one_text:
                raise BadText(f"{name} is one string; a list was expected. Type: [{value!r}]")
            says = _said_of(function, name)
            raise BadInput(
                f"{_name(function)}: {name} is {described(value)}; {expected(hints[name])} was expected"
                f"{f' ({says})' if says else ''}. {way_out(value, hints[name]) or _instead(function, signature.parameters[name])}"
            )
        if name == "seed":
            whole(name, value, 0)


@cache
def _signature(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    """Signature, and the hints that can be resolved."""
    signature = inspect.signature(function)
    space = dict(inspect.unwrap(function).__globals__)
    hints: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        hint = parameter.annotation
        try:
            hint = eval(hint, space) if isinstance(hint, str) else hint
        except NameError:  # a name for the type checker alone
            continue
        if hint is not inspect.Parameter.empty:
            hints[name] = _resolved(hint, space)
    return signature, hints


def _resolved(hint: Any, space: dict[str, Any]) -> Any:
    """Evaluate names within a hint too, as in `Sequence["Selection | str"]`; one that is for the type checker alone stays."""
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"hint": hint}), space, include_extras=True)["hint"]
    except (NameError, TypeError):
        return hint


def _instead(function: Callable[..., Any], parameter: inspect.Parameter) -> str:
    """Say what to type where nothing better is known: the default, or where it is explained."""
    if parameter.default is parameter.empty:
        return f"Type: help({_name(function)})"
    return f"Leave it away, or type its default: {parameter.name}={parameter.default!r}"


def _name(function: Callable[..., Any]) -> str:
    return function.__qualname__


def _outline(signature: inspect.Signature) -> str:
    names = [
        f"{p.name}=…" if p.default is not p.empty else p.name for p in signature.parameters.values() if p.name != "self"
    ]
    return f"({', '.join(names)})"


def _said_of(function: Callable[..., Any], name: str) -> str:
    """Find what a docstring says of an argument, its first sentence."""
    match = re.search(
        rf"^\s*{name}: (.+?)(?:[.;:] |\.?\n\s+\w+: |\.?\n\s*\n|\.?$)", inspect.getdoc(function) or "", re.M | re.S
    )
    return " ".join(match[1].split()) if match else ""
