"""From what people type ("9.3,10.1+mlp=4") to the parts that are meant, as numbers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clip_anatomy.errors import BadSpec
from clip_anatomy.naming.atlas import Atlas

__all__ = ["FORMS", "POOL", "TypedParts", "joined", "layer_numbers", "parse_parts"]

FORMS = (
    "9.3,10.1 | layer=0-5 | last=4 | mlp=all | mlp=3,4 | mlp=pool | class-to-class=all | role=background | words=striped fabric | "
    "input-embedding | token=0 | all, or several joined by +"
)
NUMBER = r"[0-9]{1,18}"  # ASCII digits only, and not thousands of them: int() refuses both with an error of its own
POOL = -1
"""Number of the MLP behind an attention pool: the last of `Parts.mlps`."""
MOST_TOKENS = 1_000_000  # a slip of the finger must not fill the memory


@dataclass(frozen=True)
class TypedParts:
    """Parts as they were typed; the fields are those of `Selection`."""

    heads: tuple[tuple[int, int], ...] = ()
    mlps: tuple[int, ...] = ()
    class_to_class: tuple[int, ...] = ()
    input_embedding: bool = False
    tokens: tuple[int, ...] = ()


def parse_parts(
    spec: str, layers: tuple[int, ...], heads: int, atlas: Atlas | None, *, pool: bool = False
) -> list[TypedParts]:
    """Read what people type, one entry for each piece between two `+`; see `Selection.parse`."""
    pieces = [piece.strip() for piece in spec.split("+")]
    if not all(pieces):
        raise BadSpec(f"{spec!r} names no part. Type {FORMS}")
    return [_read(piece, layers, heads, atlas, pool=pool) for piece in pieces]


def layer_numbers(layers: "int | Sequence[int]") -> tuple[int, ...]:
    """List numbers of the layers that there are: so many, or these."""
    return tuple(range(layers)) if isinstance(layers, int) else tuple(layers)


def joined(numbers: Iterable[int], between: str = ", ") -> str:
    """Write numbers with runs joined: 0-5, 8."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return between.join("-".join(map(str, run)) for run in runs)


def _read(piece: str, layers: tuple[int, ...], heads: int, atlas: Atlas | None, *, pool: bool) -> TypedParts:
    """Read one piece between two `+`."""
    kind, given, value = (part.strip() for part in piece.partition("="))
    kind = kind.lower().removesuffix("s") if kind.lower() in ("layers", "mlps", "tokens") else kind.lower()
    if given and kind in ("role", "words"):
        return TypedParts(_by_name(piece, layers, atlas))
    if given and kind == "layer":
        return TypedParts(_every(_listed(kind, value, layers), heads))
    if given and kind == "last":
        if not re.fullmatch(NUMBER, value) or not 1 <= int(value) <= len(layers):
            raise BadSpec(f"last={value}: there are {len(layers)} layers. Type last=1 to last={len(layers)}")
        return TypedParts(_every(layers[-int(value) :], heads))
    if given and kind == "mlp":
        return TypedParts(mlps=_mlps(value, layers, pool=pool))
    if given and kind == "class-to-class":
        return TypedParts(class_to_class=_listed(kind, value, layers))
    if given and kind == "token":
        return TypedParts(tokens=_listed(kind, value, None))
    if not given and kind in ("all", "none", "input-embedding"):
        return TypedParts(_every(layers, heads) if kind == "all" else (), input_embedding=kind == "input-embedding")
    if not given and re.fullmatch(r"[\d.,\s]+", piece):
        return TypedParts(tuple(_pair(part.strip()) for part in piece.split(",")))
    raise BadSpec(f"{piece!r} names no part. Type {FORMS}")


def _mlps(value: str, layers: tuple[int, ...], *, pool: bool) -> tuple[int, ...]:
    """`all`, `3,4`, `pool` or `0-5,pool`; of a model without such a pool, `all` are those of the layers."""
    numbers = [part.strip() for part in value.split(",")]
    if "pool" in numbers and not pool:
        raise BadSpec(f"mlp={value}: no MLP behind an attention pool is here. Type mlp={joined(layers)} or mlp=all")
    behind = (POOL,) if pool and (value == "all" or "pool" in numbers) else ()
    rest = ",".join(part for part in numbers if part != "pool")
    return (*(_listed("mlp", rest, layers) if rest else ()), *behind)


def _every(layers: Iterable[int], heads: int) -> tuple[tuple[int, int], ...]:
    return tuple((layer, head) for layer in layers for head in range(heads))


def _by_name(piece: str, layers: tuple[int, ...], atlas: Atlas | None) -> tuple[tuple[int, int], ...]:
    if atlas is None:
        raise BadSpec(
            f"{piece}: heads have names in an atlas only. Make one: clip-anatomy atlas STORE --out FOLDER, and give it"
        )
    heads = tuple((layer, head) for layer, head in atlas.select(piece) if layer in layers)
    if not heads:
        raise BadSpec(
            f"{piece}: such heads are in layers that are not here. Type a name that fits one of layers {joined(layers)}"
        )
    return heads


def _pair(part: str) -> tuple[int, int]:
    if not (pair := re.fullmatch(rf"({NUMBER})\.({NUMBER})", part)):
        raise BadSpec(f"head {part!r}: LAYER.HEAD was expected. Type, for example, 9.3,10.1")
    return int(pair[1]), int(pair[2])


def _listed(kind: str, value: str, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    """`all`, `3,4`, `0-5` or `0-2,7` as numbers; layers are checked, tokens (None) are not."""
    if value == "all" and layers is not None:
        return layers
    numbers: list[int] = []
    for part in value.split(","):
        ends = re.fullmatch(rf"({NUMBER})(?:\s*[-–]\s*({NUMBER}))?", part.strip())
        if not ends:
            last = 1 if layers is None else max(layers)
            every = "" if layers is None else f" or {kind}=all"
            raise BadSpec(f"{kind}={value}: numbers were expected. Type {kind}=0-{last}, {kind}=0,{last}{every}")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise BadSpec(f"{kind}={value}: {part.strip()} runs backwards. Type {kind}={last}-{first}")
        if layers is not None and last not in layers:  # before the range is built: it may be absurdly long
            raise BadSpec(f"{kind}={value}: there is no layer {last}. Type {kind}={joined(layers)} or some of these")
        if last >= MOST_TOKENS:
            raise BadSpec(f"{kind}={value}: no image has so many tokens. Type {kind}=0-9")
        numbers += range(first, last + 1)
    if layers is not None and (missing := sorted(set(numbers) - set(layers))):
        raise BadSpec(f"{kind}={value}: there is no layer {missing[0]}. Type {kind}={joined(layers)} or some of these")
    return tuple(numbers)
