"""timm's models alone, and open_clip's TimmModel: a timm trunk, and the projection that open_clip adds behind it.

Vision transformers are split block by block. Trunks of convolutions or windows are split where their places are averaged, and
what is not linear even there stays one part.
"""

from typing import Any

import torch
from torch import Tensor, nn

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.host import BorrowedTensors, tensors_of
from clip_anatomy.loading.timm_towers import NotSplit, timm_transformer
from clip_anatomy.towers.host_tower import HostTower, MeanOfPlaces
from clip_anatomy.towers.layers import Linear, Norm
from clip_anatomy.towers.protocol import Tower

MLP = "an MLP stands behind its pooling"


def open_clip_timm(tensors: BorrowedTensors, visual: Any) -> Tower:
    """Build the image tower of a TimmModel, split as far down as it is linear.

    Raises:
        UnsupportedModel: in training mode with BatchNorm, whose statistics a forward would change.
    """
    own, taken = _behind_trunk(visual), tensors.taken
    if not set(own) <= {"proj"}:
        return _host_tower(tensors, visual, visual.trunk, _pair(visual.image_size), MLP)
    projection = tensors.linear("visual.head.proj") if own else None
    try:
        return timm_transformer(tensors, visual.trunk, "visual.trunk.", projection)
    except NotSplit as error:
        tensors.give_back(taken)
        return _host_tower(tensors, visual, visual.trunk, _pair(visual.image_size), f"it has {error}")


def timm_alone(tensors: BorrowedTensors, trunk: Any) -> Tower:
    """Build the tower of a timm model alone; its embedding is what it returns (with a classifier, the classes' logits)."""
    try:
        return timm_transformer(tensors, trunk, "")
    except NotSplit as error:
        tensors.give_back(frozenset())
        return _host_tower(tensors, trunk, trunk, size_of(trunk), f"it has {error}")


def size_of(trunk: Any) -> tuple[int, int]:
    """Give the (row, col) pixels that a timm model takes: those that it was built for, or else those of its weights."""
    built: Any = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    return _pair(built or trunk.pretrained_cfg["input_size"][1:])


def _pair(sides: Any) -> tuple[int, int]:
    rows, cols = sides
    return int(rows), int(cols)


def _behind_trunk(visual: Any) -> dict[str, nn.Module]:
    """Give the layers that open_clip puts behind a trunk."""
    return {name: layer for name, layer in visual.head.named_children() if not isinstance(layer, nn.Dropout)}


def _host_tower(tensors: BorrowedTensors, whole: Any, trunk: Any, size: tuple[int, int], reason: str) -> HostTower:
    """Split a trunk where its places are averaged, or not at all.

    Args:
        tensors: all tensors of the model.
        whole: what makes the embedding: open_clip's TimmModel, or the trunk itself.
        trunk: timm's module.
        size: (row, col) pixels.
        reason: why no block of it is split.
    """
    own, prefix = ({}, "") if whole is trunk else (_behind_trunk(whole), "visual.")
    refuse_batch_norm(whole)
    state = tuple(tensors.take(f"{prefix}{name}") for name in tensors_of(whole))
    first = next(tensor for tensor in state if tensor.is_floating_point())  # Swin's first one is a table of places
    blank = torch.zeros(1, 3, *size, dtype=first.dtype, device=first.device)
    with torch.no_grad():
        places = _map(trunk, blank)
    readout = _readout(trunk, own) if places.dim() == 4 else None
    if readout is None:
        reason = reason if places.dim() < 4 else MLP
        with torch.no_grad():
            embed = whole(blank).shape[-1]
        return HostTower(type(trunk).__name__, "image", whole, state, embed, (1, 1), size, why=reason)
    (norm, end), width, grid = readout, places.shape[1], _pair(places.shape[2:])
    eye = torch.eye(width, dtype=first.dtype, device=first.device)
    return HostTower(
        what=type(trunk).__name__,
        kind="image",
        run=lambda pixels: _map(trunk, pixels),
        state=state,
        embed=width if end is None else len(end.weight),
        grid=grid,
        patch=(size[0] // grid[0], size[1] // grid[1]),
        blocks=(MeanOfPlaces(Linear(eye, None)),),
        ln_post=norm,
        projection=None if end is None else end.weight.T,
        projection_bias=None if end is None else end.bias,
    )


def refuse_batch_norm(module: nn.Module) -> None:
    """Raise UnsupportedModel while any BatchNorm would use, and change, running statistics."""
    for name, one in module.named_modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.training:  # pyright: ignore[reportPrivateUsage]
            raise UnsupportedModel(
                f"found an image tower in training mode ({name}): each embedding would depend on the rest of its batch, "
                "and running it would change the model. Type: model.eval()"
            )


def _map(trunk: Any, pixels: Tensor) -> Tensor:
    """Run the trunk up to its places: [image, channel, row, col]."""
    features = trunk.forward_features(pixels)
    return features.permute(0, 3, 1, 2) if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else features


def _readout(trunk: Any, own: dict[str, nn.Module]) -> tuple[Norm | None, Linear | None] | None:
    """Read the norm and the projection behind the mean over the places; None where something else is there."""
    head: Any = getattr(trunk, "head", None)
    pool = getattr(head, "global_pool", None)
    if pool is None or getattr(pool, "pool_type", None) != "avg" or not set(own) <= {"proj"}:
        return None
    norm: Any = getattr(head, "norm", None)
    known = norm is None or isinstance(norm, nn.Identity | nn.LayerNorm)
    if not known or not isinstance(getattr(head, "pre_logits", nn.Identity()), nn.Identity):
        return None
    ends = [layer for layer in (head.fc, own.get("proj")) if isinstance(layer, nn.Linear)]
    if len(ends) > 1:
        return None
    frozen = None
    if isinstance(norm, nn.LayerNorm):
        frozen = Norm(norm.weight.detach(), norm.bias.detach(), norm.eps)
    end = None
    if ends:
        end = Linear(ends[0].weight.detach(), None if ends[0].bias is None else ends[0].bias.detach())
    return frozen, end
