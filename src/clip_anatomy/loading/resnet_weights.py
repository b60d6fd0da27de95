"""open_clip's ModifiedResNet, read: every convolution, BatchNorm statistic and projection borrowed into a `ResNet`.

Strides, paddings, pools and epsilons are read off the modules, never assumed.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.transformer_weights import Facts, Names, finish, open_clip_text
from clip_anatomy.towers.resnet import AttentionPool, Bottleneck, Conv, ResNet
from clip_anatomy.towers.transformer import Transformer

EVAL = "Type: model.eval()"


def open_clip_resnet(names: Names, visual: Any, text: Facts, *, found: str) -> tuple[ResNet, Transformer]:
    """Towers of an open_clip CLIP whose image tower is a ModifiedResNet.

    Args:
        names: all tensors of the model, buffers included.
        visual: the ModifiedResNet, for what a state dict does not say.
        text: facts of the text tower.
        found: what the model calls itself, for the error message.

    Returns:
        Image tower and text tower.

    Raises:
        UnsupportedModel: in training mode (BatchNorm would then use the batch's own statistics, and change the model's), or a
            tensor or module is missing or left over.
    """
    refuse_training(visual)
    stages = [getattr(visual, f"layer{i}") for i in range(1, 5)]
    resnet = ResNet(
        stem=tuple(_conv(names, visual, "visual", (f"conv{i}", f"bn{i}", f"act{i}")) for i in (1, 2, 3)),
        stem_pool=_pool(visual.avgpool),
        stages=tuple(
            tuple(_bottleneck(names, block, f"visual.layer{i}.{k}") for k, block in enumerate(stage))
            for i, stage in enumerate(stages, 1)
        ),
        pool=_attention(names, visual.attnpool),
    )
    text_tower = open_clip_text(names, text)
    finish(names, found)
    return resnet, text_tower


def refuse_training(visual: nn.Module) -> None:
    """Raise UnsupportedModel while any BatchNorm would use, and change, running statistics."""
    for name, module in visual.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:  # pyright: ignore[reportPrivateUsage]
            raise UnsupportedModel(
                f"found a CLIP-ResNet in training mode (visual.{name}): each embedding would depend on the rest of its batch, "
                f"and running it would change the model. {EVAL}"
            )


def openai_resnet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Give open_clip's `vision_cfg` of an OpenAI ResNet, read off the shapes; heads are 64 wide (Radford et al. 2021, §2.4)."""
    width = state["visual.layer1.0.conv1.weight"].shape[0]
    places = len(state["visual.attnpool.positional_embedding"]) - 1
    blocks = [
        1 + max(int(key.split(".")[2]) for key in state if key.startswith(f"visual.layer{i}.")) for i in range(1, 5)
    ]
    return {"image_size": 32 * round(places**0.5), "layers": blocks, "width": width, "patch_size": None}


def _conv(names: Names, module: Any, prefix: str, called: tuple[str, str, str | None]) -> Conv:
    """One convolution and what follows it; `called` are the names of convolution, BatchNorm and activation."""
    conv, batch_norm, act = called
    layer, statistics = getattr(module, conv), getattr(module, batch_norm)
    if act is not None and not isinstance(getattr(module, act), nn.ReLU):
        raise UnsupportedModel(
            f"found the activation {type(getattr(module, act)).__name__} in a CLIP-ResNet, not ReLU."
        )
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.stride[0] != layer.stride[1] or layer.bias is not None:
        raise UnsupportedModel(f"found {layer} in a CLIP-ResNet; plain convolutions without bias were expected.")
    return Conv(
        weight=names.take(f"{prefix}.{conv}.weight"),
        stride=int(layer.stride[0]),
        padding=int(layer.padding[0]),
        **_statistics(names, f"{prefix}.{batch_norm}", statistics),
    )


def _statistics(names: Names, prefix: str, module: Any) -> dict[str, Any]:
    names.maybe(f"{prefix}.num_batches_tracked")  # a counter of the training that eval mode never reads
    return {
        "gain": names.take(f"{prefix}.weight"),
        "bias": names.take(f"{prefix}.bias"),
        "mean": names.take(f"{prefix}.running_mean"),
        "variance": names.take(f"{prefix}.running_var"),
        "eps": float(module.eps),
    }


def _bottleneck(names: Names, block: Any, prefix: str) -> Bottleneck:
    one, two, three = (_conv(names, block, prefix, (f"conv{i}", f"bn{i}", f"act{i}")) for i in (1, 2, 3))
    shortcut = None
    pool = _pool(block.avgpool)
    if block.downsample is not None:
        parts: dict[str, Any] = dict(block.downsample.named_children())
        if set(parts) != {"-1", "0", "1"} or _pool(parts["-1"]) != pool:
            raise UnsupportedModel(f"found the shortcut {block.downsample} in a CLIP-ResNet.")
        shortcut = _conv(names, block.downsample, f"{prefix}.downsample", ("0", "1", None))
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


def _attention(names: Names, pool: Any) -> AttentionPool:
    prefix = "visual.attnpool"
    if type(pool).__name__ != "AttentionPool2d":
        raise UnsupportedModel(f"found a ResNet that is pooled by {type(pool).__name__}, not by CLIP's attention pool.")
    position = names.take(f"{prefix}.positional_embedding")
    side = round((len(position) - 1) ** 0.5)
    query, key, value, out = (names.linear(f"{prefix}.{name}_proj") for name in "qkvc")
    # open_clip's ResNet takes its own size only; other sizes are resampled as open_clip resamples its transformers' tables.
    return AttentionPool(
        position, (side, side), query, key, value, out, int(pool.num_heads), resampling="bicubic-antialias"
    )
