"""`Selection`: which parts of an embedding are meant, as a value, in words, and as people type it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clip_anatomy.edits.selection_parser import POOL, joined, layer_numbers, parse_parts
from clip_anatomy.errors import BadSpec
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.public_functions import public

__all__ = ["Selection"]

NAMED = 4  # heads that `description` names one by one


@public
@dataclass(frozen=True)
class Selection:
    """A set of parts. Kept sorted and without repeats, so that equal sets are equal values.

    Attributes:
        heads: (layer, head) pairs, layers numbered as in the model.
        mlps: layers whose MLP is meant; −1 is that behind an attention pool.
        class_to_class: layers whose attention of the class token to itself is meant, in all heads.
        input_embedding: the residual stream before the first block.
        tokens: source tokens whose contributions through all heads are meant; 0 is the class token.

    Example:
        >>> Selection(heads=((9, 3),)) | Selection(mlps=(4, 2, 4))
        Selection(heads=((9, 3),), mlps=(2, 4), class_to_class=(), input_embedding=False, tokens=())
    """

    heads: tuple[tuple[int, int], ...] = ()
    mlps: tuple[int, ...] = ()
    class_to_class: tuple[int, ...] = ()
    input_embedding: bool = False
    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Sort and drop repeats; refuse numbers below 0."""
        object.__setattr__(self, "heads", tuple(sorted(set(self.heads))))
        for name in ("mlps", "class_to_class", "tokens"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if (
            min((*(n for pair in self.heads for n in pair), *self.class_to_class, *self.tokens), default=0) < 0
            or min(self.mlps, default=0) < POOL
        ):
            raise BadSpec(
                "a layer, head or token below 0: they are counted from 0 up. Type, for example, heads=((9, 3),)"
            )

    @staticmethod
    def every(layers: "int | Sequence[int]", heads: int) -> "Selection":
        """Select all heads of some layers (a number of them, or their numbers)."""
        return Selection(heads=tuple((layer, head) for layer in layer_numbers(layers) for head in range(heads)))

    @staticmethod
    def parse(
        spec: str, layers: "int | Sequence[int]", heads: int, atlas: Atlas | None = None, *, pool: bool = False
    ) -> "Selection":
        """Read what people type.

        Args:
            spec: one or more of these, joined by `+`: `9.3,10.1` heads · `layer=0-5` all heads of layers · `last=4` all heads
                of the last layers · `role=background`, `words=striped fabric` heads by their names in an atlas · `all` all
                heads · `mlp=all`, `mlp=3,4`, `mlp=pool` · `class-to-class=all` · `input-embedding` · `token=0,7-9` source tokens · `none`.
            layers: how many layers there are, or the numbers of those that there are (a store may keep only some).
            heads: heads in each.
            atlas: names of the heads, for `role=` and `words=`; heads of layers that are not there are left out.
            pool: whether there is an MLP behind an attention pool.

        Raises:
            BadSpec: a name that is not known, or parts that do not exist; says what to type.

        Example:
            >>> Selection.parse("9.3,10.1+mlp=last", 12, 12)
            Traceback (most recent call last):
            clip_anatomy.errors.BadSpec: mlp=last: numbers were expected. Type mlp=0-11, mlp=0,11 or mlp=all
            >>> Selection.parse("9.3,10.1+mlp=3-5", 12, 12).description
            'heads 9.3, 10.1; MLPs 3-5'
            >>> len(Selection.parse("last=2", 12, 12))
            24
        """
        there = layer_numbers(layers)
        selection = Selection()
        for piece in parse_parts(spec, there, heads, atlas, pool=pool):
            selection |= Selection(**vars(piece))
        return selection.checked(there, heads, pool=pool)

    def checked(
        self, layers: "int | Sequence[int]", heads: int, tokens: int | None = None, *, pool: bool = False
    ) -> "Selection":
        """Return the same selection, if all of its parts exist.

        Args:
            layers: how many layers there are, or their numbers.
            heads: heads in each.
            tokens: tokens of an image, where that is known.
            pool: whether there is an MLP behind an attention pool.

        Raises:
            BadSpec: names the parts that do not exist and what does.
        """
        there = layer_numbers(layers)
        if wrong := [f"{layer}.{head}" for layer, head in self.heads if layer not in there or head >= heads]:
            raise BadSpec(
                f"heads that do not exist: {_few(wrong)}. Type LAYER.HEAD with a layer of {joined(there)} and a head of 0-{heads - 1}"
            )
        for name, typed in (("mlps", "mlp"), ("class_to_class", "class-to-class")):
            others = (POOL,) if name == "mlps" and pool else ()
            if wrong := [
                "pool" if layer == POOL else str(layer)
                for layer in getattr(self, name)
                if layer not in (*there, *others)
            ]:
                raise BadSpec(
                    f"{typed}={','.join(wrong)}: no such layer. Type {typed}={joined(there)} or some of these"
                )
        if tokens is not None and (wrong := [str(token) for token in self.tokens if token >= tokens]):
            raise BadSpec(f"tokens that do not exist: {_few(wrong)}. Type token=0-{tokens - 1} (0 is the class token)")
        return self

    # ---- as a set

    def __or__(self, other: "Selection") -> "Selection":
        """Select the parts of either."""
        return Selection(
            (*self.heads, *other.heads),
            (*self.mlps, *other.mlps),
            (*self.class_to_class, *other.class_to_class),
            self.input_embedding or other.input_embedding,
            (*self.tokens, *other.tokens),
        )

    def __sub__(self, other: "Selection") -> "Selection":
        """Select the parts of this one that are not in the other."""
        return Selection(
            tuple(pair for pair in self.heads if pair not in set(other.heads)),
            tuple(layer for layer in self.mlps if layer not in other.mlps),
            tuple(layer for layer in self.class_to_class if layer not in other.class_to_class),
            self.input_embedding and not other.input_embedding,
            tuple(token for token in self.tokens if token not in other.tokens),
        )

    def __len__(self) -> int:
        """Count the parts: heads, MLPs, layers of class-to-class attention, the input embedding, tokens."""
        return len(self.heads) + len(self.mlps) + len(self.class_to_class) + self.input_embedding + len(self.tokens)

    def __bool__(self) -> bool:
        """Tell whether there is any part in it."""
        return len(self) > 0

    # ---- in words

    @property
    def description(self) -> str:
        """A few words for a table."""
        names: list[str] = []
        if self.heads:
            layers = sorted({layer for layer, _ in self.heads})
            pairs = ", ".join(f"{layer}.{head}" for layer, head in self.heads)
            many = f"{len(self.heads)} heads of layer{'s'[: len(layers) > 1]} {joined(layers)}"
            few = f"head{'s'[: len(self.heads) > 1]} {pairs}"
            names.append(few if len(self.heads) <= NAMED else many)
        if self.mlps:
            names.append(f"MLP{'s'[: len(self.mlps) > 1]} {_mlp_names(self.mlps, ', ')}")
        if self.class_to_class:
            names.append(f"class-to-class attention {joined(self.class_to_class)}")
        if self.input_embedding:
            names.append("input embedding")
        if self.tokens:
            names.append(f"token{'s'[: len(self.tokens) > 1]} {joined(self.tokens)}")
        return "; ".join(names) or "nothing"

    @property
    def spec(self) -> str:
        """What to type for it: `parse` reads it back.

        Example:
            >>> Selection(((9, 3), (10, 1)), mlps=(0, 1, 2), input_embedding=True).spec
            '9.3,10.1+mlp=0-2+input-embedding'
        """
        specs = [",".join(f"{layer}.{head}" for layer, head in self.heads)] if self.heads else []
        specs += [f"mlp={_mlp_names(self.mlps, ',')}"] if self.mlps else []
        specs += [f"class-to-class={joined(self.class_to_class, ',')}"] if self.class_to_class else []
        specs += ["input-embedding"] if self.input_embedding else []
        specs += [f"token={joined(self.tokens, ',')}"] if self.tokens else []
        return "+".join(specs) or "none"

    # ---- as JSON

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        fields = {
            name: list(map(_plain, value)) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        return fields | {"mlps": ["pool" if layer == POOL else layer for layer in self.mlps]}

    @staticmethod
    def of_dict(fields: Mapping[str, Any]) -> "Selection":
        """Invert `to_dict`; what is not named is empty.

        Raises:
            BadSpec: not a selection.
        """
        names = ("heads", "mlps", "class_to_class", "input_embedding", "tokens")
        if unknown := sorted(set(fields) - set(names)):
            raise BadSpec(
                f"{', '.join(map(repr, unknown))}: a selection has no such parts. Type some of: {', '.join(names)}"
            )
        try:
            pairs = tuple((int(layer), int(head)) for layer, head in fields.get("heads", ()))
            lists = {name: fields.get(name, ()) for name in ("mlps", "class_to_class", "tokens")}
            pool = (POOL,) if "pool" in lists["mlps"] else ()
            lists["mlps"] = [layer for layer in lists["mlps"] if layer != "pool"]
            numbers = {name: tuple(map(int, value)) for name, value in lists.items()}
        except (TypeError, ValueError):
            raise BadSpec(
                'this is no selection: numbers were expected. Type {"heads": [[9, 3]], "mlps": [4]}'
            ) from None
        if min(numbers["mlps"], default=0) < 0:
            raise BadSpec(f'mlps {list(numbers["mlps"])}: layers are counted from 0 up. Type 0, 1 … or "pool"')
        numbers["mlps"] += pool
        return Selection(pairs, **numbers, input_embedding=fields.get("input_embedding") is True)


def _mlp_names(mlps: tuple[int, ...], between: str) -> str:
    """Write the layers with runs joined, and the pool's MLP last."""
    of_layers = joined((layer for layer in mlps if layer != POOL), between)
    return between.join(filter(None, (of_layers, "pool" if POOL in mlps else "")))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
