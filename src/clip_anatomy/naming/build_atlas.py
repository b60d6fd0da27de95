"""From a store to an atlas: names, figures, evidence and doubts for every head, in a few steps that can each be done again.

moments ─▶ pool (grown, if asked) ─▶ TextSpan ─▶ stability ─▶ roles ─▶ evidence ─▶ truth, where it is known
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy import __version__
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.naming.adaptive_pool import grow
from clip_anatomy.naming.atlas import Atlas, Round
from clip_anatomy.naming.atlas_entries import Findings, entries
from clip_anatomy.naming.evidence import evidence, rows_at
from clip_anatomy.naming.general_pool import Grammar, Pool, general_grammar, general_pool, read_pool
from clip_anatomy.naming.known_truth import Truth, agreement
from clip_anatomy.naming.language_model import Answer, Bill, LanguageModel
from clip_anatomy.naming.llm_questions import name_heads, spurious
from clip_anatomy.naming.roles import MIXED, UNNAMED, Role, roles, tag
from clip_anatomy.naming.stability import Stability, stability
from clip_anatomy.naming.store_truth import is_world, truth_of
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.naming.world_pool import world_grammar, world_pool
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store

__all__ = ["atlas", "pool_of"]

FEW_IMAGES = 500
CHUNKS = 32
Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def pool_of(spec: "str | Path | Pool | None", clip: Clip) -> tuple[Pool, Grammar]:
    """A pool and the grammar that knows its words.

    Args:
        spec: "general", "world", a text file, a pool, or None: the world's for the bundled model, else the general one.
        clip: the model.

    Raises:
        BadText: a file that is no pool.
    """
    name = ("world" if clip.name == "demo" else "general") if spec is None else spec
    grammar = world_grammar() if clip.name == "demo" or name == "world" else general_grammar()
    if isinstance(name, Pool):
        pool = name
    elif name == "general":
        pool = general_pool()
    elif name == "world":
        pool = world_pool()
    else:
        pool = read_pool(name, duplicates="drop")
    return replace(pool, properties=tag(pool.texts, pool.properties, grammar)), grammar


def atlas(
    store: "Store | str | Path",
    clip: Clip,
    pool: "Pool | str | Path | None" = None,
    *,
    texts_per_head: int = 20,
    resamples: int = 50,
    picks: int = 6,
    images: int = 6,
    adaptive: bool = False,
    rounds: int = 6,
    model: LanguageModel | None = None,
    task: str = "",
    truth: Sequence[str] | None = None,
    cache: "str | Path | bool" = True,
    report: Report | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> Atlas:
    """Name every head of a store, with figures, evidence and doubts.

    Reads moments, and the coordinates once for evidence; no image is decoded. Text embeddings and a language model's answers
    are kept on disk, so that a stopped run goes on where it was.

    Args:
        store: a store, or its folder.
        clip: its model.
        pool: texts to name heads with: "general", "world", a text file, or a Pool. Default: the world's for the bundled
            model, else the general one.
        texts_per_head: how many texts of each head (the paper's main setting is 60).
        resamples: bootstrap resamples for the stability of each pick; 0 for none.
        picks: for how many texts of each head images are looked up.
        images: how many images of either kind for each of them.
        adaptive: grow the pool around what the heads are about.
        rounds: how often, at most.
        model: names the heads and writes more texts, in place of vocabulary and grammar.
        task: asks the language model which roles can be spurious cues for this task.
        truth: columns of the rows that may drive heads (known by themselves for the demo world).
        cache: where text embeddings are kept, see `embed_texts`.
        report: called as work goes on.
        on_round: called after each span of a growing pool.

    Returns:
        Atlas.

    Raises:
        StoreError: no store, or one of another model.
        BadInput: an empty store, settings that make no sense.
        EndpointError: the language model does not answer.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.store.index import index
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = index(clip, "world:40:test", folder + "/store")
        ...     found = atlas(folder + "/store", clip, texts_per_head=5, resamples=0, cache=False)
        >>> len(found.heads) == clip.image_tower.layers * clip.image_tower.heads
        True
    """
    opened = Store.open(store, clip) if isinstance(store, str | Path) else store
    opened.manifest.refuse_other(clip.name, clip.digest, opened.path)
    tell: Report = report or (lambda what, done, total: None)
    if task and model is None:
        raise BadInput("a task needs a language model to ask. Type: --llm URL --llm-model NAME")
    if len(opened) < 2:
        raise BadInput(
            f"{opened.path} holds {len(opened)} images; heads need two or more to differ. Type: clip-anatomy index SOURCE {opened.path}"
        )
    tell("moments", 0, 1)
    moments = opened.moments()
    if resamples and int((moments.ungrouped.counts[0] > 0).sum()) < 2:
        moments = opened.moments(chunks=CHUNKS)
    tell("moments", 1, 1)
    texts, grammar = pool_of(pool, clip)
    first = texts.source

    def embed(given: Pool) -> Float[Tensor, "text embed"]:
        found = embed_texts(
            clip, given.texts, cache=cache, progress=lambda done, total: tell("embedding texts", done, total)
        )
        return torch.nn.functional.normalize(found, dim=-1)

    answers: list[Answer] = []
    curve: tuple[Round, ...] = ()
    if adaptive:
        grown = grow(
            moments, texts, embed, grammar, model=model, texts_per_head=texts_per_head, rounds=rounds, report=on_round
        )
        texts, embeddings, span, curve = grown.pool, grown.embeddings, grown.span, grown.curve
        answers += grown.answers
    else:
        embeddings = embed(texts)
        span = textspan(
            moments, embeddings, texts_per_head, progress=lambda done, total: tell("picking texts", done, total)
        )
    steady = None
    if resamples and int((moments.ungrouped.counts[0] > 0).sum()) >= 2:
        steady = stability(
            moments, span, embeddings, resamples, progress=lambda done, total: tell("resampling", done, total)
        )
    named = _roles(span, moments, embeddings, texts)
    if model is not None:
        named, told = name_heads(
            model, named, span, texts, progress=lambda done, total: tell("asking the language model", done, total)
        )
        answers += told
    seen = evidence(opened, span, picks, images, progress=lambda done, total: tell("looking for images", done, total))
    driven = truth_of(opened, truth) if truth or is_world(opened) else None
    found = Findings(span, moments, texts, named, steady, seen, rows_at(opened, seen.rows()), driven)
    cues: list[tuple[str, str, str]] = []
    if task and model is not None:
        verdicts = spurious(model, task, list(dict.fromkeys(role.name for role in named.values() if role.named)))
        cues = [(verdict.cue, verdict.spurious, verdict.why) for verdict in verdicts]
        answers += [verdict.answer for verdict in verdicts]
    manifest = opened.manifest
    return Atlas(
        model=manifest.model,
        digest=manifest.digest,
        store=str(opened.path),
        images=len(opened),
        layers=manifest.layers,
        heads_per_layer=manifest.heads,
        pool=first + (f", grown from {curve[0].texts} texts" if len(curve) > 1 else ""),
        pool_texts=len(texts),
        within=span.within,
        threshold=span.threshold,
        heads=entries(found, images),
        curve=curve,
        agreement={} if driven is None else _agreed(named, driven),
        cues=tuple(cues),
        task=task,
        bill="" if model is None else str(Bill.of(answers, model.price)),
        notes=_notes(clip, opened, texts, steady),
        made=_made(opened, texts, texts_per_head, steady, model),
    )


def _roles(
    span: TextSpanResult, moments: Moments, embeddings: Float[Tensor, "text embed"], texts: Pool
) -> dict[tuple[int, int], Role]:
    if any(texts.properties):
        return roles(span, moments, embeddings, texts.properties)
    return {
        at: Role(UNNAMED if bool(span.unnamed[span.layers.index(at[0]), at[1]]) else MIXED, 0.0) for at in span.heads()
    }


def _agreed(named: dict[tuple[int, int], Role], driven: Truth) -> dict[str, float]:
    told = agreement({at: role.name for at, role in named.items()}, driven, unnamed=(UNNAMED, MIXED))
    clear = [row for row in told.rows if row[4] >= told.bar]
    mixed = sum(row[2] == MIXED for row in clear)
    return {"bar": told.bar, "clear": len(clear), "asked": told.asked, "right": told.right, "mixed": mixed}


def _notes(clip: Clip, store: Store, texts: Pool, steady: Stability | None) -> tuple[str, ...]:
    notes: list[str] = []
    if clip.name == "demo":
        notes.append(
            "The bundled demo model knows only a small drawn world. What its heads are about says nothing about CLIPs that are in "
            "use; it shows what an atlas looks like where the truth is known."
        )
    if len(store) < FEW_IMAGES:
        notes.append(
            f"Only {len(store)} images: names may hang on which ones they are. {FEW_IMAGES} or more are better."
        )
    if steady is None:
        notes.append("Stability was not measured.")
    if unknown := sum(not name for name in texts.properties):
        many = "none of the texts says" if unknown == len(texts) else f"{unknown} of {len(texts)} texts do not say"
        notes.append(
            f"{many[0].upper()}{many[1:]} what property they are about; roles are told by the others, or by a language model."
        )
    return tuple(notes)


def _made(
    store: Store, texts: Pool, texts_per_head: int, steady: Stability | None, model: LanguageModel | None
) -> dict[str, str]:
    manifest = store.manifest
    made = {
        "clip-anatomy": __version__,
        "store made": manifest.created,
        "convention": manifest.convention,
        "texts per head": str(texts_per_head),
        "pool digest": texts.digest,
        "bootstrap": "none" if steady is None else f"{steady.resamples} resamples of {steady.chunks} chunks of images",
        "roles by": "texts and their properties" if model is None else model.name,
    }
    return made | {f"with {name}": version for name, version in manifest.versions.items() if name in ("torch", "zarr")}
