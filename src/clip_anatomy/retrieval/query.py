"""What a search asks for: pictures, stored images and texts, each brought to the numbers that a store holds."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.picture import SUFFIXES
from clip_anatomy.errors import BadInput
from clip_anatomy.files import path_of
from clip_anatomy.loading.clip import Clip
from clip_anatomy.retrieval.subspace import units
from clip_anatomy.store.head_coordinates import arrays_of
from clip_anatomy.store.manifest import digest_of
from clip_anatomy.store.rows import Row
from clip_anatomy.store.store import Store

__all__ = ["Asked", "Example", "Opener", "ask"]

Opener = Callable[[], Clip]
KINDS = ("image", "id", "text")


@dataclass(frozen=True)
class Example:
    """A picture that was given.

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
    row: Row | None = None
    picture: Any = field(default=None, repr=False)
    digest: str | None = None


@dataclass(frozen=True)
class Asked:
    """What is looked for.

    Attributes:
        more: pictures to be like.
        less: pictures to be unlike.
        words: texts to match.
        unwanted: texts not to match.
        texts: unit embeddings of `words`, then of `unwanted`.
    """

    more: tuple[Example, ...] = ()
    less: tuple[Example, ...] = ()
    words: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    texts: Float[Tensor, "text embed"] | None = field(default=None, repr=False)

    @property
    def said(self) -> str:
        """The question in words."""
        likes = [*(one.name for one in self.more), *(f"“{text}”" for text in self.words)]
        not_likes = [*(one.name for one in self.less), *(f"“{text}”" for text in self.unwanted)]
        return " + ".join(likes) + "".join(f" − {one}" for one in not_likes)

    def heads(self, which: Sequence[Example], store: Store) -> Float[Tensor, "image layer head d"]:
        """Coordinates of some of the pictures, stacked."""
        manifest = store.manifest
        empty = torch.zeros(0, len(manifest.layers), manifest.heads, manifest.d)
        return torch.stack([one.heads for one in which]) if which else empty

    def rows(self) -> list[Row]:
        """The stored images among the pictures."""
        return [one.row for one in (*self.more, *self.less) if one.row is not None]

    def digests(self) -> frozenset[str]:
        """Hashes of the files that were given."""
        return frozenset(one.digest for one in (*self.more, *self.less) if one.digest)


def ask(
    store: Store,
    query: Any,
    less: Any,
    texts: Sequence[str],
    clip: Opener,
    *,
    allow_urls: bool = False,
) -> Asked:
    """Understand a question.

    Args:
        store: the store that will be searched.
        query: a picture, a path, a stored id, a text, or several of these; `image:`, `id:` and `text:` in front of a string
            say which of them it is. Otherwise a string is an image if there is such a file, else an id if there is one in
            the store, else a text.
        less: the same, to be unlike.
        texts: more texts.
        clip: opens the model, called only where pictures or texts must be embedded.
        allow_urls: fetch http(s) addresses.

    Raises:
        BadInput: nothing was asked, or a path or id that does not exist.
        BadImage: a picture that cannot be read.
        StoreError: the model is not the store's.
    """
    reader = _Reader(store, clip, allow_urls)
    more, words = reader.read(query)
    unlike, unwanted = reader.read(less)
    words = (*words, *texts)
    if any(not text.strip() for text in (*words, *unwanted)):
        raise BadInput("a text is empty. Type words to look for")
    if not more and not words and not unlike and not unwanted:
        raise BadInput("nothing was asked. Give a picture, a stored id or a text: search(store, 'photo.jpg')")
    found = None
    if words or unwanted:
        found = torch.nn.functional.normalize(clip().encode_text([*words, *unwanted]), dim=-1).cpu()
    return Asked(tuple(more), tuple(unlike), tuple(words), tuple(unwanted), found)


class _Reader:
    def __init__(self, store: Store, clip: Opener, allow_urls: bool) -> None:
        self.store, self.clip, self.allow_urls = store, clip, allow_urls

    def read(self, given: Any) -> tuple[list[Example], tuple[str, ...]]:
        """Pictures and texts among what was given."""
        examples: list[Example] = []
        words: list[str] = []
        for one in _each(given):
            kind, value = self._kind(one)
            if kind == "text":
                words.append(value)
            else:
                examples.append(self._stored(value) if kind == "id" else self._picture(value))
        return examples, tuple(words)

    def _kind(self, one: Any) -> tuple[str, Any]:
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
        if one and self.store.rows("id = ?", [one]):
            return "id", one
        if os.sep in one and path_of(one).is_dir():
            raise BadInput(
                f"{one!r} is a folder; pictures were expected. Type {one.rstrip(os.sep)}/*.jpg for all in it"
            )
        if Path(one).suffix.lower() in SUFFIXES or (os.sep in one and " " not in one):
            raise BadInput(
                f"there is no picture {one!r}, here or in {self.store.path}. Type a path, id:ID, or text:{one} to look for these words"
            )
        return "text", one

    def _stored(self, name: str) -> Example:
        found = self.store.rows("id = ?", [name])
        if not found:
            raise BadInput(f"no image of {self.store.path} has the id {name!r}. Ids are those of Store.column('id')")
        row = found[0]
        manifest = self.store.manifest
        block = next(b for b in self.store.blocks if b.start <= row.index < b.start + len(b))
        place = row.index - block.start
        # Of a block with holes the living are a copy of it all: one image is looked up among all of them.
        whole, inside = replace(block, alive=None), place if block.alive is None else int(block.alive[place])
        heads = np.stack([whole.heads(at)[:, inside] for at in range(len(manifest.layers))])
        return Example(
            name, torch.from_numpy(heads).float(), units(self.store, [row.index])[0].float(), row, digest=row.digest
        )

    def _picture(self, given: Any) -> Example:
        clip = self.clip()
        value = path_of(given) if isinstance(given, str) and "://" not in given else given
        pixels = clip.pixels(value, allow_urls=self.allow_urls)
        if len(pixels) != 1:
            raise BadInput(f"{len(pixels)} pictures in one: give a list of single pictures")
        arrays = arrays_of(clip, self.store.basis, self.store.manifest, pixels)
        name = Path(given).name if isinstance(given, str | Path) else "the picture"
        # [layer, head, 1, d] → [layer, head, d]
        heads, embedding = torch.from_numpy(arrays.heads)[:, :, 0].float(), torch.from_numpy(arrays.embedding)[0]
        digest = digest_of(value) if isinstance(value, Path) else None
        return Example(name, heads, embedding.float(), None, given, digest)


def _each(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
