"""Parts of a store one at a time, and the answers of its images with some parts at their mean.

Nothing is run again (direct effects only): a part's contribution x, minus its mean, is taken off the embedding; along the cue only
(x − mean) FᵀF is, with an orthonormal basis F of what tells the cue's texts apart. By re-run, along the classes only, F is that of the class
texts, and what the re-run changes of the embedding is projected on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.edits.replacement import Effect
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.progress import Progress, silent
from clip_anatomy.split.means import Means
from clip_anatomy.store.store import Store
from clip_anatomy.studies.cue_scores import AblatedLogits
from clip_anatomy.studies.repair_task import RepairTask

__all__ = [
    "Along",
    "HeadOrMlp",
    "PartAblation",
    "ablated_logits",
    "ablation_of",
    "answers",
    "checked_parts",
    "contributions",
    "means_of",
    "parts_of",
    "selection_of",
    "texts_in",
]

BYTES = 1_500_000_000  # of changed answers held at a time
Along = Literal["", "cue", "classes"]


@dataclass(frozen=True, order=True)
class HeadOrMlp:
    """A head, or (head −1) the MLP of a layer."""

    layer: int
    head: int = -1

    @property
    def name(self) -> str:
        """As it is typed."""
        return f"{self.layer}.{self.head}" if self.head >= 0 else f"mlp={self.layer}"


@dataclass(frozen=True)
class PartAblation:
    """What is ablated: parts, whole, or what they do along some texts.

    Attributes:
        selection: the parts.
        along: "" (whole), "cue": only what they write along the cue's texts (heads only), "classes": only what a re-run changes along the
            class texts, so that other questions are answered as before.
        effect: "direct", or "rerun": held inside the forward, so that later blocks feel it.
    """

    selection: Selection
    along: Along = ""
    effect: Effect = "direct"

    @property
    def along_cue(self) -> bool:
        """Whether only what the heads write along the cue's texts is ablated."""
        return self.along == "cue"

    @property
    def spec(self) -> str:
        """As it is typed: "2.0,7.3 along cue"."""
        return self.selection.spec + (f" along {self.along}" if self.along and self.selection else "")


def parts_of(store: Store) -> tuple[HeadOrMlp, ...]:
    """Return the parts that a store holds: its heads, and its MLPs where they were kept."""
    manifest = store.manifest
    heads = [HeadOrMlp(layer, head) for layer in manifest.layers for head in range(manifest.heads)]
    return (*heads, *(HeadOrMlp(layer) for layer in manifest.layers if "mlps" in manifest.keep))


def selection_of(parts: Sequence[HeadOrMlp]) -> Selection:
    """Return the same parts as a selection."""
    return Selection(
        tuple((part.layer, part.head) for part in parts if part.head >= 0),
        mlps=tuple(part.layer for part in parts if part.head < 0),
    )


def ablation_of(what: PartAblation | Selection) -> PartAblation:
    """Take parts as they are given: a selection alone is ablated whole."""
    return what if isinstance(what, PartAblation) else PartAblation(what)


def checked_parts(store: Store, what: PartAblation | Selection) -> tuple[HeadOrMlp, ...]:
    """Return the parts of a selection, if the store holds them.

    Raises:
        StoreError: MLPs that were not kept.
        BadSpec: heads that do not exist, parts that no store holds, or that cannot be ablated along a cue.
    """
    ablation = ablation_of(what)
    selection = ablation.selection
    selection.checked(store.manifest.layers, store.manifest.heads)
    if selection.class_to_class or selection.input_embedding or selection.tokens:
        raise BadSpec(
            f"{selection.description}: a repair ablates heads and MLPs, as a store holds them. Type select='7.0,7.3+mlp=2'"
        )
    if selection.mlps and "mlps" not in store.manifest.keep:
        raise StoreError(
            f"{store.path} holds no MLPs, so that {selection.description} cannot be ablated. Make a store with them: clip-anatomy index SOURCE "
            "NEW-STORE --keep heads,mlps"
        )
    if ablation.along_cue and ablation.effect == "rerun":
        raise BadSpec(
            f"{ablation.spec}: a re-run is felt whole, or along the classes. Type {selection.spec} along classes, or effect='direct'"
        )
    if ablation.along == "classes" and ablation.effect != "rerun":
        raise BadSpec(f"{ablation.spec}: that is for a re-run. Type effect='rerun', or {selection.spec} along cue")
    if ablation.along_cue and selection.mlps:
        raise BadSpec(
            f"{ablation.spec}: only heads can be ablated along a cue, MLPs are ablated whole. Type {selection.spec}"
        )
    return (*(HeadOrMlp(*pair) for pair in selection.heads), *(HeadOrMlp(layer) for layer in selection.mlps))


def contributions(
    store: Store, part: HeadOrMlp, rows: np.ndarray
) -> tuple[Float[Tensor, "image d"], Float64[Tensor, "d embed"] | None]:
    """Tell what a part wrote for some images, in its own coordinates, and their frame (None: the joint space itself)."""
    if part.head < 0:
        return store.mlps(part.layer, rows).float(), None
    frame = store.basis.rows[store.layer_at(part.layer), part.head]
    return store.heads(part.layer, part.head, rows).float(), frame


def texts_in(frame: Float64[Tensor, "d embed"] | None, texts: Float[Tensor, "text embed"]) -> Float[Tensor, "text d"]:
    """Express texts in a part's coordinates."""
    return texts if frame is None else (texts.double() @ frame.T).float()


def ablated_logits(
    store: Store,
    task: RepairTask,
    rows: np.ndarray,
    parts: Sequence[HeadOrMlp],
    *,
    along_cue: bool = False,
    progress: Progress | None = None,
) -> AblatedLogits:
    """Compute answers of some images, and how each part would change them if it were replaced by its mean over these images.

    Args:
        store: the store.
        task: what is asked.
        rows: which images; nothing else is read.
        parts: which parts.
        along_cue: replace only what each writes along the cue's texts.
        progress: told as it goes.

    Raises:
        BadInput: scores that are not finite, no label, more than fits into memory.
    """
    tell = progress or silent
    labels = task.labels(store, rows)
    texts, read = task.texts, task.along_cue if along_cue else task.texts
    if (needed := 4 * len(parts) * len(rows) * len(texts)) > BYTES:
        raise BadInput(
            f"{len(parts)} parts × {len(rows):,} images × {len(texts):,} class texts would take {needed / 1e9:.0f} GB. Leave also= away, "
            "or type fewer images="
        )
    deltas = torch.empty(len(parts), len(rows), len(texts))
    for at, part in enumerate(parts):
        x, frame = contributions(store, part, rows)
        deltas[at] = (x.double().mean(0).float() - x) @ texts_in(frame, read).T
        tell("ablating each part", at + 1, len(parts))
    base = store.embeddings(rows, unit=True) @ texts.T
    return AblatedLogits(
        base, deltas, task.ends, labels, task.groups(store, rows, labels[0]), task.group_names, task.cue_task
    )


def means_of(store: Store, rows: np.ndarray, parts: Sequence[HeadOrMlp]) -> Means:
    """Compute mean contributions of some parts over some images, in the joint space; zero for all other parts."""
    manifest = store.manifest
    heads = torch.zeros(manifest.depth, manifest.heads, manifest.embed, dtype=torch.float64)
    mlps = torch.zeros(manifest.depth, manifest.embed, dtype=torch.float64)
    for part in parts:
        x, frame = contributions(store, part, rows)
        mean = x.double().mean(0)
        if part.head < 0:
            mlps[part.layer] = mean
        elif frame is not None:
            heads[part.layer, part.head] = mean @ frame
    start = torch.zeros(manifest.embed, dtype=torch.float64)
    return Means(len(rows), heads, mlps, start, None, manifest.digest, manifest.convention)


def answers(
    store: Store,
    task: RepairTask,
    rows: np.ndarray,
    parts: Sequence[HeadOrMlp],
    means: Means,
    *,
    along_cue: bool = False,
) -> Float[Tensor, "image text"]:
    """Compute cosines of some images with the texts of all tasks, with some parts at the given means, all or along the cue only.

    Parts of the cosine of the unedited embedding: its length is not taken anew, which changes no answer.
    """
    logits = store.embeddings(rows, unit=True) @ task.texts.T
    texts = task.along_cue if along_cue else task.texts
    for part in parts:
        x, frame = contributions(store, part, rows)
        mean = means.mlps[part.layer] if part.head < 0 else means.heads[part.layer, part.head]
        logits = logits + (mean.float() @ texts.T) - x @ texts_in(frame, texts).T
    return logits
