"""What a search found, as a table at the terminal."""

from collections.abc import Sequence
from textwrap import wrap

from clip_anatomy.report.search_wording import compared, counted, number, ordered, standing, title, told
from clip_anatomy.retrieval.ranking import Ranking
from clip_anatomy.retrieval.text_search import TextRanking

__all__ = ["print_ranking", "print_texts"]

NARROW = 100  # columns where the output is no terminal


def print_ranking(found: Ranking) -> None:
    """Print every result on a line: rank, score, id, label, what it shares in words, and the heads that made it match."""
    print(title(found))
    named = ", ".join(f"{found.heads[at].name} {found.heads[at].word}".strip() for at in ordered(found)[:6])
    more = f" and {len(found.heads) - 6} more" if len(found.heads) > 6 else ""
    for said in (f"{compared(found)}.", f"Heads: {named}{more}" if named else ""):
        print("\n".join(wrap(said, NARROW)), end="\n" if said else "")
    if found.sought:
        print(f"{standing(found)}: {', '.join(found.sought)}")
    labelled = any(hit.row.label for hit in found.hits)
    worded = any(hit.alike for hit in found.hits)
    headed = found.mode == "heads"
    names = ["", "score", "picture", *(["label"] if labelled else []), *(["alike in"] if worded else [])]
    names += ["what its heads add"] if headed else []
    rows = [
        [
            str(hit.rank),
            number(hit.score),
            hit.row.id + (f" (and {len(hit.copies)} equal)" if hit.copies else ""),
            *([hit.row.label] if labelled else []),
            *([hit.alike[0] if hit.alike else ""] if worded else []),
            *(
                [", ".join(f"{one.name} {number(share, sign=True)}" for one, share, _ in told(found, hit))]
                if headed
                else []
            ),
        ]
        for hit in found.hits
    ]
    _table(names, rows)
    print(counted(found))


def print_texts(found: TextRanking) -> None:
    """Print captions that were found, and the images that have them."""
    rows = [
        [
            str(hit.rank),
            number(hit.score),
            hit.text,
            ", ".join(hit.ids[:2]) + (f" and {len(hit.ids) - 2} more" if len(hit.ids) > 2 else ""),
        ]
        for hit in found.hits
    ]
    _table(["", "score", "caption", "of"], rows)
    print(f"captions like {found.query}, of {found.texts:,}, by {len(found.heads)} heads of the text tower")


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=NARROW)
    view = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        view.add_column(name, justify="right" if name in ("", "score") else "left", overflow="fold")
    for row in rows:
        view.add_row(*(Text(cell) for cell in row))
    console.print(view)
