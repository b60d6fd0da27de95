"""open_clip's TimmModel: a timm trunk, and the projection that open_clip adds behind it.

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


def open_clip_timm(tensors: BorrowedTensors, visual: Any) -> Tower:
    """Build the image tower of a TimmModel, split as far down as it is linear.

    Raises:
        UnsupportedModel: in training mode with BatchNorm, whose statistics a forward would change.
    """
    own = {name: layer for name, layer in visual.head.named_children() if not isinstance(layer, nn.Dropout)}
    taken = tensors.taken
    try:
        if set(own) <= {"proj"}:
            projection = tensors.linear("visual.head.proj") if own else None
            return timm_transformer(tensors, visual.trunk, "visual.trunk.", projection)
    except NotSplit:
        tensors.give_back(taken)
    refuse_batch_norm(visual)
    state = tuple(tensors.take(f"visual.{name}") for name in tensors_of(visual))
    size = tuple(int(n) for n in visual.image_size)
    places = _shape(visual, (size[0], size[1]))
    embed = _embed_width(visual)
    readout = _readout(visual, own, places) if places is not None else None
    if readout is None or places is None:
        what, side = f"{type(visual.trunk).__name__} with an MLP behind it", (1, 1)
        return HostTower(what, "image", visual, state, embed, side, (size[0], size[1]))
    trunk, width, grid = visual.trunk, places[0], places[1:]
    weight = next(tensor for tensor in state if tensor.is_floating_point())  # Swin's first one is a table of places
    eye = torch.eye(width, dtype=weight.dtype, device=weight.device)
    norm, end = readout
    return HostTower(
        what=type(trunk).__name__,
        kind="image",
        run=lambda pixels: _map(trunk, pixels),
        state=state,
        embed=embed,
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


def _shape(visual: Any, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """Width and grid of the trunk's places, from one empty picture; None where it has none."""
    first = next(visual.parameters())
    with torch.no_grad():
        features = _map(visual.trunk, torch.zeros(1, 3, *size, dtype=first.dtype, device=first.device))
    return (features.shape[1], features.shape[2], features.shape[3]) if features.dim() == 4 else None


def _embed_width(visual: Any) -> int:
    linear = [layer for layer in visual.modules() if isinstance(layer, nn.Linear)]
    return int(linear[-1].out_features)


def _readout(
    visual: Any, own: dict[str, nn.Module], places: tuple[int, int, int]
) -> tuple[Norm | None, Linear | None] | None:
    """Read the norm and the projection behind the mean over the places; None where something else is there."""
    head: Any = visual.trunk.head
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
