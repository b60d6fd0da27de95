"""`Ranking`: the answer of a search, with everything that says why."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from clip_anatomy.retrieval.query import Asked
from clip_anatomy.retrieval.subspace import Space
from clip_anatomy.store.rows import Row

__all__ = ["SCHEMA", "Hit", "Ranking", "Used"]

SCHEMA = "clip-anatomy/search/1"


@dataclass(frozen=True)
class Used:
    """One head that a search looked at.

    Attributes:
        layer: its layer.
        head: its number.
        why: why it was chosen, in words.
        meaning: what the atlas says it is about: "colour: something red"; "" where no atlas was asked.
    """

    layer: int
    head: int
    why: str = ""
    meaning: str = ""

    @property
    def name(self) -> str:
        """`layer.head`, as it is typed."""
        return f"{self.layer}.{self.head}"

    @property
    def word(self) -> str:
        """What it is about in a word or two, else why it was chosen; "" where that takes more words."""
        first = (self.meaning or self.why.split(",", maxsplit=1)[0]).partition(":")[0].strip()
        return first if len(first) < 20 else ""


@dataclass(frozen=True)
class Hit:
    """One image that was found.

    Attributes:
        rank: 1 for the best.
        score: inner product or cosine.
        row: what is known of it.
        shares: what each head (`Ranking.heads`) adds to the score; they add up to it. One number where heads are not compared.
        copies: ids of equal files that were folded into it.
        alike: texts that it has in common with what was asked for, the closest first; see `alike`.
    """

    rank: int
    score: float
    row: Row
    shares: tuple[float, ...]
    copies: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """What a search found.

    Attributes:
        query: what was asked, in words.
        store: folder of the store.
        model: its model.
        mode: "heads", "whole" or "without".
        measure: "cosine" or "dot".
        centred: whether means were taken away.
        heads: the heads that were looked at (in mode "without": that were not).
        hits: best first.
        images: how many there are in the store.
        matched: how many satisfied the filter.
        offset: how many better ones come before the first hit here.
        seconds: that the scan took.
        where: the filter.
        parameters: values of its placeholders.
        focus: the property that alone was compared, "" for none.
        choice: how the heads were chosen, as it was typed; "" where they were given as pairs.
        sought: texts that lie closest to what was looked for; see `alike`.
        exact: False where an approximate index was asked.
        notes: what a reader must know.
        space: the vectors that were compared.
        direction: what was looked for, in them; of unit length for cosines.
        asked: the pictures and texts that were asked for.
    """

    query: str
    store: str
    model: str
    mode: str
    measure: str
    centred: bool
    heads: tuple[Used, ...]
    hits: tuple[Hit, ...]
    images: int
    matched: int
    offset: int = 0
    seconds: float = 0.0
    where: str = ""
    parameters: tuple[Any, ...] = ()
    focus: str = ""
    choice: str = ""
    sought: tuple[str, ...] = ()
    exact: bool = True
    notes: tuple[str, ...] = ()
    space: Space | None = field(default=None, repr=False, compare=False)
    direction: Float64[Tensor, " out"] | None = field(default=None, repr=False, compare=False)
    asked: Asked | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of hits."""
        return len(self.hits)

    @property
    def ids(self) -> list[str]:
        """Ids of the hits, best first."""
        return [hit.row.id for hit in self.hits]

    def told(self, hit: Hit, most: int = 3) -> str:
        """Why one image was found, in words: the heads that add most.

        Example: "10.1 colour +0.41, 9.3 colour +0.22".
        """
        if self.mode != "heads":
            return {"whole": "whole embedding", "without": "everything but the chosen heads"}[self.mode]
        order = sorted(range(len(hit.shares)), key=lambda at: -abs(hit.shares[at]))[:most]
        said = (f"{self.heads[at].name} {self.heads[at].word}".rstrip() + f" {hit.shares[at]:+.3f}" for at in order)
        return ", ".join(said).replace(" -0", " −0")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        plain = ("query", "store", "model", "mode", "measure", "centred", "images", "matched", "offset", "seconds")
        more = ("where", "focus", "choice", "exact")
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in (*plain, *more)},
            "parameters": list(self.parameters),
            "notes": list(self.notes),
            "sought": list(self.sought),
            "heads": [asdict(one) for one in self.heads],
            "hits": [_hit(hit, self.heads) for hit in self.hits],
        }


def _hit(hit: Hit, heads: Sequence[Used]) -> dict[str, Any]:
    row = asdict(hit.row)
    shares = dict(zip((one.name for one in heads), hit.shares, strict=False)) if len(heads) == len(hit.shares) else {}
    return {
        "rank": hit.rank,
        "score": hit.score,
        "id": row["id"],
        "path": row["path"],
        "label": row["label"],
        "group": row["group"],
        "captions": list(row["captions"]),
        "meta": dict(row["meta"]),
        "index": row["index"],
        "source": row["source"],
        "heads": shares,
        "alike": list(hit.alike),
        "copies": list(hit.copies),
    }
