"""Image towers alone: `visual` taken out of an open_clip model, and timm's models, which have no texts at all."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from clip_anatomy.images.preprocess import Preprocess
from clip_anatomy.loading.host import (
    BorrowedTensors,
    Host,
    HostInputs,
    LoadedModel,
    library_version,
    tensors_of,
    with_remainder,
)
from clip_anatomy.loading.open_clip_inputs import open_clip_pixels, open_clip_preprocess
from clip_anatomy.loading.open_clip_timm import size_of, timm_alone
from clip_anatomy.loading.open_clip_towers import image_tower_of
from clip_anatomy.loading.score_rule import ScoreRule
from clip_anatomy.loading.timm_towers import PLACED_TRUNKS, SPLIT_TRUNKS
from clip_anatomy.towers.absent_tower import beside
from clip_anatomy.towers.protocol import Tower

READ_THROUGH = (
    "load(vit).read_through(align(ITS_STORE, STORE_OF_A_CLIP), clip), which reads it in the space of that CLIP"
)


def read_visual(visual: Any) -> Host:
    """Read open_clip's `model.visual`: VisionTransformer, TimmModel or ModifiedResNet."""
    tensors = BorrowedTensors({f"visual.{name}": tensor for name, tensor in tensors_of(visual).items()})
    tower = image_tower_of(tensors, visual)
    tensors.refuse_left_over(f"open_clip {type(visual).__name__}", ("visual.attn_pool_contrastive.",))
    return _alone(visual, tower, "open_clip", "load(model), the whole model of open_clip")


def read_timm(trunk: Any) -> Host:
    """Read a vision transformer, a ConvNeXt or a Swin of timm; its embedding is what `trunk(pixels)` returns (with a classifier, the classes' logits)."""
    tensors = BorrowedTensors(tensors_of(trunk))
    tower = timm_alone(tensors, trunk)
    tensors.refuse_left_over(f"timm {type(trunk).__name__}")
    return _alone(trunk, tower, "timm", READ_THROUGH)


ENCODERS: dict[tuple[str, str], Callable[[Any], Host]] = {
    **{("open_clip", name): read_visual for name in ("VisionTransformer", "TimmModel", "ModifiedResNet")},
    **{("timm", name): read_timm for name in (*SPLIT_TRUNKS, *PLACED_TRUNKS)},
}
"""(library, class) → how it is read."""


def encoder_inputs(module: nn.Module) -> LoadedModel:
    """Give the preprocessing of an image tower alone: open_clip's, or what timm says of its weights."""
    one: Any = module
    if hasattr(one, "image_size"):  # open_clip's
        configured = getattr(one, "preprocess_cfg", None)
        pixels = open_clip_pixels(configured, one.image_size)
        return LoadedModel(module, None, open_clip_preprocess(configured, one.image_size), HostInputs(pixels))
    own: Any = import_module("timm.data")
    data = own.resolve_model_data_config(module)
    transform = own.create_transform(**data, is_training=False)
    rows, cols = size_of(one)
    covered = data["crop_mode"] == "center"
    preprocess = Preprocess(
        size=(rows, cols),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        resize="shortest" if covered else "squash",
        short_side=int(min(rows, cols) / data["crop_pct"]) if covered else None,
    )
    known = tuple(data["input_size"][1:]) == (rows, cols) and data["crop_mode"] in ("center", "squash")
    return LoadedModel(module, None, preprocess, HostInputs(transform if known else None))


def _alone(module: nn.Module, tower: Tower, library: str, instead: str) -> Host:
    other = beside(tower, f"{library}'s {type(module).__name__} alone", instead)
    return Host(
        library=library_version(library),
        module=module,
        image_tower=tower,
        text_tower=other,
        encode_image=partial(_encoded, module),
        encode_text=other.encode,
        rule=ScoreRule(),
    )


def _encoded(module: nn.Module, pixels: Tensor) -> Tensor:
    output = module(with_remainder(module, pixels))
    return output[0] if isinstance(output, tuple) else output
