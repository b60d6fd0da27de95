"""The tower that a model does not have: an image encoder alone, or a text encoder alone, is opened all the same.

Everything that does not need it works; what does reaches one of the methods here, and each of them says the same sentence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.towers.protocol import KINDS, Architecture, AttentionOutput, Tower
from clip_anatomy.towers.trace import LayerReading, Trace

WHOLE = {
    "image": "encode_image(images) or explain, which need none; or open another model",
    "text": "encode_text(texts), or what reads pictures: explain, heatmap, search",
}
"""What a tower that is one part can do."""


@dataclass(frozen=True)
class AbsentTower:
    """Stands where a model has no tower, so that nothing has to ask whether it has one.

    Attributes:
        what: the model, as its library calls it.
        kind: what the tower would read.
        embed: width of the joint space, that of the other tower.
        dtype: of the other tower.
        device: likewise.
        instead: what to type, where the sentence says that it is missing.
        why: what is in the way, where the model has such a tower and it could not be read.
    """

    what: str
    kind: Literal["image", "text"]
    embed: int
    dtype: torch.dtype
    device: torch.device
    instead: str
    why: str = ""

    architecture: Architecture = "absent"
    layers: int = 0
    heads: int = 0
    d: int = 0
    width: int = 0
    patch: tuple[int, int] = (1, 1)
    grid: tuple[int, int] = (1, 1)
    vocabulary: int = 0
    has_mlps: bool = False
    weighs_late: bool = False
    has_class_token: bool = False
    own: int = 0
    rows: int = 1
    pooling: None = None
    blocks: Sequence[AttentionOutput] = ()
    ln_post: None = None
    projection: None = None
    projection_bias: None = None

    def refuse(self) -> NoReturn:
        """Say that it is missing, and what to type.

        Raises:
            UnsupportedModel: always.
        """
        has = "text" if self.kind == "image" else "image"
        does = "pictures" if self.kind == "image" else "texts"
        if self.why:
            raise UnsupportedModel(
                f"the {self.kind} tower of this {self.what} was not opened, its {has} tower was: {self.why}"
            )
        raise UnsupportedModel(
            f"{self.what} has {'an' if has == 'image' else 'a'} {has} tower only and cannot embed {does}. Type: {self.instead}"
        )

    def token_count(self, inputs: Tensor) -> int:
        """Refuse."""
        self.refuse()

    def encode(self, inputs: Tensor) -> Float[Tensor, "image embed"]:
        """Refuse."""
        self.refuse()

    def trace(self, inputs: Tensor, each: Callable[[LayerReading], None] | None = None) -> Trace:
        """Refuse."""
        self.refuse()

    def read_last(self, inputs: Tensor) -> LayerReading:
        """Refuse."""
        self.refuse()


def beside(tower: Tower, what: str, instead: str, why: str = "") -> AbsentTower:
    """Make the missing half of a model that is one tower alone, or of which one tower could not be read (`why`)."""
    kind: Literal["image", "text"] = "text" if tower.kind == "image" else "image"
    return AbsentTower(what, kind, tower.embed, tower.dtype, tower.device, instead, why)


def refuse_unsplit(tower: Tower) -> None:
    """Raise UnsupportedModel where a tower that something needs parts of is missing, or is one part."""
    refuse_absent(tower)
    if tower.architecture == "whole":
        raise UnsupportedModel(
            f"this {tower.kind} tower is {KINDS['whole']}: it has no heads. Type {WHOLE[tower.kind]}"
        )


def refuse_absent(tower: Tower) -> None:
    """Raise UnsupportedModel where a tower that something needs is missing."""
    if isinstance(tower, AbsentTower):
        tower.refuse()
