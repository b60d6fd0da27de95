"""The published Waterbirds protocol, run on a store: no image is read again, every row costs one sum over 4 layers of heads."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.waterbirds import CLASSES, GROUPS
from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.imagenet_texts import imagenet_templates
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.store.index import index
from clip_anatomy.store.manifest import NAME
from clip_anatomy.store.store import Store
from clip_anatomy.store.store_model import model_to_index
from clip_anatomy.studies.waterbirds_table import LATE, PAPER, PaperHeads, PaperRow, PaperTable, paper_heads

__all__ = ["PROTOCOL_OUT", "paper_heads_of", "paper_protocol", "run_protocol"]

DRAWS = 20
PROTOCOLS = ("paper",)
PROTOCOL_OUT = "clip-anatomy-paper"


def run_protocol(
    source: "Store | str | Path",
    protocol: str = "paper",
    *,
    model: "Clip | str | None" = None,
    weights: str | Path | None = None,
    device: str = "auto",
    out: str | Path = PROTOCOL_OUT,
    batch: int | None = None,
    progress: Progress | None = None,
) -> PaperTable:
    """Run a published protocol, from pictures or from a store of them.

    Args:
        source: a folder with Waterbirds, `waterbirds:FOLDER[:partial]`, or a store made of it.
        protocol: "paper".
        model: one of the three models with a published list; the store's by default.
        weights: a checkpoint file for open_clip:NAME.
        device: auto, cpu, cuda, cuda:1, mps.
        out: folder for the store of what the heads wrote, where pictures are given: after a stop the same call goes on there.
        batch: images at once; by default found while working.
        progress: told as it goes.

    Raises:
        BadSpec: unknown protocol, or a model without a published list.
        BadInput: no copy of Waterbirds, or not a whole one.
    """
    if protocol not in PROTOCOLS:
        raise BadSpec(f"protocol {protocol!r} is not known. Type protocol={' or '.join(map(repr, PROTOCOLS))}")
    tell = progress or silent
    place = source.path if isinstance(source, Store) else Path(source)
    stored = (place / NAME).is_file()
    place = place if stored else Path(out) / "store"
    pictures = (
        None if stored else open_dataset(_test_images(str(source)))
    )  # a wrong path is said before minutes of loading
    if model is None and not (place / NAME).is_file():
        models = ", ".join(one.spec for one in PAPER.values())
        raise BadSpec(f"the protocol is of three models. Type model= with one of: {models}")
    clip = model_to_index(place, model, weights=weights, device=device)
    paper_heads_of(clip)  # refused before anything is indexed
    failed: tuple[tuple[str, str], ...] = ()
    if pictures is not None:
        failed = index(
            clip, pictures, place, layers=f"last:{LATE}", convention="official", batch=batch,
            progress=tell,
        ).errors  # fmt: skip
    table = paper_protocol(Store.open(place, clip), clip, progress=progress)
    return replace(table, notes=(*(f"not used: {name}: {message}" for name, message in failed), *table.notes))


def _test_images(source: str) -> str:
    """Return the spec of the test images only: the protocol looks at no others."""
    spec = source if source.startswith("waterbirds:") else f"waterbirds:{source}"
    return spec if ":test" in spec[len("waterbirds:") :] else f"{spec}:test"


def paper_heads_of(clip: Clip) -> PaperHeads:
    """Find the published list for a model, by its shape.

    Raises:
        BadSpec: there is none; names the three models.
    """
    tower = clip.image_tower
    return paper_heads(tower.layers, tower.heads, tower.d, clip.patch[0])


@public
def paper_protocol(
    store: Store,
    clip: Clip,
    *,
    published: PaperHeads | None = None,
    split: str = "test",
    seed: int = 0,
    progress: Progress | None = None,
) -> PaperTable:
    """Run the published removal of the background cue on a store of Waterbirds.

    Means are taken over the very images that are measured, as the published code does.

    Args:
        store: of Waterbirds (`waterbirds:FOLDER`), with at least the last four layers; made with convention "official" it follows the
            published code to the letter.
        clip: the store's model.
        published: another list than the one for the model's shape.
        split: which images.
        seed: of the random heads of the control.
        progress: told as it goes.

    Returns:
        PaperTable.

    Raises:
        BadSpec: a model without a published list.
        StoreError: of another model, or without the last four layers.
        BadInput: not a store of Waterbirds, or a group without images.
    """
    heads = published or paper_heads_of(clip)
    store.manifest.refuse_other(clip.name, clip.digest, store.path)
    late = range(clip.image_tower.layers - LATE, clip.image_tower.layers)
    if lost := [layer for layer in late if layer not in store.manifest.layers]:
        raise StoreError(
            f"{store.path} lacks layers {lost}; the protocol needs {late.start}-{late.stop - 1}. Type: clip-anatomy index "
            f"waterbirds:FOLDER:test NEW --layers last:{LATE} --convention official --model {store.manifest.model}"
        )
    rows, labels, groups = _images(store, split)
    tell = progress or silent
    tell("class texts", 0, 1)
    texts = embed_texts(clip, CLASSES, imagenet_templates())
    pairs = [(layer, head) for layer in late for head in range(store.manifest.heads)]
    wrote: list[Tensor] = []
    for at, (layer, head) in enumerate(pairs):
        reader = store.basis.rows[store.layer_at(layer), head] @ texts.double().T
        wrote.append(store.heads(layer, head, rows).double() @ reader)
        tell("heads", at + 1, len(pairs))
    toward = torch.stack(wrote)  # [pair, image, text]
    whole = store.embeddings(rows, unit=True).double() @ texts.double().T
    mean = toward.mean(1, keepdim=True)
    rest = whole.mean(0) - mean.sum(0)  # early attention, MLPs, input embedding and biases, all at their mean

    def measure(name: str, ablated: Sequence[tuple[int, int]]) -> PaperRow:
        at = torch.tensor([pair in ablated for pair in pairs])
        return _row(name, ablated, rest + torch.where(at[:, None, None], mean, toward).sum(0), labels, groups)

    draws = np.random.default_rng(seed)
    drawn = [
        measure("", [pairs[n] for n in draws.choice(len(pairs), len(heads.both), replace=False)]) for _ in range(DRAWS)
    ]
    control = PaperRow(
        f"{len(heads.both)} random heads (mean of {DRAWS} draws)",
        (),
        {name: sum(row.groups[name] for row in drawn) / DRAWS for name in GROUPS},
        sum(row.average for row in drawn) / DRAWS,
    )
    return PaperTable(
        before=_row("as it is", (), whole, labels, groups),
        late=measure("late attention only", ()),
        location=measure("… without location heads", heads.location),
        setting=measure("… without setting heads", heads.setting),
        after=measure("… without both (the protocol)", heads.both),
        control=control,
        images={name: int((groups == at).sum()) for at, name in enumerate(GROUPS)},
        published=heads,
        model=clip.name,
        convention=store.manifest.convention,
        notes=tuple(_notes(store, clip, heads, split, len(rows))),
    )


def _images(store: Store, split: str) -> tuple[list[int], Int64[Tensor, " image"], Int64[Tensor, " image"]]:
    """Return places, classes and groups of the images to measure."""
    known = {name: at for at, name in enumerate(GROUPS)}
    listed = list(zip(store.column("group"), store.column("split"), strict=True))
    if strange := sorted({str(group) for group, _ in listed} - {*known}):
        raise BadInput(
            f"{store.path} is not a store of Waterbirds: it holds images of group {strange[0]!r}. Type: clip-anatomy index "
            "waterbirds:FOLDER:test STORE --layers last:4 --convention official"
        )
    rows = [at for at, (_, part) in enumerate(listed) if part == split]
    groups = torch.tensor([known[listed[at][0]] for at in rows], dtype=torch.int64)
    if empty := [name for at, name in enumerate(GROUPS) if not bool((groups == at).any())]:
        raise BadInput(
            f"{store.path} has no {split} image of {' and '.join(empty)}: the worst group cannot be measured. Index the rest: "
            f"clip-anatomy index waterbirds:FOLDER:{split} {store.path}"
        )
    return rows, groups // len(CLASSES), groups


def _row(
    name: str,
    ablated: Sequence[tuple[int, int]],
    scores: Float[Tensor, "image text"],
    labels: Int64[Tensor, " image"],
    groups: Int64[Tensor, " image"],
) -> PaperRow:
    if not bool(torch.isfinite(scores).all()):
        raise BadInput("some scores are not finite. Index again with a model in float32")
    right = (scores.argmax(1) == labels).double()
    by = {group: float(right[groups == at].mean()) for at, group in enumerate(GROUPS)}
    return PaperRow(name, tuple(ablated), by, float(right.mean()))


def _notes(store: Store, clip: Clip, heads: PaperHeads, split: str, images: int) -> list[str]:
    notes: list[str] = []
    if heads.weights not in clip.name:
        notes.append(
            f"The heads were picked on {heads.spec}; this is {clip.name}. With other weights the same numbers name other heads."
        )
    if store.manifest.convention != "official":
        notes.append(
            "The published code shares LayerNorm's mean evenly (index with convention='official'); this store does not."
        )
    if split == "test" and images != 5794:
        notes.append(f"These are {images:,} test images; the published table is of all 5,794.")
    return notes
