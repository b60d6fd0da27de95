"""Everything that was found out about the heads, put together head by head."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from clip_anatomy.naming.atlas import AtlasHead, AtlasText, Seen
from clip_anatomy.naming.evidence import Evidence
from clip_anatomy.naming.known_truth import Truth
from clip_anatomy.naming.pool import Pool
from clip_anatomy.naming.roles import Role
from clip_anatomy.naming.stability import Stability
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.rows import Row

__all__ = ["Findings", "entries"]


@dataclass(frozen=True)
class Findings:
    """What the steps of an atlas found.

    Attributes:
        span: picks and figures.
        moments: statistics behind them.
        texts: the pool.
        roles: (layer, head) → role.
        steady: stability of the picks, if it was measured.
        seen: images behind the directions.
        rows: what is known of those images.
        driven: what truly drives the heads, where that is known.
    """

    span: TextSpanResult
    moments: Moments
    texts: Pool
    roles: Mapping[tuple[int, int], Role]
    steady: Stability | None
    seen: Evidence
    rows: Mapping[int, Row]
    driven: Truth | None


def entries(found: Findings, images: int) -> tuple[AtlasHead, ...]:
    """One entry per head.

    Args:
        found: what was found.
        images: how many images to show of either kind.
    """
    span, driven = found.span, found.driven
    variance = found.moments.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    last = min(span.within, span.texts_per_head) - 1
    heads: list[AtlasHead] = []
    for layer, head in span.heads():
        at = span.layers.index(layer), head
        shares = [] if driven is None else list(zip(driven.attributes, driven.share[at].tolist(), strict=True))
        heads.append(
            AtlasHead(
                layer=layer,
                head=head,
                role=found.roles[layer, head],
                variance=float(variance[at]),
                rank=int(span.rank[at]),
                explained=float(span.cumulative[at][last]),
                ceiling=float(span.ceiling[at][last]),
                texts=_texts(found, layer, head, images),
                truth=tuple(sorted(shares, key=lambda one: -one[1])),
            )
        )
    return tuple(heads)


def _texts(found: Findings, layer: int, head: int, images: int) -> tuple[AtlasText, ...]:
    span, steady, seen = found.span, found.steady, found.seen
    at = span.layers.index(layer), head
    texts: list[AtlasText] = []
    before = 0.0
    for pick in span.picks(layer, head, found.texts.texts):
        k = pick.place
        shown = k < seen.most.shape[2]
        texts.append(
            AtlasText(
                text=pick.text,
                property=found.texts.properties[int(span.indices[at][k])],
                alone=pick.alone,
                gain=pick.cumulative - before,
                cumulative=pick.cumulative,
                runner_up=pick.runner_up,
                margin=pick.margin,
                again=None if steady is None else float(steady.again[at][k]),
                as_early=None if steady is None else float(steady.as_early[at][k]),
                most=_seen(seen.most[at][k], seen.most_value[at][k], found.rows, images) if shown else (),
                least=_seen(seen.least[at][k], seen.least_value[at][k], found.rows, images) if shown else (),
            )
        )
        before = pick.cumulative
    return tuple(texts)


def _seen(places: Tensor, values: Tensor, rows: Mapping[int, Row], images: int) -> tuple[Seen, ...]:
    """The first images of a list, copies of one picture once."""
    found: dict[str, Seen] = {}
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        if place >= 0 and place in rows:
            row = rows[place]
            found.setdefault(row.digest or row.id, Seen(place, row.id, row.label, value))
    return tuple(found.values())[:images]
