"""`Method`: what a way of drawing maps is to the registry, the command line and the docs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor

from clip_anatomy.errors import BadSpec

_NAMES = {"int": "a whole number", "float": "a number", "str": "a string", "bool": "True or False", "NoneType": "None"}


@dataclass(frozen=True)
class Options:
    """What one method lets people choose. Subclasses are frozen dataclasses with a default for every field.

    A value that no field can have is refused in `__post_init__` with BadSpec.
    """

    def of(self, images: list[int]) -> "Options":
        """The options for some of the images (their numbers), where an option holds something per image."""
        return self


@dataclass(frozen=True)
class Method:
    """One way of drawing maps.

    Attributes:
        run: (clip, pixels [image, 3, row, col], texts [text, embed] of any length, options) → [image, token, text], the
            patches only, row by row (no class token).
        told: one line for people.
        options: the defaults, an `Options`; `heatmap(..., name=value)` replaces a field of it.
        per_text: whether different texts give different maps (False for attention alone).
        alone: each text has a cost of its own, and its map does not depend on the other texts (gradients): who wants one text's
            map of an image asks for that text alone.
        needs: options that have no default: such a method is left out where all methods are drawn side by side.
    """

    run: Callable[..., Tensor]
    told: str
    options: Options = Options()
    per_text: bool = True
    needs: tuple[str, ...] = ()
    alone: bool = False

    def chosen(self, name: str, given: Mapping[str, Any]) -> Options:
        """The method's options with what was given.

        Args:
            name: of the method, for the message.
            given: option → value.

        Raises:
            BadSpec: an option that the method does not have, naming those it has; one that it needs; a value it cannot take.
        """
        known = [f.name for f in fields(self.options)]
        unknown = [key for key in given if key not in known]
        if unknown:
            there = ", ".join(f"{key}={getattr(self.options, key)!r}" for key in known) or "none"
            raise BadSpec(f"method {name!r} has no option {unknown[0]!r}. Its options and their defaults: {there}")
        for key in (key for key in self.needs if given.get(key) is None):
            raise BadSpec(f"method {name!r} needs {key}. Type: heatmap(..., method={name!r}, {key}=...)")
        hints = get_type_hints(type(self.options))
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}
        for key, value in plain.items():
            kinds = _kinds(hints[key])
            if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
                told = " or ".join(_NAMES.get(kind.__name__, kind.__name__) for kind in kinds)
                fix = "torch.tensor(...)" if key in self.needs else repr(getattr(self.options, key))
                raise BadSpec(
                    f"method {name!r}: {key}={value!r} is a {type(value).__name__}; {told} was expected. Type: {key}={fix}"
                )
        return replace(self.options, **plain)


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes that a field may hold; none where its type says more than classes can (its own check refuses it)."""
    each: tuple[Any, ...] = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if any(get_origin(one) is not None or not isinstance(one, type) for one in each):
        return ()
    return (*each, int) if float in each else each
