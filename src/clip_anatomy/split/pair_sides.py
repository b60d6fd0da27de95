"""One of two things that are compared, as a sum of its parts: a picture of patches, or a text of words.

A unit embedding is the sum of the rows of each view. Both towers are linear in their parts, so whatever two sides have in common is
the product of two such tables: [part, embed] each, never [part, embed, part].
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from clip_anatomy.data.picture_batches import NamedPicture, picture_batches
from clip_anatomy.data.picture_files import has_suffix
from clip_anatomy.data.typed_pictures import is_address, named_picture
from clip_anatomy.errors import BadImage, BadText
from clip_anatomy.files import path_of
from clip_anatomy.images.decode import ImageLike
from clip_anatomy.images.geometry import Geometry, patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.word_pieces import word_tokens
from clip_anatomy.results import Compact
from clip_anatomy.split.parts import Parts, decompose_tower
from clip_anatomy.split.removal import Removal
from clip_anatomy.split.tokens import no_shares, token_map

__all__ = ["VIEWS", "Side", "SideView", "View", "is_picture_name", "read_side", "text_side", "tokens_of_parts"]

View = Literal["tokens", "heads", "layers"]
VIEWS: tuple[View, ...] = ("tokens", "heads", "layers")
INPUT, BIAS = "input embedding", "biases"


@dataclass(frozen=True, repr=False)
class SideView(Compact):
    """Parts of one kind, and those that remain, which sum to the unit embedding.

    Attributes:
        labels: what each row is called.
        vectors: the parts of the unit embedding.
        count: how many rows are of the kind itself; those behind are what remains.
    """

    labels: tuple[str, ...]
    vectors: Float64[Tensor, "part embed"] = field(repr=False)
    count: int


@dataclass(frozen=True, repr=False)
class Side(Compact):
    """A picture or a text, split.

    Attributes:
        name: what it is called; of a text, the text.
        kind: "picture" or "text".
        views: its parts as tokens (patches or words), as heads, as layers.
        grid: (row, col) patches of a picture.
        inputs: pixels or token ids, for forwards without some of its tokens.
        picture: the original, if there is one.
        geometry: where the patches lie in it.
        removal: what taking patches or words away does, where that was measured.
    """

    name: str
    kind: Literal["picture", "text"]
    views: Mapping[str, SideView]
    grid: tuple[int, int] | None
    inputs: Tensor = field(repr=False)
    picture: NamedPicture | None = field(default=None, repr=False)
    geometry: Geometry | None = field(default=None, repr=False)
    removal: Removal | None = field(default=None, repr=False)

    @property
    def parts(self) -> tuple[str, ...]:
        """Its patches or words."""
        view = self.views["tokens"]
        return view.labels[: view.count]


def is_picture_name(item: object) -> bool:
    """Tell a picture from a text: whatever is no string, an address, an existing file, a name that ends as pictures' do.

    Example:
        >>> from pathlib import Path
        >>> is_picture_name("a dog"), is_picture_name("dog.jpg"), is_picture_name(Path("dog"))
        (False, True, True)
    """
    if not isinstance(item, str):
        return True
    if "\0" in item or "\n" in item or len(item) > 1000:
        return False
    return is_address(item) or has_suffix(item) or path_of(item).is_file()


def read_side(clip: Clip, item: ImageLike, *, allow_urls: bool = False) -> Side:
    """Split one picture or one text.

    Args:
        clip: an opened model.
        item: a picture, or a text (see `is_picture_name`).
        allow_urls: fetch http(s) addresses.
    """
    if is_picture_name(item):
        return _picture_side(clip, item, allow_urls=allow_urls)
    assert isinstance(item, str)
    return text_side(clip, item)


def text_side(clip: Clip, text: str) -> Side:
    """Split one text, also one that is called like a file.

    Raises:
        BadText: it holds no word.
        UnsupportedModel: a text tower that is one part.
    """
    if not text.strip():
        raise BadText(f"{text!r} holds no word. Type a sentence, e.g. 'a red circle on the grass'")
    ids = clip.ids([text])
    if not clip.text_tower.layers:
        raise no_shares(clip.text_tower)
    spans = word_tokens(clip.tokenizer, text, ids.shape[1])
    words = [(word, tokens) for word, tokens in spans if tokens]
    parts = decompose_tower(clip.text_tower, ids, "centered")
    views = _views(parts, [tokens for _, tokens in words], [word for word, _ in words], "start and end marks")
    return Side(text, "text", views, None, ids)


def _picture_side(clip: Clip, item: Any, *, allow_urls: bool) -> Side:
    given = item[None] if isinstance(item, Tensor) and item.dim() == 3 and item.is_floating_point() else item
    batches = list(
        picture_batches(clip, given if isinstance(given, Tensor) else [named_picture(0, given)], allow_urls=allow_urls)
    )
    if len(batches) != 1 or len(batches[0].pixels) != 1:
        raise BadImage("more than one picture was given for one side. Type: pairs(clip, 'photo.jpg', 'a dog')")
    batch, tower = batches[0], clip.vision
    parts = decompose_tower(tower, batch.pixels, "centered")
    grid, own = patch_grid(batch.pixels.shape, tower.patch), tower.own
    patches = [[own + at] for at in range(grid[0] * grid[1])] if tower.layers else []
    labels = [f"patch {at // grid[1]},{at % grid[1]}" for at in range(len(patches))]
    picture = batch.pictures[0] if batch.pictures else None
    geometry = batch.geometries[0] if batch.geometries else None
    name = "picture" if picture is None else picture.name
    return Side(name, "picture", _views(parts, patches, labels, "class token"), grid, batch.pixels, picture, geometry)


def tokens_of_parts(side: Side, clip: Clip) -> list[list[int]]:
    """Return the tokens of each patch or word."""
    if side.kind == "picture":
        return [[clip.vision.own + at] for at in range(len(side.parts))]
    return [tokens for _, tokens in word_tokens(clip.tokenizer, side.name, side.inputs.shape[1]) if tokens]


def _views(parts: Parts, groups: list[list[int]], labels: list[str], others: str) -> dict[str, SideView]:
    """Return the three views of one split embedding, each divided by its length."""
    length = parts.embedding[0].norm()
    heads, mlps, start, bias = (
        (one[0] / length).double().cpu() for one in (parts.heads, parts.mlps, parts.input_embedding, parts.bias)
    )
    layers = len(heads)
    remains = [(INPUT, start[None]), (BIAS, bias[None])]
    by_layer = heads.sum(1) + mlps[:layers] if len(mlps) >= layers else heads.sum(1)
    tokens = _token_rows(parts, groups)
    other = heads.sum((0, 1)) - tokens.sum(0)
    return {
        "tokens": _view(labels, tokens, [(others, other[None]), ("MLPs", mlps.sum(0)[None]), *remains]),
        "heads": _view(
            [f"{layer}.{head}" for layer in range(layers) for head in range(heads.shape[1])],
            heads.flatten(0, 1),
            [(f"MLP {at}" if at < layers else "pool MLP", mlp[None]) for at, mlp in enumerate(mlps)] + remains,
        ),
        "layers": _view([f"layer {layer}" for layer in range(layers)], by_layer, [*_pool(mlps, layers), *remains]),
    }  # fmt: skip


def _view(labels: list[str], rows: Tensor, remains: list[tuple[str, Tensor]]) -> SideView:
    return SideView(
        (*labels, *(name for name, _ in remains)), torch.cat([rows, *(row for _, row in remains)]), len(labels)
    )


def _pool(mlps: Tensor, layers: int) -> list[tuple[str, Tensor]]:
    return [("pool MLP", mlps[layers:].sum(0)[None])] if len(mlps) > layers else []


def _token_rows(parts: Parts, groups: list[list[int]]) -> Float64[Tensor, "part embed"]:
    """Compute what all heads read from each group of tokens: directions of the joint space are the texts of `token_map`."""
    tower = parts.source.network
    if not groups or not tower.layers:
        return torch.zeros(0, tower.embed, dtype=torch.float64)
    each = token_map(tower, parts.source.inputs, torch.eye(tower.embed, device=tower.device))[0].double().cpu()
    return torch.stack([each[tokens].sum(0) for tokens in groups])
