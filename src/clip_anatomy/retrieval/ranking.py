"""`Ranking`: the answer of a search, with everything that says why."""

import re
from dataclasses import asdict, dataclass, field
from textwrap import fill
from typing import Any, ClassVar

from clip_anatomy.loading.clip import Clip
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result
from clip_anatomy.retrieval.automatic_heads import ChosenHead
from clip_anatomy.retrieval.hits import Hit
from clip_anatomy.retrieval.query import Query
from clip_anatomy.retrieval.text_table import decimals, signed, text_table
from clip_anatomy.store.store import Store
from clip_anatomy.store.store_model import model_of

__all__ = ["SCHEMA", "Ranking"]

SCHEMA = "clip-anatomy/search/1"
CLEAR = 0.5  # of a head's evidence: below it, results need not have "the same" of anything
COLUMNS = 100  # of the summary
LISTED = 6  # heads in its list


@public
@dataclass(frozen=True, repr=False)
class Ranking(Result):
    """What a search found.

    Attributes:
        query: what was looked for, in which heads.
        store: the store.
        hits: best first.
        matched: how many images satisfied the filter.
        seconds: that the scan took.
        where: the filter.
        parameters: values of its placeholders.
        exact: False where an approximate index was asked.
        shared_texts: texts that describe the pictures of the query best, by what was compared; see `shared_texts`.
        notes: what a reader must know.
        clip: the store's model, where it was opened.
    """

    presenter: ClassVar[str] = "search_folder"

    query: Query
    store: Store = field(compare=False)
    hits: tuple[Hit, ...]
    matched: int
    seconds: float = 0.0
    where: str = ""
    parameters: tuple[Any, ...] = ()
    exact: bool = True
    shared_texts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    clip: Clip | None = field(default=None, compare=False)

    def __len__(self) -> int:
        """Return the number of hits."""
        return len(self.hits)

    @property
    def ids(self) -> list[str]:
        """Ids of the hits, best first."""
        return [hit.row.id for hit in self.hits]

    @property
    def heads(self) -> tuple[ChosenHead, ...]:
        """The heads that were compared, or left out."""
        return self.query.heads

    def model(self) -> Clip:
        """Return the store's model; opens it where the search did not."""
        return self.clip if self.clip is not None else model_of(self.store)

    @property
    def title(self) -> str:
        """What was asked for, as a heading, as strong as the evidence: "Same texture as a.jpg", "Like a.jpg, weakly by texture"."""
        query, focus = self.query, self.query.focus
        kind, given, value = query.choice.partition("=")
        what = value if given else kind
        numbered = not what or what[:1].isdigit() or what in ("auto", "all")
        if query.mode == "without":
            names = ", ".join(one.name for one in query.heads[:4]) + (" …" if len(query.heads) > 4 else "")
            return f"Like {query.summary}, {f'without heads {names}' if numbered else f'whatever the {what}'}"
        weak = self.weakness
        if focus and query.like and not query.texts and "|" not in focus and self.evidence >= CLEAR:
            return f"Same {focus} as {query.summary}"
        if focus:
            return f"Like {query.summary}, {weak}by {focus}"
        if query.mode == "heads" and not numbered:
            return f"Like {query.summary}, {weak}by {value if kind == 'role' else f'“{what}”'}"
        return f"Like {query.summary}"

    @property
    def evidence(self) -> float:
        """Largest share of a compared head's evidence that is about what heads were chosen by; 0 where they were chosen otherwise."""
        return max((one.evidence or 0.0 for one in self.heads), default=0.0)

    @property
    def weakness(self) -> str:
        """How a title says that no compared head is about what they were chosen by."""
        known = any(one.evidence is not None for one in self.heads)
        return f"weakly ({self.evidence:.0%} of the evidence at best) " if known and self.evidence < CLEAR else ""

    @property
    def comparison(self) -> str:
        """What was compared, as a sentence without its full stop."""
        n, focus = len(self.heads), self.query.focus
        heads = "one head" if n == 1 else f"{n} heads"
        about = focus if "|" in focus else f"texts about {focus}"
        along = f", and of that only what tells {about} apart" if focus else ""
        return {
            "heads": f"Compared in what {heads} of the model saw{along}",
            "whole": f"Compared by the whole embedding{along}",
            "without": f"Compared by the embedding with {heads} set to {'its' if n == 1 else 'their'} mean{along}",
        }[self.query.mode]

    @property
    def shared_heading(self) -> str:
        """What stands before the texts that describe the query."""
        return f"What stands out in {'them all' if len(self.query.like) > 1 else 'it'}"

    @property
    def counted(self) -> str:
        """How many results these are, and of how many images."""
        among = f"{len(self.store):,} images"
        if self.where:
            values = iter(self.parameters)
            known = self.where.count("?") == len(self.parameters)
            where = re.sub(r"\?", lambda _: repr(next(values)), self.where) if known else self.where
            among = f"{self.matched:,} of {among} where {where}"
        if not self.hits:
            return f"none of {among}"
        return f"{len(self)} of {among}{'' if self.exact else ', approximate'}, {1e3 * self.seconds:.0f} ms"

    def strongest(self, hit: Hit, most: int = 3) -> list[tuple[ChosenHead, float, int]]:
        """Return the heads that add most to a score, either way: head, share, its place in `heads`."""
        if self.query.mode != "heads":
            return []
        order = sorted(range(len(hit.shares)), key=lambda at: -abs(hit.shares[at]))[:most]
        return [(self.heads[at], hit.shares[at], at) for at in order]

    def reason(self, hit: Hit, most: int = 3) -> str:
        """Say why one image was found: the heads that add most.

        Example: "10.1 colour +0.410, 9.3 colour +0.220".
        """
        if self.query.mode != "heads":
            return {"whole": "whole embedding", "without": "everything but the chosen heads"}[self.query.mode]
        return ", ".join(
            f"{one.name} {one.word}".rstrip() + f" {signed(share)}" for one, share, _ in self.strongest(hit, most)
        )

    def head_order(self) -> list[int]:
        """Return places in `heads`, those first that add most to the scores of these results, all taken together."""
        places = range(len(self.heads))
        if self.query.mode != "heads":
            return [*places]
        return sorted(places, key=lambda at: -sum(hit.shares[at] for hit in self.hits))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but vectors as plain values, ready for JSON."""
        query = self.query
        return {
            "schema": SCHEMA,
            "query": query.summary,
            "store": str(self.store.path),
            "model": self.store.manifest.model,
            "mode": query.mode,
            "measure": query.measure,
            "images": len(self.store),
            "matched": self.matched,
            "seconds": self.seconds,
            "where": self.where,
            "parameters": list(self.parameters),
            "focus": query.focus,
            "choice": query.choice,
            "exact": self.exact,
            "notes": list(self.notes),
            "shared_texts": list(self.shared_texts),
            "heads": [asdict(one) for one in self.heads],
            "hits": [hit.to_dict(self.heads) for hit in self.hits],
        }

    def summary(self) -> str:
        """Return the answer as text: a line for each result, with what it shares in words and the heads that made it match."""
        head_names = [f"{self.heads[at].name} {self.heads[at].word}".strip() for at in self.head_order()]
        more = f" and {len(head_names) - LISTED} more" if len(head_names) > LISTED else ""
        lines = [self.title, fill(f"{self.comparison}.", COLUMNS)]
        if head_names:
            lines.append(fill(f"Heads: {', '.join(head_names[:LISTED])}{more}", COLUMNS))
        if self.shared_texts:
            lines.append(f"{self.shared_heading}: {', '.join(self.shared_texts)}")
        rows = [
            [
                str(hit.rank),
                decimals(hit.score),
                hit.row.id + (f" (and {len(hit.copies)} equal)" if hit.copies else ""),
                hit.row.label,
                hit.shared_texts[0] if hit.shared_texts else "",
                ", ".join(f"{one.name} {signed(share)}" for one, share, _ in self.strongest(hit)),
            ]
            for hit in self.hits
        ]
        names = ["", "score", "picture", "label", "shared text", "what its heads add"]
        table = ["", text_table(names, rows), ""] if rows else []
        return "\n".join([*lines, *table, self.counted])
