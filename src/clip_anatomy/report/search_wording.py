"""How a search is said: title, what was compared, numbers, heads."""

import re

from clip_anatomy.retrieval.ranking import Hit, Ranking, Used

__all__ = ["compared", "counted", "number", "ordered", "reading", "standing", "title", "told"]


def title(ranking: Ranking) -> str:
    """What was asked, as a heading: "Same texture as a.jpg"."""
    asked, focus = ranking.asked, ranking.focus
    pictures = asked is not None and bool(asked.more) and not asked.words
    kind, given, value = ranking.choice.partition("=")
    what = value if given else kind
    if ranking.mode == "without":
        numbered = not what or what[:1].isdigit() or what in ("auto", "all")
        return f"Like {ranking.query}, {f'without heads {_names(ranking)}' if numbered else f'whatever the {what}'}"
    if focus and "|" not in focus:
        return f"Same {focus} as {ranking.query}" if pictures else f"Like {ranking.query}, by {focus}"
    if focus:
        return f"Like {ranking.query}, by {focus}"
    if ranking.mode == "heads" and kind == "role":
        return f"Like {ranking.query}, by {value}"
    if ranking.mode == "heads" and what and kind not in ("auto", "all") and not kind[:1].isdigit():
        return f"Like {ranking.query}, by “{what}”"
    return f"Like {ranking.query}"


def _names(ranking: Ranking) -> str:
    return ", ".join(one.name for one in ranking.heads[:4]) + (" …" if len(ranking.heads) > 4 else "")


def compared(ranking: Ranking) -> str:
    """What was compared, as a sentence without its full stop."""
    n = len(ranking.heads)
    heads = "one head" if n == 1 else f"{n} heads"
    along = f", and of that only what tells texts about {ranking.focus} apart" if ranking.focus else ""
    if "|" in ranking.focus:
        along = f", and of that only what tells {ranking.focus} apart"
    return {
        "heads": f"Compared in what {heads} of the model saw{along}",
        "whole": f"Compared by the whole embedding{along}",
        "without": f"Compared by the embedding with {heads} set to {'its' if n == 1 else 'their'} mean{along}",
    }[ranking.mode]


def standing(ranking: Ranking) -> str:
    """What is said before the texts that stand out."""
    several = ranking.asked is not None and len(ranking.asked.more) > 1
    return f"What stands out in {'them all' if several else 'it'}"


def counted(ranking: Ranking) -> str:
    """Which results these are, and of how many."""
    among = f"{ranking.images:,} images"
    if ranking.where:
        values = iter(ranking.parameters)
        known = ranking.where.count("?") == len(ranking.parameters)
        where = re.sub(r"\?", lambda _: repr(next(values)), ranking.where) if known else ranking.where
        among = f"{ranking.matched:,} of {among} where {where}"
    first, last = ranking.offset + 1, ranking.offset + len(ranking.hits)
    kind = "" if ranking.exact else ", approximate"
    return f"{first}–{last} of {among}{kind}, {1e3 * ranking.seconds:.0f} ms" if ranking.hits else f"none of {among}"


def number(value: float, *, sign: bool = False) -> str:
    """Three decimals, with a real minus."""
    return (f"{value:+.3f}" if sign else f"{value:.3f}").replace("-", "−")


def told(ranking: Ranking, hit: Hit, most: int = 3) -> list[tuple[Used, float, int]]:
    """The heads that add most to a score, either way: head, share, its place in `Ranking.heads`."""
    if ranking.mode != "heads":
        return []
    order = sorted(range(len(hit.shares)), key=lambda at: -abs(hit.shares[at]))[:most]
    return [(ranking.heads[at], hit.shares[at], at) for at in order]


def ordered(ranking: Ranking) -> list[int]:
    """Places of the heads in `Ranking.heads`, those first that add most to the scores of these results, all taken together."""
    places = range(len(ranking.heads))
    if ranking.mode != "heads":
        return [*places]
    return sorted(places, key=lambda at: -sum(hit.shares[at] for hit in ranking.hits))


def reading(ranking: Ranking, *, maps: bool) -> list[str]:
    """How to read a page of results, a sentence or two an entry."""
    said = [
        "The score is the cosine between what was asked for and what the compared parts wrote: 1 is the same, 0 no more alike "
        "than two pictures by chance."
        if ranking.measure == "cosine" and ranking.centred
        else "The score is a cosine."
        if ranking.measure == "cosine"
        else "The score is an inner product: the part of the cosine that the compared heads contribute"
        + (", above that of an average image." if ranking.centred else ".")
    ]
    if ranking.sought or any(hit.alike for hit in ranking.hits):
        said.append(
            "The words are the texts that stand out most, against all images, for both what was asked for and the result: what "
            "the model, not a person, would say that they share. No words: no text stands out for both."
        )
    if ranking.mode == "heads":
        said.append(
            "The bar shows what each head adds to the score, in the colours of the list of heads; shares add up to it exactly."
        )
    if maps:
        said.append(
            "Patches that made a picture match are lit, those without a part in it lie in shade, those that spoke against it in "
            "blue. Each picture is lit by its own best patch; the score says how much that was."
        )
    return said
