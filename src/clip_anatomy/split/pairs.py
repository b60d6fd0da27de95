"""Why are these two similar? The cosine of two embeddings, exactly, over (part of one, part of the other).

    cos(a, b) = Σ_i Σ_j ⟨part_i(a), part_j(b)⟩ / (‖a‖ ‖b‖)

Parts are patches or words (what all heads read from them), heads, or layers; what remains (class token, MLPs, input embedding, biases)
are rows and columns of their own. That is the direct effect. `how="removal"` is the causal one beside it (`removal`).
"""

from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float64
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.images.decode import ImageLike
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.typed_texts import checked_texts, shorten
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.split.pair_sides import VIEWS, Side, read_side, tokens_of_parts
from clip_anatomy.split.picture_explanation import signed
from clip_anatomy.split.removal import RemovalGame, interactions
from clip_anatomy.towers.transformer import as_transformer

__all__ = ["How", "Pairs", "pairs"]

How = Literal["split", "removal"]
SCHEMA = "clip-anatomy/pairs/1"
PRECISE = 0.1  # a standard error of this share of the largest interaction is small enough
MOST = 8192  # forwards a side, if that is not reached
SHOWN = 12  # pairs of a summary


@public
@dataclass(frozen=True, repr=False)
class Pairs(Result):
    """Hold what two things have in common, part by part.

    Attributes:
        a: one of the two, split.
        b: the other; pass either to `pairs` again to compare it with a third.
        cosine: of the two embeddings.
        how: "split": exact shares of the cosine; "removal": interactions, what two parts do together.
        values: over the patches or words of both: shares, or interactions.
        errors: standard errors of interactions; None of shares.
        kept: with which probability each part was kept; None of shares.
        notes: what a reader must know.
    """

    presenter: ClassVar[str] = "pairs_page"

    a: Side
    b: Side
    cosine: float
    how: str
    values: Float64[Tensor, "part_a part_b"]
    errors: Float64[Tensor, "part_a part_b"] | None = None
    kept: float | None = None
    notes: tuple[str, ...] = ()

    def table(self, view: str = "tokens", view_b: str | None = None) -> Float64[Tensor, "part_a part_b"]:
        """Return shares of the cosine over the parts of both, with those that remain as the last rows and columns.

        Args:
            view: parts of `a`: "tokens" (patches or words), "heads" or "layers".
            view_b: parts of `b`; by default of the same kind.

        Returns:
            Shares that sum to the cosine, whatever `how` is.

        Raises:
            BadSpec: no such view.
        """
        for one in (view, view_b or view):
            if one not in VIEWS:
                raise BadSpec(f"{one!r} is no view. Type one of: {', '.join(VIEWS)}")
        return self.a.views[view].vectors @ self.b.views[view_b or view].vectors.T

    def to_dict(self) -> dict[str, Any]:
        """Return parts and tables, ready for JSON."""
        tables = {}
        for view in ("tokens", "layers"):
            labels = {"a": list(self.a.views[view].labels), "b": list(self.b.views[view].labels)}
            tables[view] = {**labels, "shares": rounded(self.table(view))}
        removal = {}
        if self.errors is not None:
            sides = {"a": self.a.removal, "b": self.b.removal}
            removal["removal"] = {
                "kept": self.kept,
                **{
                    side: {"forwards": one.forwards, "explained": round(one.explained, 4)}
                    for side, one in sides.items()
                    if one
                },
                "interactions": rounded(self.values),
                "standard_errors": rounded(self.errors),
            }
        return {
            "schema": SCHEMA,
            "a": {"kind": self.a.kind, "name": self.a.name, "grid": self.a.grid},
            "b": {"kind": self.b.kind, "name": self.b.name, "grid": self.b.grid},
            "cosine": round(self.cosine, 6),
            "how": self.how,
            "views": tables,
            **removal,
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """Return the strongest pairs, and how the cosine is made up."""
        order = self.values.flatten().abs().argsort(descending=True)[:SHOWN].tolist()
        rows: list[tuple[str, ...]] = []
        for at in order:
            i, j = divmod(at, self.values.shape[1])
            error = () if self.errors is None else (f"{float(self.errors[i, j]):.4f}",)
            rows.append((self.a.parts[i], self.b.parts[j], signed(float(self.values[i, j])), *error))
        what = "share" if self.errors is None else "interaction"
        columns = (self.a.kind, self.b.kind, f">{what}", *(() if self.errors is None else (">± error",)))
        names = [shorten(Path(one.name).name if one.kind == "picture" else one.name, 40) for one in (self.a, self.b)]
        title = f"{' × '.join(names)}: cosine {signed(self.cosine)}; strongest {what}s"
        return f"{text_table(columns, rows, title=title)}\n{self.made_of()}"

    def made_of(self) -> str:
        """Say in one line of which blocks the cosine is the sum; of interactions how they were measured."""
        if self.errors is not None:
            sides = [f"{one.forwards:,}" for one in (self.a.removal, self.b.removal) if one is not None]
            worst = float(self.errors.max())
            error = f"; largest standard error {worst:.4f}" if worst else ""
            return f"forwards without some parts: {' and '.join(sides)}, each part kept with {self.kept:g}{error}"
        table, rows, cols = self.table(), len(self.a.parts), len(self.b.parts)
        blocks = [
            float(x.sum()) for x in (table[:rows, :cols], table[:rows, cols:], table[rows:, :cols], table[rows:, cols:])
        ]
        a, b = _plural(self.a), _plural(self.b)
        return (
            f"cosine {signed(self.cosine)} = {a} × {b} {signed(blocks[0])}, {a} × rest {signed(blocks[1])}, "
            f"rest × {b} {signed(blocks[2])}, rest × rest {signed(blocks[3])}"
        )


class RemovalRun(NamedTuple):
    """How parts are taken away: see `pairs`."""

    kept: float
    forwards: int | None
    seed: int


@public
def pairs(
    clip: Clip,
    a: ImageLike | Side,
    b: ImageLike | Side,
    *,
    how: str = "split",
    kept: float = 0.5,
    forwards: int | None = None,
    seed: int = 0,
    allow_urls: bool = False,
    progress: Progress | None = None,
) -> Pairs:
    """Say why two pictures, two texts, or a picture and a text are similar: part by part of both.

    Args:
        clip: an opened model.
        a: a picture, a text, or a side of earlier `Pairs`. A string is a text, unless it names a file or ends as pictures do.
        b: the other.
        how: "split": the cosine as an exact sum over (part of a, part of b): direct effects. "removal": interactions of FIxLIP in closed form: patches and
            words are taken away at random, and the forward runs without them.
        kept: of "removal", the probability of each part to be kept: 0.5 weighs all subsets alike (Banzhaf), more stays nearer to the data.
        forwards: of "removal", runs a side; by default as many as bring the largest standard error to a tenth of the largest interaction. With ten parts
            or fewer every subset is run and nothing is estimated.
        seed: of "removal".
        allow_urls: fetch pictures given as http(s) addresses.
        progress: told as it goes.

    Returns:
        Pairs: `.values` over patches and words, `.table("heads")` and `.table("layers")` over the others.

    Raises:
        BadImage: a picture cannot be used.
        BadText: a text without a word.
        BadSpec: an unknown way, a probability or number of forwards that makes no sense.
        UnsupportedModel: "removal" of a tower that is no transformer.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = ca.pairs(ca.load("demo"), examples()[0], "a red bird")
        >>> result.values.shape, bool(abs(float(result.table().sum()) - result.cosine) < 1e-5)
        (torch.Size([64, 3]), True)
    """
    _check(how, kept, forwards)
    sides = [one if isinstance(one, Side) else read_side(clip, one, allow_urls=allow_urls) for one in (a, b)]
    one, other = sides
    for side in sides:
        if side.views["tokens"].vectors.shape[1] != clip.vision.embed:
            raise BadInput(f"{shorten(side.name, 40)!r} was split by another model. Type: pairs(clip, picture, text)")
    whole = [side.views["layers"].vectors.sum(0) for side in sides]
    cosine = float(whole[0] @ whole[1])
    if how == "split":
        rows, cols = len(one.parts), len(other.parts)
        values = one.views["tokens"].vectors[:rows] @ other.views["tokens"].vectors[:cols].T
        return Pairs(one, other, cosine, how, values, notes=_notes(sides, clip))
    one, other = _remove(clip, sides, RemovalRun(kept, forwards, seed), progress or silent)
    assert one.removal is not None
    assert other.removal is not None
    values, errors = interactions(one.removal, other.removal)
    return Pairs(one, other, cosine, how, values, errors, kept, _notes(sides, clip))


def _remove(clip: Clip, sides: list[Side], run: RemovalRun, progress: Progress) -> tuple[Side, Side]:
    """Measure what taking parts away does to both sides; those that were measured before stay as they are."""
    games: list[RemovalGame | None] = []
    for side in sides:
        tower = as_transformer(clip.vision if side.kind == "picture" else clip.text_tower)
        if side.removal is not None and side.removal.kept == run.kept:
            games.append(None)
            continue
        seed = 2 * run.seed + len(games)  # two sides draw different subsets
        game = RemovalGame(tower, side.inputs, tokens_of_parts(side, clip), run.kept, seed)
        game.more(run.forwards or 4 * len(side.parts), progress)
        games.append(game)
    while True:
        fits = [side.removal if game is None else game.fit() for side, game in zip(sides, games, strict=True)]
        assert fits[0] is not None
        assert fits[1] is not None
        values, errors = interactions(fits[0], fits[1])
        unsure = [game for game in games if game is not None and not game.complete and len(game) < MOST]
        small = not values.numel() or float(errors.max()) <= PRECISE * float(values.abs().max())
        if run.forwards is not None or not unsure or small:
            return replace(sides[0], removal=fits[0]), replace(sides[1], removal=fits[1])
        for game in unsure:
            game.more(len(game), progress)


def _notes(sides: list[Side], clip: Clip) -> tuple[str, ...]:
    notes: list[str] = []
    for side in sides:
        if side.kind == "text":
            notes += (
                f"“{shorten(side.name, 40)}”: {note}" for note in checked_texts([side.name], clip.tokenizer)[0].notes
            )
        if not side.parts:
            notes.append(f"“{shorten(side.name, 40)}” has no parts: its tower is run by its own library, as one")
    return tuple(dict.fromkeys(notes))


def _plural(side: Side) -> str:
    return "patches" if side.kind == "picture" else "words"


def rounded(values: Tensor) -> list[list[float]]:
    """Round a table to a millionth."""
    return [[round(one, 6) for one in row] for row in values.tolist()]


def _check(how: str, kept: float, forwards: int | None) -> None:
    if how not in ("split", "removal"):
        raise BadSpec(f"how={how!r} is not known. Type one of: 'split', 'removal'")
    if not (isfinite(kept) and 0.05 <= kept <= 0.95):
        raise BadSpec(f"kept={kept!r} is not between 0.05 and 0.95. Type: kept=0.5")
    if forwards is not None and not 16 <= forwards <= 1_000_000:
        raise BadSpec(f"forwards={forwards!r}: 16 to 1,000,000 were expected. Type: forwards=1024")
