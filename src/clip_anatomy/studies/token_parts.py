"""What heads read from some tokens of every image of a store (the class token: class-to-class attention), which no store holds.

The pictures are read again, once; what is found is kept beside the store, so that the next study reads none.
"""

import json
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.measured_replacements import check_class_token
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadSpec
from clip_anatomy.files import digest, mapped_array
from clip_anatomy.loading.clip import BATCH, Clip
from clip_anatomy.partial_output import held_file, sweep
from clip_anatomy.progress import Progress, silent
from clip_anatomy.split.parts import decompose
from clip_anatomy.split.source_tokens import token_parts
from clip_anatomy.store.rows import ImageRow
from clip_anatomy.store.store import Store
from clip_anatomy.studies.reread_pictures import pictures_again, refuse_changed

__all__ = ["TokenParts", "token_parts_of", "tokens_of"]

FOLDER = "tokens"
OURS = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.npy")
PIECE = 1024


@dataclass(frozen=True)
class TokenParts:
    """Contributions of all heads from some tokens, divided by ‖embedding‖, summed over the heads of a layer.

    Attributes:
        tokens: which; 0 is the class token.
        layers: of the layer axis: all of the model.
        values: the numbers, mapped from a file.
    """

    tokens: tuple[int, ...]
    layers: tuple[int, ...]
    values: Float[np.ndarray, "image layer embed"] = field(repr=False)

    def layer(self, layer: int, rows: np.ndarray) -> Float[Tensor, "image embed"]:
        """Return one layer, of some images."""
        return torch.from_numpy(self.values[rows, self.layers.index(layer)].astype(np.float32))

    def all(self, rows: np.ndarray) -> Float[Tensor, "image embed"]:
        """Return all layers together."""
        return torch.from_numpy(self.values[rows].astype(np.float32).sum(1))


def tokens_of(
    store: Store,
    clip: Callable[[], Clip],
    selection: Selection,
    progress: Progress | None = None,
) -> dict[tuple[int, ...], TokenParts]:
    """Tell what a selection needs of tokens, by tokens; empty where it needs none."""
    wanted = {selection.tokens} if selection.tokens else set[tuple[int, ...]]()
    wanted |= {(0,)} if selection.class_to_class else set()

    def model() -> Clip:
        opened = clip()
        check_class_token(opened, selection)
        return opened

    return {tokens: token_parts_of(store, model, tokens, progress) for tokens in sorted(wanted)}


def token_parts_of(
    store: Store,
    clip: Callable[[], Clip],
    tokens: tuple[int, ...] = (0,),
    progress: Progress | None = None,
) -> TokenParts:
    """Tell what all heads read from some tokens of every image: kept beside the store, or taken from the pictures now.

    Args:
        store: the store.
        clip: opens its model, called only if pictures must be read.
        tokens: source tokens; 0 is the class token.
        progress: called with what is being done, images done, images in all.

    Raises:
        StoreError: a picture is not there any more, or is another one now.
        BadSpec: tokens that do not exist.
    """
    manifest = store.manifest
    layers = tuple(range(manifest.depth))
    place = store.path / FOLDER / f"{_name(store, tokens)}.npy"
    shape = (len(store), manifest.depth, manifest.embed)
    try:
        cached = np.load(place, mmap_mode="r", allow_pickle=False)
        if cached.shape == shape and cached.dtype == np.float16:
            return TokenParts(tokens, layers, cached)
    except (OSError, ValueError):
        pass  # not there yet, or damaged: taken again
    opened, tell = clip(), progress or silent
    manifest.refuse_other(opened.name, opened.digest, store.path)
    with _room(store, place, shape) as (values, part):
        for at, rows in _batches(store):
            values[at : at + len(rows)] = _read(store, opened, rows, tokens)
            tell("reading the pictures again", at + len(rows), len(store))
        if part is not None and isinstance(values, np.memmap):
            values.flush()
            part.replace(place)
            for old in place.parent.iterdir():  # of the store as it was before
                if OURS.fullmatch(old.name) and not old.name.startswith(place.name.split("-")[0]):
                    old.unlink(missing_ok=True)
            return TokenParts(tokens, layers, np.load(place, mmap_mode="r", allow_pickle=False))
    return TokenParts(tokens, layers, values)


def _name(store: Store, tokens: tuple[int, ...]) -> str:
    state = json.dumps([store.content, store.manifest.convention, store.manifest.digest])
    return "-".join(digest(text, size=8) for text in (state, json.dumps(tokens)))


@contextmanager
def _room(store: Store, place: Path, shape: tuple[int, int, int]) -> Generator[tuple[np.ndarray, Path | None]]:
    """Make a file to fill, moved into its place at the end; memory where the store may only be read."""
    with ExitStack() as stack:
        try:
            sweep(store.beside(FOLDER))
            part = stack.enter_context(held_file(place.parent, place.name))
            room: tuple[np.ndarray, Path | None] = mapped_array(part, np.float16, shape), part
        except OSError:
            room = np.zeros(shape, np.float16), None
        yield room


def _batches(store: Store) -> Iterator[tuple[int, list[ImageRow]]]:
    rows = store.rows()
    for first in range(0, len(rows), BATCH):
        yield first, rows[first : first + BATCH]


def _read(store: Store, clip: Clip, rows: list[ImageRow], tokens: tuple[int, ...]) -> np.ndarray:
    why = "class-to-class attention and tokens are not in a store, so the pictures are read again"
    pixels = pictures_again(store, clip, rows, why)
    there = clip.vision.token_count(pixels)
    if wrong := [token for token in tokens if token >= there]:
        raise BadSpec(
            f"token {wrong[0]} does not exist: images have {there}. Type token=0-{there - 1} (0 is the class token)"
        )
    parts = decompose(clip, pixels, "official" if store.manifest.convention == "official" else "centered")
    length = parts.embedding.norm(dim=-1)
    refuse_changed(store, rows, parts.embedding.cpu(), why)
    summed = token_parts(parts, dict.fromkeys(range(store.manifest.depth), tokens)).sum(2)
    return (summed / length[:, None, None]).cpu().numpy().astype(np.float16)
