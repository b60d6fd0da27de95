"""The adaptive pool: name heads, make more texts like the best ones, add them, name again, until that no longer pays."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.naming.atlas import PoolRound
from clip_anatomy.naming.grammar import Grammar, tag
from clip_anatomy.naming.language_model import LanguageModel, LlmAnswer
from clip_anatomy.naming.llm_prompts import more_like
from clip_anatomy.naming.pool import Pool
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.progress import Progress, silent
from clip_anatomy.split.moments import Moments

__all__ = ["AdaptivePool", "grow"]

SEEDS = 5  # texts of a head that more are asked for
NEW_TEXTS = 12  # texts asked of the language model for each of these heads
EVERYTHING = 10**6  # descriptions of one property, more than any grammar has
HEADS = 24  # heads that a round is for: those with most left to explain


@dataclass(frozen=True)
class AdaptivePool:
    """A pool that was grown.

    Attributes:
        pool: all texts, the first pool's first.
        embeddings: of these texts, unit length.
        span: what `textspan` picked from it.
        curve: size of the pool and explained variance, one for each time it was tried.
        answers: of the language model, as they came.
    """

    pool: Pool
    embeddings: Float[Tensor, "text embed"]
    span: TextSpanResult
    curve: tuple[PoolRound, ...]
    answers: tuple[LlmAnswer, ...]


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
    progress: Progress | None = None,
) -> AdaptivePool:
    """Grow a pool around what the heads are about.

    Everything expensive is kept by others (embeddings in the text cache, answers in theirs), so that a stopped run
    goes through what it had done at once.

    Args:
        moments: statistics of the heads.
        pool: texts to start from.
        embed: gives unit embeddings of a pool.
        grammar: makes more like these where there is no language model; tags what a language model writes.
        model: asked for more, if given.
        texts_per_head: picks of each head in the final span; a round is judged by its first `span.top_k`.
        rounds: how often the pool may grow; 0 for not at all.
        gain: a round that raises the explained variance by less than this share of it was the last.
        progress: called as heads are named, and after each round.

    Returns:
        AdaptivePool.

    Raises:
        BadInput: settings that make no sense.
        EndpointError: the language model does not answer.
    """
    if rounds < 0 or not 0 <= gain < 1:
        raise BadInput(f"rounds={rounds}, gain={gain}: type rounds=6, gain=0.01")
    tell = progress or silent
    answers: list[LlmAnswer] = []
    curve: list[PoolRound] = []
    while True:
        embeddings = embed(pool)
        span = textspan(moments, embeddings, texts_per_head, progress=tell)
        curve.append(PoolRound(len(pool), _explained(span)))
        tell(f"pool of {len(pool):,} texts: {100 * curve[-1].explained:.2f} % explained", 1, 1)
        flat = len(curve) > 1 and curve[-1].explained - curve[-2].explained < gain * curve[-2].explained
        more = (
            Pool(())
            if flat or len(curve) > rounds
            else _more(_seeds(span, moments, pool), pool, grammar, model, answers)
        )
        if not len(more):
            return AdaptivePool(pool, embeddings, span, tuple(curve), tuple(answers))
        pool = pool.merge(more)


def _explained(span: TextSpanResult) -> float:
    """Return mean over heads of the share that the first texts explain."""
    first = span.cumulative[:, :, min(span.top_k, span.texts_per_head) - 1]
    return float(first[span.covered].mean())


def _more(
    seeds: list[list[str]], pool: Pool, grammar: Grammar, model: LanguageModel | None, answers: list[LlmAnswer]
) -> Pool:
    """Return new texts like these."""
    known = {text.lower() for text in pool.texts}
    if model is None:
        examples = list(
            dict.fromkeys(text for place in range(SEEDS) for some in seeds for text in some[place : place + 1])
        )
        # Some more than wanted, because part of them is in the pool already.
        made = grammar.expand(examples, 2 * len(pool)) if examples else Pool(())
        fresh = tuple(text for text in made.texts if text.lower() not in known)[: max(len(pool) // 2, 50)]
        own = grammar.pool(EVERYTHING)
        about = dict(zip(own.texts, own.properties, strict=True))
        return Pool(fresh, tag(fresh, [about.get(text, "") for text in fresh], grammar), "more by the grammar")
    new_texts: dict[str, str] = {}
    for some in seeds:
        texts, answer = more_like(model, some, NEW_TEXTS)
        answers.append(answer)
        new_texts |= {text.lower(): text for text in texts if text.lower() not in known}
    texts = tuple(new_texts.values())
    return Pool(texts, tag(texts, [""] * len(texts), grammar), f"more by {model.name}")


def _seeds(span: TextSpanResult, moments: Moments, pool: Pool) -> list[list[str]]:
    """Return the first picks of the heads with most variance left to explain."""
    at = min(span.top_k, span.texts_per_head) - 1
    variance = moments.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    left = (1 - span.cumulative[:, :, at]) * variance
    heads = sorted(span.heads(), key=lambda pair: -float(left[span.layers.index(pair[0]), pair[1]]))[:HEADS]
    seeds = [[pick.text for pick in span.picks(layer, head, pool.texts)[:SEEDS]] for layer, head in heads]
    return [some for some in seeds if some]
