"""The pictures, stored images and texts of a query, each brought to the numbers that a store holds."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.picture_files import has_suffix
from clip_anatomy.errors import BadInput
from clip_anatomy.files import digest_of_file, path_of
from clip_anatomy.loading.clip import Clip
from clip_anatomy.store.head_coordinates import image_arrays
from clip_anatomy.store.rows import ImageRow
from clip_anatomy.store.store import Store

__all__ = ["QueryPicture", "coordinates_of_pictures", "read_query"]

KINDS = ("image", "id", "text")


@dataclass(frozen=True)
class QueryPicture:
    """A picture of a query.

    Attributes:
        name: what to call it.
        heads: coordinates of the stored heads.
        embedding: of unit length.
        row: its row, if it is an image of the store.
        picture: what was given, if it is not.
        digest: hash of its file, where it is one: equal for equal files.
    """

    name: str
    heads: Float[Tensor, "layer head d"] = field(repr=False)
    embedding: Float[Tensor, " embed"] = field(repr=False)
    row: ImageRow | None = None
    picture: Any = field(default=None, repr=False)
    digest: str | None = None


def coordinates_of_pictures(pictures: Sequence[QueryPicture], store: Store) -> Float[Tensor, "image layer head d"]:
    """Stack the head coordinates of pictures; an empty tensor for none."""
    manifest = store.manifest
    if not pictures:
        return torch.zeros(0, len(manifest.layers), manifest.heads, manifest.d)
    return torch.stack([one.heads for one in pictures])


def read_query(
    given: Any, store: Store, clip: Callable[[], Clip], *, allow_urls: bool = False
) -> tuple[tuple[QueryPicture, ...], tuple[str, ...]]:
    """Read the pictures and texts of a query.

    Args:
        given: a picture, a path, a stored id, a text, or several of these; `image:`, `id:` and `text:` in front of a string
            say which of them it is. Otherwise a string is an image if there is such a file, else an id if there is one in
            the store, else a text.
        store: the store that will be searched.
        clip: opens its model, called only where a picture must be embedded.
        allow_urls: fetch http(s) addresses.

    Returns:
        Pictures, and texts.

    Raises:
        BadInput: a path or id that does not exist, or an empty text.
        BadImage: a picture that cannot be read.
    """
    pictures: list[QueryPicture] = []
    texts: list[str] = []
    for one in () if given is None else given if isinstance(given, list | tuple) else [given]:
        kind, value = _kind(one, store)
        if kind == "id":
            pictures.append(_stored(value, store))
        elif kind == "image":
            pictures.append(_embedded(value, store, clip(), allow_urls=allow_urls))
        elif value.strip():
            texts.append(value)
        else:
            raise BadInput("a text is empty. Type words to look for")
    return tuple(pictures), tuple(texts)


def _kind(one: Any, store: Store) -> tuple[str, Any]:
    """Return one of KINDS, and what was given without the prefix that says so."""
    if not isinstance(one, str):
        return "image", one
    kind, given, rest = one.partition(":")
    if given and kind in KINDS:
        return kind, rest
    try:
        if path_of(one).is_file():
            return "image", one
    except (OSError, ValueError):
        pass
    if one.startswith(("http://", "https://")):
        return "image", one
    if one and store.rows("id = ?", [one]):
        return "id", one
    if os.sep in one and path_of(one).is_dir():
        raise BadInput(f"{one!r} is a folder; pictures were expected. Type {one.rstrip(os.sep)}/*.jpg for all in it")
    if has_suffix(one) or (os.sep in one and " " not in one):
        raise BadInput(
            f"there is no picture {one!r}, here or in {store.path}. Type a path, id:ID, or text:{one} to look for these words"
        )
    return "text", one


def _stored(name: str, store: Store) -> QueryPicture:
    rows = store.rows("id = ?", [name])
    if not rows:
        raise BadInput(f"no image of {store.path} has the id {name!r}. Ids are those of Store.column('id')")
    row = rows[0]
    block = next(b for b in store.blocks if b.start <= row.index < b.start + len(b))
    place = row.index - block.start
    # Of a block with holes the living are a copy of it all: one image is looked up among all of them.
    whole, inside = replace(block, alive=None), place if block.alive is None else int(block.alive[place])
    heads = np.stack([whole.heads(at)[:, inside] for at in range(len(store.manifest.layers))])
    embedding = store.embeddings([row.index], unit=True)[0]
    return QueryPicture(name, torch.from_numpy(heads).float(), embedding, row, digest=row.digest)


def _embedded(given: Any, store: Store, clip: Clip, *, allow_urls: bool) -> QueryPicture:
    value = path_of(given) if isinstance(given, str) and "://" not in given else given
    pixels = clip.pixels(value, allow_urls=allow_urls)
    if len(pixels) != 1:
        raise BadInput(f"{len(pixels)} pictures in one: give a list of single pictures")
    arrays = image_arrays(clip, store.basis, store.manifest, pixels)
    name = Path(given).name if isinstance(given, str | Path) else "the picture"
    # [layer, head, 1, d] → [layer, head, d]
    heads, embedding = torch.from_numpy(arrays.heads)[:, :, 0].float(), torch.from_numpy(arrays.embedding)[0]
    digest = digest_of_file(value) if isinstance(value, Path) else None
    return QueryPicture(name, heads, embedding.float(), None, given, digest)
