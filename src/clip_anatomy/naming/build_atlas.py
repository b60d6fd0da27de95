"""From a store to an atlas: names, figures, images and doubts for every head, in a few steps that can each be done again.

moments ─▶ pool (grown, if asked) ─▶ TextSpan ─▶ stability ─▶ roles ─▶ top images ─▶ ground truth, where it is known
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy import __version__
from clip_anatomy.engine.engine import Engine, works_here
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.naming.adaptive_pool import AdaptivePool, grow
from clip_anatomy.naming.agreement import disagreements, picture_scores
from clip_anatomy.naming.atlas import Atlas, AtlasHead
from clip_anatomy.naming.atlas_heads import HeadMeasurements, atlas_heads
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.naming.chance import chance_levels
from clip_anatomy.naming.concept_shares import concept_shares
from clip_anatomy.naming.ground_truth import GroundTruth, agreement, is_world, truth_of
from clip_anatomy.naming.language_model import LanguageModel, LlmUsage, language_model
from clip_anatomy.naming.llm_prompts import CueJudgement, name_heads, spurious
from clip_anatomy.naming.pool import Pool
from clip_anatomy.naming.roles import MIXED, UNNAMED, Role, roles
from clip_anatomy.naming.stability import Stability, stability
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.naming.top_images import rows_at, top_images
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.shard_moments import moments_of_shards
from clip_anatomy.store.shards import is_sharded
from clip_anatomy.store.store import Store
from clip_anatomy.towers.untrained import looks_untrained

__all__ = ["atlas"]

FEW_IMAGES = 500
CHUNKS = 32


@public
def atlas(
    store: "Store | str | Path",
    clip: Clip,
    pool: "Pool | str | Path | None" = None,
    *,
    texts: int = 20,
    adaptive: bool = False,
    rounds: int = 6,
    llm: "LanguageModel | str | None" = None,
    llm_model: str | None = None,
    llm_price: tuple[float, float] | None = None,
    llm_timeout: float = 60.0,
    task: str = "",
    truth: "str | Sequence[str] | None" = None,
    images: int = 6,
    resamples: int = 50,
    picks: int = 6,
    cache: "str | Path | bool" = True,
    engine: Engine | str = "local",
    progress: Progress | None = None,
) -> Atlas:
    """Name every head of a store, with figures, images and doubts.

    Reads moments, and the coordinates once for the images; no image is decoded. Text embeddings and a language model's answers
    are kept on disk, so that a stopped run goes on where it was.

    Args:
        store: a store, or its folder.
        clip: its model.
        pool: texts to name heads with: "general", "world", a text file, or a Pool. Default: the world's for the bundled
            model, else the general one.
        texts: how many texts of each head (the paper's main setting is 60).
        adaptive: grow the pool around what the heads are about.
        rounds: how often, at most.
        llm: a language model, or the address of an OpenAI-compatible API, that names the heads and writes more texts in place of
            vocabulary and grammar.
        llm_model: name of the model at that address.
        llm_price: price of a million tokens in and out, to tell the cost.
        llm_timeout: seconds to wait for one answer.
        task: ask the language model which roles can be spurious cues for this task.
        truth: columns of the rows that may drive heads, as names or joined by commas (known by themselves for the demo world).
        images: how many images at either end of a text's direction.
        resamples: bootstrap resamples for the stability of each pick; 0 for none.
        picks: for how many texts of each head images are looked up.
        cache: where text embeddings are kept, see `embed_texts`.
        engine: of a sharded store: "local", "ray", or an opened one (`open_engine`), whose workers merge the moments of the shards.
        progress: called as work goes on.

    Returns:
        Atlas.

    Raises:
        StoreError: no store, or one of another model.
        BadInput: an empty store, settings that make no sense.
        EndpointError: the language model does not answer.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(clip, "world:40:test", folder + "/store")
        ...     result = atlas(folder + "/store", clip, texts=5, resamples=0, cache=False)
        >>> len(result.heads) == clip.image_tower.layers * clip.image_tower.heads
        True
    """
    tell = progress or silent
    llm_client = language_model(llm, llm_model, llm_price, llm_timeout, task)
    opened = _checked(store, clip)
    _refuse_numbers(texts, images, resamples, rounds if adaptive else 1, picks)
    if isinstance(store, Store) or works_here(engine) or not is_sharded(store):
        moments = _moments(opened, resamples, tell)
    else:
        moments = replace(moments_of_shards(store, engine), basis=opened.basis)
    first, grammar = pool_of(pool, clip)

    def embed(given: Pool) -> Float[Tensor, "text embed"]:
        embeddings = embed_texts(clip, given.texts, cache=cache, progress=tell)
        return torch.nn.functional.normalize(embeddings, dim=-1)

    grown = grow(
        moments, first, embed, grammar, model=llm_client, texts_per_head=texts, rounds=rounds if adaptive else 0, progress=tell
    )  # fmt: skip
    span, answers = grown.span, list(grown.answers)
    stable = _stability(moments, grown, resamples, tell)
    head_roles = _roles(span, moments, grown.embeddings, grown.pool)
    if llm_client is not None:
        head_roles, replies = name_heads(llm_client, head_roles, span, grown.pool, progress=tell)
        answers += replies
    top, known = top_images(opened, span, picks, images, progress=tell), _truth(opened, truth)
    level = chance_levels(span, moments, grown.embeddings, grown.pool.properties, progress=tell)
    rows = rows_at(opened, top.rows())
    concepts = concept_shares(moments, grown.embeddings, grown.pool.properties)
    figures = HeadMeasurements(span, moments, grown.pool, head_roles, stable, top, rows, known, level, concepts)
    heads = _with_doubts(opened, atlas_heads(figures, images), grown)
    judged = _judged(llm_client, task, head_roles)
    answers += [one.answer for one in judged]
    return Atlas(
        **_of_store(opened),
        **_of_pool(first, grown),
        top_k=span.top_k,
        threshold=span.threshold,
        heads=heads,
        curve=grown.curve if adaptive else (),
        agreement={} if known is None else _agreement(head_roles, known),
        cues=tuple((one.cue, one.spurious, one.why) for one in judged),
        task=task,
        llm_usage="" if llm_client is None else str(LlmUsage.of(answers, llm_client.price)),
        notes=_notes(clip, opened, grown.pool, stable),
        provenance=_provenance(opened, grown.pool, texts, stable, llm_client),
    )


def _stability(moments: Moments, grown: AdaptivePool, resamples: int, tell: Progress) -> Stability | None:
    if not resamples or not _resampled(moments):
        return None
    return stability(moments, grown.span, grown.embeddings, resamples, progress=tell)


def _refuse_numbers(texts: int, images: int, resamples: int, rounds: int, picks: int) -> None:
    if texts < 1 or images < 0 or resamples < 0 or rounds < 1 or picks < 0:
        raise BadInput(
            f"texts={texts}, images={images}, resamples={resamples}, rounds={rounds}, picks={picks}: "
            "type texts=20 images=6 resamples=50 rounds=6 picks=6"
        )


def _judged(llm_client: LanguageModel | None, task: str, head_roles: dict[tuple[int, int], Role]) -> list[CueJudgement]:
    """Ask the language model which roles can be spurious cues for a task."""
    names = [*dict.fromkeys(role.name for role in head_roles.values() if role.named)]
    return spurious(llm_client, task, names) if llm_client and task else []


def _truth(store: Store, truth: str | Sequence[str] | None) -> GroundTruth | None:
    columns = [name.strip() for name in truth.split(",")] if isinstance(truth, str) else truth
    return truth_of(store, columns) if columns or is_world(store) else None


def _of_pool(first: Pool, grown: AdaptivePool) -> dict[str, Any]:
    """Return what an atlas says of its pool."""
    grown_from = f", grown from {grown.curve[0].texts} texts" if len(grown.curve) > 1 else ""
    return {"pool": first.source + grown_from, "pool_texts": len(grown.pool)}


def _of_store(store: Store) -> dict[str, Any]:
    """Return what an atlas says of its store."""
    manifest = store.manifest
    return {
        "model": manifest.model,
        "digest": manifest.digest,
        "store": str(store.path),
        "images": len(store),
        "layers": manifest.layers,
        "heads_per_layer": manifest.heads,
    }


def _moments(store: Store, resamples: int, tell: Progress) -> Moments:
    """Read the moments of a store, in chunks where they are to be resampled."""
    tell("moments", 0, 1)
    moments = store.moments()
    return store.moments(chunks=CHUNKS) if resamples and not _resampled(moments) else moments


def _with_doubts(store: Store, heads: Sequence[AtlasHead], grown: AdaptivePool) -> tuple[AtlasHead, ...]:
    """Compare what heads are named after with the top pictures themselves, and say where the two disagree."""
    embeddings = dict(zip(grown.pool.texts, grown.embeddings, strict=True))
    texts = {text.text: text for head in heads for text in (*head.texts[:1], head.leading) if text is not None}
    rows = {name: [image.row for image in text.top_images] for name, text in texts.items()}
    scores = picture_scores(store, rows, embeddings)
    return tuple(replace(head, doubts=disagreements(head, scores)) for head in heads)


def _checked(store: "Store | str | Path", clip: Clip) -> Store:
    opened = Store.open(store, clip) if isinstance(store, str | Path) else store
    opened.manifest.refuse_other(clip.name, clip.digest, opened.path)
    opened.manifest.need_heads("concepts(clip, images), which reads whole embeddings, or search(store, query)")
    if len(opened) < 2:
        raise BadInput(
            f"{opened.path} holds {len(opened)} images; heads need two or more to differ. Type: clip-anatomy index SOURCE {opened.path}"
        )
    return opened


def _resampled(moments: Moments) -> bool:
    """Tell whether the moments have two chunks or more with images in them, to resample."""
    return int((moments.ungrouped.counts[0] > 0).sum()) >= 2


def _roles(
    span: TextSpanResult, moments: Moments, embeddings: Float[Tensor, "text embed"], pool: Pool
) -> dict[tuple[int, int], Role]:
    if any(pool.properties):
        return roles(span, moments, embeddings, pool.properties)
    return {
        at: Role(UNNAMED if bool(span.unnamed[span.layers.index(at[0]), at[1]]) else MIXED, 0.0) for at in span.heads()
    }


def _agreement(head_roles: dict[tuple[int, int], Role], truth: GroundTruth) -> dict[str, float]:
    result = agreement({at: role.name for at, role in head_roles.items()}, truth, unnamed=(UNNAMED, MIXED))
    clear = [row for row in result.rows if row[4] >= result.bar]
    mixed = sum(row[2] == MIXED for row in clear)
    return {"bar": result.bar, "clear": len(clear), "tested": result.tested, "right": result.right, "mixed": mixed}


def _notes(clip: Clip, store: Store, pool: Pool, stable: Stability | None) -> tuple[str, ...]:
    notes: list[str] = []
    if clip.name == "demo":
        notes.append(
            "The bundled demo model knows only a small drawn world. What its heads are about says nothing about CLIPs that are in "
            "use; it shows what an atlas looks like where the truth is known."
        )
    towers = {"image tower": clip.vision, "text tower": clip.text_tower}
    for name in (name for name, tower in towers.items() if looks_untrained(tower)):
        notes.append(
            f"The weights of the {name} look untrained, as if they were drawn at random: no name or role here means anything."
        )
    if len(store) < FEW_IMAGES:
        notes.append(
            f"Only {len(store)} images: names may hang on which ones they are. {FEW_IMAGES} or more are better."
        )
    if stable is None:
        notes.append("Stability was not measured.")
    if unknown := sum(not name for name in pool.properties):
        many = "None of the texts says" if unknown == len(pool) else f"{unknown} of {len(pool)} texts do not say"
        notes.append(f"{many} what property they are about; roles are told by the others, or by a language model.")
    return tuple(notes)


def _provenance(
    store: Store, pool: Pool, texts: int, stable: Stability | None, llm_client: LanguageModel | None
) -> dict[str, str]:
    manifest = store.manifest
    made = {
        "clip-anatomy": __version__,
        "store made": manifest.created,
        "convention": manifest.convention,
        "texts per head": str(texts),
        "pool digest": pool.digest,
        "bootstrap": "none" if stable is None else f"{stable.resamples} resamples of {stable.chunks} chunks of images",
        "roles by": "texts and their properties" if llm_client is None else llm_client.name,
    }
    return made | {f"with {name}": version for name, version in manifest.versions.items() if name in ("torch", "zarr")}
