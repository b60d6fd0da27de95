"""The adaptive pool: span, ask for more texts like the best ones, add them, span again, until that no longer pays."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.naming.atlas import Round
from clip_anatomy.naming.grammar import Grammar
from clip_anatomy.naming.language_model import Answer, LanguageModel
from clip_anatomy.naming.llm_questions import more_like
from clip_anatomy.naming.pool import Pool
from clip_anatomy.naming.roles import tag
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.split.moments import Moments

__all__ = ["Grown", "grow"]

SEEDS = 5  # texts of a head that more are asked for
ASKED = 12  # texts asked of the language model for each of these heads
EVERYTHING = 10**6  # descriptions of one property, more than any grammar has
HEADS = 24  # heads that a round is for: those with most left to explain


@dataclass(frozen=True)
class Grown:
    """A pool that was grown.

    Attributes:
        pool: all texts, the first pool's first.
        embeddings: of these texts, unit length.
        span: the last span.
        curve: size of the pool and explained variance, one for each span.
        flat: whether it stopped because nothing more was gained.
        answers: what the language model said.
    """

    pool: Pool
    embeddings: Float[Tensor, "text embed"]
    span: TextSpanResult
    curve: tuple[Round, ...]
    flat: bool
    answers: tuple[Answer, ...]


def grow(
    moments: Moments,
    pool: Pool,
    embed: Callable[[Pool], Float[Tensor, "text embed"]],
    grammar: Grammar,
    *,
    model: LanguageModel | None = None,
    texts_per_head: int = 20,
    rounds: int = 6,
    gain: float = 0.01,
    report: Callable[[Round], None] | None = None,
) -> Grown:
    """Grow a pool around what the heads are about.

    Everything expensive is kept by others (embeddings in the text cache, answers on their shelf), so that a stopped run
    goes through what it had done at once.

    Args:
        moments: statistics of the heads.
        pool: texts to start from.
        embed: gives unit embeddings of a pool.
        grammar: makes more like these where there is no language model; tags what a language model writes.
        model: asked for more, if given.
        texts_per_head: picks of each head in the final span; a round is judged by the first `span.within`.
        rounds: how often the pool may grow.
        gain: a round that raises the explained variance by less than this share of it was the last.
        report: called after each span.

    Returns:
        Grown.

    Raises:
        BadInput: settings that make no sense.
        EndpointError: the language model does not answer.
    """
    if rounds < 1 or not 0 <= gain < 1:
        raise BadInput(f"rounds={rounds}, gain={gain}: type rounds=6, gain=0.01")
    answers: list[Answer] = []
    curve: list[Round] = []
    flat = False
    while True:
        embeddings = embed(pool)
        span = textspan(moments, embeddings, texts_per_head)
        curve.append(Round(len(pool), _explained(span)))
        if report is not None:
            report(curve[-1])
        flat = len(curve) > 1 and curve[-1].explained - curve[-2].explained < gain * curve[-2].explained
        if flat or len(curve) > rounds:
            break
        more = _more(_seeds(span, moments, pool), pool, grammar, model, answers)
        if not len(more):
            flat = True
            break
        pool = pool.merge(more)
    return Grown(pool, embeddings, span, tuple(curve), flat, tuple(answers))


def _explained(span: TextSpanResult) -> float:
    """Mean over heads of the share that the first texts explain."""
    first = span.cumulative[:, :, min(span.within, span.texts_per_head) - 1]
    return float(first[span.covered].mean())


def _more(
    seeds: list[list[str]], pool: Pool, grammar: Grammar, model: LanguageModel | None, answers: list[Answer]
) -> Pool:
    """New texts like these."""
    known = {text.lower() for text in pool.texts}
    if model is None:
        asked = list(
            dict.fromkeys(text for place in range(SEEDS) for some in seeds for text in some[place : place + 1])
        )
        # Some more than wanted, because part of them is in the pool already.
        made = grammar.expand(asked, 2 * len(pool)) if asked else Pool(())
        fresh = tuple(text for text in made.texts if text.lower() not in known)[: max(len(pool) // 2, 50)]
        own = grammar.pool(EVERYTHING)
        about = dict(zip(own.texts, own.properties, strict=True))
        return Pool(fresh, tag(fresh, [about.get(text, "") for text in fresh], grammar), "more by the grammar")
    found: dict[str, str] = {}
    for some in seeds:
        texts, answer = more_like(model, some, ASKED)
        answers.append(answer)
        found |= {text.lower(): text for text in texts if text.lower() not in known}
    texts = tuple(found.values())
    return Pool(texts, tag(texts, [""] * len(texts), grammar), f"more by {model.name}")


def _seeds(span: TextSpanResult, moments: Moments, pool: Pool) -> list[list[str]]:
    """The first picks of the heads with most variance left to explain."""
    at = min(span.within, span.texts_per_head) - 1
    variance = moments.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    left = (1 - span.cumulative[:, :, at]) * variance
    heads = sorted(span.heads(), key=lambda pair: -float(left[span.layers.index(pair[0]), pair[1]]))[:HEADS]
    seeds = [[pick.text for pick in span.picks(layer, head, pool.texts)[:SEEDS]] for layer, head in heads]
    return [some for some in seeds if some]
