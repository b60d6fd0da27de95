"""open_clip's ModifiedResNet, read: every convolution, BatchNorm statistic and projection borrowed into a `ResNet`.

Strides, paddings, pools and epsilons are read off the modules, never assumed.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.host import BorrowedTensors
from clip_anatomy.towers.resnet import AttentionPool, Bottleneck, Conv, ResNet


def open_clip_resnet(tensors: BorrowedTensors, visual: Any) -> ResNet:
    """Build the image tower of an open_clip CLIP that is a ModifiedResNet.

    Args:
        tensors: all tensors of the model, buffers included.
        visual: the ModifiedResNet, for what a state dict does not say.

    Raises:
        UnsupportedModel: in training mode (BatchNorm would then use the batch's own statistics, and change the model's), or a
            tensor or module is missing.
    """
    _refuse_training(visual)
    stages = [getattr(visual, f"layer{i}") for i in range(1, 5)]
    return ResNet(
        stem=tuple(_conv(tensors, visual, "visual", (f"conv{i}", f"bn{i}", f"act{i}")) for i in (1, 2, 3)),
        stem_pool=_pool(visual.avgpool),
        stages=tuple(
            tuple(_bottleneck(tensors, block, f"visual.layer{i}.{k}") for k, block in enumerate(stage))
            for i, stage in enumerate(stages, 1)
        ),
        pool=_attention(tensors, visual.attnpool),
    )


def _refuse_training(visual: nn.Module) -> None:
    """Raise UnsupportedModel while any BatchNorm would use, and change, running statistics."""
    for name, module in visual.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:  # pyright: ignore[reportPrivateUsage]
            raise UnsupportedModel(
                f"found a CLIP-ResNet in training mode (visual.{name}): each embedding would depend on the rest of its batch, "
                f"and running it would change the model. Type: model.eval()"
            )


def openai_resnet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Give open_clip's `vision_cfg` of an OpenAI ResNet, read off the shapes; heads are 64 wide (Radford et al. 2021, §2.4)."""
    width = state["visual.layer1.0.conv1.weight"].shape[0]
    places = len(state["visual.attnpool.positional_embedding"]) - 1
    blocks = [
        1 + max(int(key.split(".")[2]) for key in state if key.startswith(f"visual.layer{i}.")) for i in range(1, 5)
    ]
    return {"image_size": 32 * round(places**0.5), "layers": blocks, "width": width, "patch_size": None}


def _conv(tensors: BorrowedTensors, module: Any, prefix: str, children: tuple[str, str, str | None]) -> Conv:
    """Return one convolution and what follows it; `children` are the names of convolution, BatchNorm and activation."""
    conv, batch_norm, act = children
    layer, statistics = getattr(module, conv), getattr(module, batch_norm)
    if act is not None and not isinstance(getattr(module, act), nn.ReLU):
        raise UnsupportedModel(
            f"found the activation {type(getattr(module, act)).__name__} in a CLIP-ResNet, not ReLU."
        )
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.stride[0] != layer.stride[1] or layer.bias is not None:
        raise UnsupportedModel(f"found {layer} in a CLIP-ResNet; plain convolutions without bias were expected.")
    return Conv(
        weight=tensors.take(f"{prefix}.{conv}.weight"),
        stride=int(layer.stride[0]),
        padding=int(layer.padding[0]),
        **_statistics(tensors, f"{prefix}.{batch_norm}", statistics),
    )


def _statistics(tensors: BorrowedTensors, prefix: str, module: Any) -> dict[str, Any]:
    tensors.maybe(f"{prefix}.num_batches_tracked")  # a counter of the training that eval mode never reads
    return {
        "gain": tensors.take(f"{prefix}.weight"),
        "bias": tensors.take(f"{prefix}.bias"),
        "mean": tensors.take(f"{prefix}.running_mean"),
        "variance": tensors.take(f"{prefix}.running_var"),
        "eps": float(module.eps),
    }


def _bottleneck(tensors: BorrowedTensors, block: Any, prefix: str) -> Bottleneck:
    one, two, three = (_conv(tensors, block, prefix, (f"conv{i}", f"bn{i}", f"act{i}")) for i in (1, 2, 3))
    shortcut = None
    pool = _pool(block.avgpool)
    if block.downsample is not None:
        parts: dict[str, Any] = dict(block.downsample.named_children())
        if set(parts) != {"-1", "0", "1"} or _pool(parts["-1"]) != pool:
            raise UnsupportedModel(f"found the shortcut {block.downsample} in a CLIP-ResNet.")
        shortcut = _conv(tensors, block.downsample, f"{prefix}.downsample", ("0", "1", None))
    return Bottleneck(one, two, three, pool, shortcut)


def _pool(module: Any) -> int:
    if isinstance(module, nn.Identity):
        return 1
    if not isinstance(module, nn.AvgPool2d):
        raise UnsupportedModel(f"found {type(module).__name__} in a CLIP-ResNet, where a mean pool was expected.")
    side, stride = (size if isinstance(size, int) else size[0] for size in (module.kernel_size, module.stride))
    if side != stride or module.padding not in (0, (0, 0)):
        raise UnsupportedModel(f"found {module} in a CLIP-ResNet; pools that do not overlap were expected.")
    return side


def _attention(tensors: BorrowedTensors, pool: Any) -> AttentionPool:
    prefix = "visual.attnpool"
    if type(pool).__name__ != "AttentionPool2d":
        raise UnsupportedModel(f"found a ResNet that is pooled by {type(pool).__name__}, not by CLIP's attention pool.")
    position = tensors.take(f"{prefix}.positional_embedding")
    side = round((len(position) - 1) ** 0.5)
    query, key, value, out = (tensors.linear(f"{prefix}.{name}_proj") for name in "qkvc")
    # open_clip's ResNet takes its own size only; other sizes are resampled as open_clip resamples its transformers' tables.
    return AttentionPool(
        position, (side, side), query, key, value, out, int(pool.num_heads), resampling="bicubic-antialias"
    )
