"""One study of a store: which layers, heads, MLPs and tokens the answers hang on. No image is read, but for tokens."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clip_anatomy.argument_kinds import described
from clip_anatomy.edits.rerun import rerun_replacements
from clip_anatomy.edits.selection import Selection
from clip_anatomy.engine.engine import Engine
from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.retrieval.store_atlas import atlas_of
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.manifest import Manifest
from clip_anatomy.store.store import Store
from clip_anatomy.store.store_model import model_of
from clip_anatomy.studies.ablated_predictions import predictions
from clip_anatomy.studies.baseline import baseline_of, refuse_missing
from clip_anatomy.studies.predictions_on_workers import predictions_by, rerun_picks
from clip_anatomy.studies.rerun_embeddings import rerun_means
from clip_anatomy.studies.study_result import Effect, Study, effects_of
from clip_anatomy.studies.text_ablation import TextTower, text_predictions
from clip_anatomy.studies.token_parts import tokens_of
from clip_anatomy.studies.zero_shot_task import ZeroShotTask, ablation_task

__all__ = ["SELECTED", "STUDIES", "study"]

Sets = list[tuple[str, Selection]]
SELECTED = "selected"
BIASES = "a store keeps no biases apart: they are replaced together with the input embedding"


@dataclass(frozen=True)
class NamedStudy:
    """A study that has a name.

    Attributes:
        title: what is replaced.
        answers: the question that it answers, for help texts.
        sets: model → the sets of parts, in words and as selections.
    """

    title: str
    answers: str
    sets: Callable[[Manifest | TextTower], Sets]


def _layers(manifest: Manifest | TextTower) -> Sets:
    def name(layer: int) -> str:
        return "heads of layer 0" if not layer else f"heads of layers 0-{layer}"

    return [(name(layer), Selection.every(layer + 1, manifest.heads)) for layer in range(manifest.depth)]


def _last(manifest: Manifest | TextTower) -> Sets:
    def name(k: int) -> str:
        kept = f" (the last {k} keep theirs)" if k > 1 else " (the last one keeps its own)" if k else ""
        return _layers(manifest)[manifest.depth - k - 1][0] + kept

    return [(name(k), Selection.every(manifest.depth - k, manifest.heads)) for k in range(manifest.depth - 1, -1, -1)]


def _heads(manifest: Manifest | TextTower) -> Sets:
    every = [(layer, head) for layer in manifest.layers for head in range(manifest.heads)]
    return [(f"head {layer}.{head}", Selection(((layer, head),))) for layer, head in every]


def _mlps(manifest: Manifest | TextTower) -> Sets:
    every = tuple(range(manifest.depth))
    start = "the input embedding" if manifest.convention == "official" else "the input embedding, with the biases"
    together = [
        ("all MLPs", Selection(mlps=every)),
        (f"all MLPs and {start}", Selection(mlps=every, input_embedding=True)),
    ]
    return together + [(f"MLP {layer}", Selection(mlps=(layer,))) for layer in every]


def _class_to_class(manifest: Manifest | TextTower) -> Sets:
    every = tuple(range(manifest.depth))
    return [("class-to-class attention, all layers", Selection(class_to_class=every))] + [
        (f"class-to-class attention {layer}", Selection(class_to_class=(layer,))) for layer in every
    ]


STUDIES = {
    "layers": NamedStudy(
        "Layers, from the first up", "from which layer on do heads matter (Figure 2 of the paper)?", _layers
    ),
    "last": NamedStudy("Only the last layers keep their heads", "how many of the last layers are enough?", _last),
    "heads": NamedStudy("One head at a time", "which single heads matter?", _heads),
    "mlps": NamedStudy("MLPs", "do the MLPs matter?", _mlps),
    "class-to-class": NamedStudy(
        "Class-to-class attention", "does what the class token reads from itself matter?", _class_to_class
    ),
}
"""Name → study."""


@public
def study(
    store: "Store | str | Path",
    name: str = "layers",
    *,
    select: Sequence["Selection | str"] = (),
    clip: "Clip | Callable[[], Clip] | None" = None,
    task: ZeroShotTask | None = None,
    label: str | None = None,
    classes: Sequence[str] | str | None = None,
    group: str | None = None,
    templates: Sequence[str] | str | None = None,
    texts: Float[Tensor, "text embed"] | None = None,
    by: str = "mean",
    effect: str = "direct",
    over: "Store | Moments | Means | None" = None,
    other: "int | str | None" = None,
    span: TextSpanResult | None = None,
    pool: "str | Path | None" = None,
    texts_per_head: int = 20,
    atlas: "Atlas | str | Path | None" = None,
    tower: str = "image",
    engine: Engine | str = "local",
    progress: Progress | None = None,
) -> Study:
    """Replace parts of every image of a store and see which answers change (direct effects; Gandelsman et al. 2024, §3.2).

    Args:
        store: a store, or its folder.
        name: "layers" (all heads up to a layer: Figure 2 of the paper), "last" (all but those of the last k layers), "heads" (each
            alone), "mlps", "class-to-class", or "selected".
        select: sets of your own in place of a named study: "role=background", "9.3,10.1+mlp=4", or a `Selection`.
        clip: the store's model, or what opens it; loaded by its name when needed.
        task: what is asked; by default made of the next five.
        label: column of the right answers.
        classes: names of the classes, or a file of them.
        group: column of the groups.
        templates: prompts of the classes; "imagenet" for the 80 of CLIP's recipe.
        texts: class embeddings, in the order of `classes`.
        by: "mean", "zero", "texts" (heads only: their TextSpan reconstruction) or "swap" (what another image has there).
        effect: "direct": the parts' terms of the embedding are replaced, from the store alone. "rerun": heads and MLPs are held inside the
            forward and later blocks feel it, for which the pictures are read again.
        over: for "mean": another store of the model, `Moments` or `Means`.
        other: for "swap": the other image's id, or its place.
        span: for "texts"; by default found on the store's moments with `pool` and `texts_per_head`.
        pool: texts for it, as in `atlas`.
        texts_per_head: how many of them.
        atlas: names of the heads, for "role=" and "words="; by default the one kept in the store, or a quick one.
        tower: "image", or "text": parts of the text tower are replaced in every class text, by their mean over the classes or by zero.
        engine: "local", "ray", or an opened one (`open_engine`), whose workers take some thousand images at a time.
        progress: called with what is being done, how much is done, and how much there is.

    Returns:
        Study: `print(study.summary())`, `study.to_dict()`.

    Raises:
        BadSpec: an unknown study, way to replace, or part.
        BadInput: labels that match no class, one class only, empty groups, numbers that are not finite.
        StoreError: layers or MLPs that the store does not hold, pictures that are gone (class-to-class, tokens).

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(clip, "world:40:test", folder + "/store")
        ...     result = study(folder + "/store", "layers", clip=clip)
        >>> len(result.effects) == clip.image_tower.layers
        True
    """
    opened = store if isinstance(store, Store) else Store.open(store)
    begun, tell = time.perf_counter(), progress or silent
    model = _StoreModel(opened, clip)
    if select and name in STUDIES and name != "layers":
        raise BadSpec(f"the study {name!r} has its own sets. Type study={name!r} or select=SPEC, not both")
    of_images = {
        "effect='rerun'": effect != "direct",
        "class-to-class attention": name == "class-to-class",
        f"by={by!r}": by not in ("mean", "zero"),
        "over=": over is not None,
        "a role": any(isinstance(one, str) and ("role=" in one or "words=" in one) for one in select),
    }
    of_texts = _text_tower(tower, model, of_images)
    kind, title, sets = _sets(opened, model, name, select, tower=of_texts, atlas=atlas, tell=tell)
    union = reduce(or_, (one for _, one in sets), Selection())
    if effect == "direct" and of_texts is None:
        _refuse(opened, kind, union)
    question = task or ablation_task(
        opened, model, label=label, classes=classes, group=group, templates=templates, texts=texts
    )
    if by == "texts" and span is None:
        span = _span(opened, model(), pool, texts_per_head, tell)
    sets = [("nothing", Selection()), *sets]
    if of_texts is not None:
        picks = text_predictions(opened, model(), question, [one for _, one in sets], by, progress=tell)
        described = "their mean over the classes" if by == "mean" else by
    elif effect == "direct":
        tokens = tokens_of(opened, model, union, tell)
        baseline = baseline_of(opened, union, by, over=over, other=_place(opened, other), span=span, tokens=tokens)
        described = baseline.description
        picks = predictions_by(
            engine, opened, None, predictions, question.texts, [one for _, one in sets], baseline, rows=question.rows, tokens=tokens, progress=tell
        )  # fmt: skip
    else:
        picks = _rerun_predictions(
            opened,
            model(),
            question,
            [one for _, one in sets],
            by=by,
            effect=effect,
            over=over,
            engine=engine,
            tell=tell,
        )
        described = f"{by}, felt by later blocks"
    biases: list[str] = []
    if union.input_embedding and opened.manifest.convention == "centered":
        biases = [BIASES.replace("a store keeps no biases", "no biases are kept") if of_texts else BIASES]
    seconds = time.perf_counter() - begun - model.seconds
    return _result(
        opened, question, effects_of(picks, question, sets), (kind, title, by, described), notes=biases, seconds=seconds
    )


def _rerun_predictions(
    store: Store,
    clip: Clip,
    question: ZeroShotTask,
    sets: Sequence[Selection],
    *,
    by: str,
    effect: str,
    over: "Store | Moments | Means | None",
    engine: Engine | str,
    tell: Progress,
) -> Int[Tensor, "set image"]:
    rerun_replacements(clip, reduce(or_, sets, Selection()), None, "zero", effect)  # refused before pictures are read
    means = over if by != "mean" else rerun_means(store, clip, over, tell)
    held = [rerun_replacements(clip, one, means, by, effect) for one in sets]
    return predictions_by(
        engine, store, clip, rerun_picks, held, question.texts.cpu(), rows=question.rows, progress=tell
    )


def _result(
    store: Store,
    question: ZeroShotTask,
    effects: Sequence[Effect],
    what: tuple[str, str, str, str],
    *,
    notes: Sequence[str],
    seconds: float,
) -> Study:
    """Put a study together: what it is (kind, title, by, baseline), what was asked, and the effect of each set."""
    manifest = store.manifest
    return Study(
        *what,
        manifest.model,
        manifest.digest,
        str(store.path),
        len(question.rows),
        question.column,
        question.classes,
        question.group_column,
        question.group_sizes,
        effects[0],
        tuple(effects[1:]),
        (*question.notes, *notes),
        seconds,
    )


class _StoreModel:
    """The model of a store, opened where it is first needed; `seconds` is what opening took."""

    def __init__(self, store: Store, clip: Clip | Callable[[], Clip] | None) -> None:
        self.store, self.clip, self.seconds = store, clip, 0.0

    def __call__(self) -> Clip:
        """Return the model.

        Raises:
            StoreError: it is another than the store's.
        """
        if not isinstance(self.clip, Clip):
            since = time.perf_counter()
            opened = model_of(self.store) if self.clip is None else self.clip()
            if not isinstance(opened, Clip):
                raise BadInput(
                    f"clip gave {described(opened)}; an opened model was expected. Type: clip=clip_anatomy.load(SPEC)"
                )
            self.clip = opened
            self.seconds += time.perf_counter() - since
        self.store.manifest.refuse_other(self.clip.name, self.clip.digest, self.store.path)
        return self.clip


def _sets(
    store: Store,
    clip: Callable[[], Clip],
    name: str,
    select: Sequence[Selection | str],
    *,
    tower: TextTower | None,
    atlas: Atlas | str | Path | None,
    tell: Progress,
) -> tuple[str, str, Sets]:
    """Name, title and sets of a study."""
    manifest = tower or store.manifest
    of = "" if tower is None else " (text tower)"
    if not select:
        if name not in STUDIES:
            hint = "it needs parts: type select=SPEC" if name == SELECTED else f"Type one of: {', '.join(STUDIES)}"
            raise BadSpec(f"the study {name!r} is not known. {hint}" if name != SELECTED else f"{name!r}: {hint}")
        return name, STUDIES[name].title + of, STUDIES[name].sets(manifest)
    named_heads: Atlas | None = None
    sets: Sets = []
    for spec in select:
        if isinstance(spec, Selection):
            sets.append((spec.description, spec))
            continue
        if ("role=" in spec or "words=" in spec) and named_heads is None:
            named_heads = atlas_of(store, clip, atlas, tell)
        whole = Selection.parse(spec, manifest.depth, manifest.heads, named_heads)
        many = "heads" if len(whole) == len(whole.heads) else "parts"
        more = f" ({whole.description})" if len(whole) <= 4 else f" ({len(whole)} {many})"
        sets.append((spec + (more if "=" in spec else ""), whole))
    return SELECTED, "Selected parts" + of, sets


def _text_tower(tower: str, clip: Callable[[], Clip], refused: Mapping[str, bool]) -> TextTower | None:
    """Describe the text tower where it is the one that is asked about.

    Raises:
        BadSpec: no such tower, or what only the image tower has.
    """
    if tower not in ("image", "text"):
        raise BadSpec(f"tower={tower!r} is not known. Type tower='image' or tower='text'")
    if tower == "image":
        return None
    if impossible := [what for what, given in refused.items() if given]:
        raise BadSpec(
            f"{impossible[0]} is for the image tower. Type study='layers', 'last', 'heads', 'mlps' or select='9.3+mlp=4' of the text tower"
        )
    return TextTower.of(clip())


def _refuse(store: Store, kind: str, union: Selection) -> None:
    try:
        refuse_missing(store, union)
    except StoreError as error:
        other = " Or type study='heads', which takes those that it holds" if kind in ("layers", "last") else ""
        raise StoreError(f"{error}.{other}" if other else str(error)) from None


def _place(store: Store, other: int | str | None) -> int | None:
    """Place of an image that is given by its id or its place."""
    if other is None or isinstance(other, int):
        if other is not None and not 0 <= other < len(store):
            raise BadInput(
                f"image {other}: {store.path} holds images 0 to {len(store) - 1}. Type one of these, or an id"
            )
        return other
    rows = store.rows("id = ?", [other])
    if not rows:
        raise BadInput(
            f"there is no image {other!r} in {store.path}. Type one of its ids, for example {store.column('id')[0]!r}"
        )
    return rows[0].index


def _span(store: Store, clip: Clip, pool: str | Path | None, texts_per_head: int, tell: Progress) -> TextSpanResult:
    texts, _ = pool_of(pool, clip)
    embeddings = embed_texts(clip, texts.texts, progress=tell)
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    return textspan(store.moments(), unit, texts_per_head, progress=tell)
