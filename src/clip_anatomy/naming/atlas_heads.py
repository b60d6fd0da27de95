"""The entries of an atlas: everything that was measured about the heads, put together head by head."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from clip_anatomy.naming.atlas import AtlasHead, AtlasImage, AtlasText
from clip_anatomy.naming.chance import ChanceLevel
from clip_anatomy.naming.concept_shares import ConceptShare
from clip_anatomy.naming.ground_truth import GroundTruth
from clip_anatomy.naming.pool import Pool
from clip_anatomy.naming.roles import Role
from clip_anatomy.naming.stability import Stability
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.naming.top_images import TopImages
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.rows import ImageRow

__all__ = ["HeadMeasurements", "atlas_heads"]


@dataclass(frozen=True)
class HeadMeasurements:
    """What the steps of an atlas measured about all heads.

    Attributes:
        span: picked texts and how much variance they explain.
        moments: the moments that were spanned.
        pool: the texts.
        roles: (layer, head) → role.
        stability: of the picks over bootstrap resamples, if it was measured.
        top_images: images at the ends of the picked directions.
        rows: place in the store → what is known of that image.
        truth: share of each head's variance that known attributes explain, where they are known.
        chance: what shuffled texts reach.
        concepts: what the words of each concept explain.
    """

    span: TextSpanResult
    moments: Moments
    pool: Pool
    roles: Mapping[tuple[int, int], Role]
    stability: Stability | None
    top_images: TopImages
    rows: Mapping[int, ImageRow]
    truth: GroundTruth | None
    chance: Mapping[tuple[int, int], ChanceLevel] = field(default_factory=dict[tuple[int, int], ChanceLevel])
    concepts: Mapping[tuple[int, int], tuple[ConceptShare, ...]] = field(
        default_factory=dict[tuple[int, int], tuple[ConceptShare, ...]]
    )


def atlas_heads(measured: HeadMeasurements, images: int) -> tuple[AtlasHead, ...]:
    """Put together one entry per head.

    Args:
        measured: what was measured.
        images: how many images to keep at either end of a direction.
    """
    span, truth = measured.span, measured.truth
    variance = measured.moments.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    last = min(span.top_k, span.texts_per_head) - 1
    heads: list[AtlasHead] = []
    for layer, head in span.heads():
        at = span.layers.index(layer), head
        level = measured.chance.get((layer, head))
        shares = [] if truth is None else list(zip(truth.attributes, truth.share[at].tolist(), strict=True))
        heads.append(
            AtlasHead(
                layer=layer,
                head=head,
                role=measured.roles[layer, head],
                variance=float(variance[at]),
                rank=int(span.rank[at]),
                explained=float(span.cumulative[at][last]),
                pca_explained=float(span.pca_explained[at][last]),
                texts=_texts(measured, layer, head, images),
                truth=tuple(sorted(shares, key=lambda one: -one[1])),
                chance=None if level is None else level.explained,
                role_chance=None if level is None else level.role,
                concepts=measured.concepts.get((layer, head), ()),
            )
        )
    return tuple(heads)


def _texts(measured: HeadMeasurements, layer: int, head: int, images: int) -> tuple[AtlasText, ...]:
    span, stability, top = measured.span, measured.stability, measured.top_images
    at = span.layers.index(layer), head
    texts: list[AtlasText] = []
    before = 0.0
    for pick in span.picks(layer, head, measured.pool.texts):
        k = pick.place
        has_images = k < top.most.shape[2]
        texts.append(
            AtlasText(
                text=pick.text,
                property=measured.pool.properties[int(span.indices[at][k])],
                explained_alone=pick.explained_alone,
                gain=pick.cumulative - before,
                cumulative=pick.cumulative,
                runner_up=pick.runner_up,
                margin=pick.margin,
                stability=None if stability is None else float(stability.anywhere[at][k]),
                stability_in_place=None if stability is None else float(stability.in_place[at][k]),
                top_images=_images(top.most[at][k], top.most_value[at][k], measured.rows, images) if has_images else (),
                bottom_images=_images(top.least[at][k], top.least_value[at][k], measured.rows, images)
                if has_images
                else (),
            )
        )
        before = pick.cumulative
    return tuple(texts)


def _images(places: Tensor, values: Tensor, rows: Mapping[int, ImageRow], images: int) -> tuple[AtlasImage, ...]:
    """Keep the first images of a list, copies of one file once."""
    entries: dict[str, AtlasImage] = {}
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        if place >= 0 and place in rows:
            row = rows[place]
            entries.setdefault(row.digest or row.id, AtlasImage(place, row.id, row.label, value))
    return tuple(entries.values())[:images]
