"""The registry: every method of `heatmap` by name. Command line choices, docs tables and tests are derived from it."""

from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.attention import ATTENTION
from clip_anatomy.maps.clip_surgery import SURGERY
from clip_anatomy.maps.decomposition import DECOMPOSITION
from clip_anatomy.maps.gradients import GRADIENTS
from clip_anatomy.maps.maskclip import MASKCLIP
from clip_anatomy.maps.method import Method
from clip_anatomy.maps.proxyclip import PROXY
from clip_anatomy.maps.resnet_maps import OWN_POOL, RESNET
from clip_anatomy.maps.self_self import DENSE, OWN

# Why the rest is refused there.
_NOT_OF_RESNETS = "its only attention is one pool, without a residual stream, an MLP or a block before it"

METHODS: dict[str, Method] = {**DECOMPOSITION, **SURGERY, **MASKCLIP, **DENSE, **PROXY, **ATTENTION, **GRADIENTS}


def methods_of(clip: Clip) -> dict[str, Method]:
    """The methods that have a meaning on this model: all of them on a transformer, those of `maps.resnet` on a CLIP-ResNet."""
    return {"transformer": METHODS, "resnet": RESNET}[clip.vision.architecture]


def method_of(clip: Clip, name: str) -> Method:
    """One of them by name.

    Raises:
        BadSpec: no such method.
        UnsupportedModel: a method that has no meaning on this model; names those that have.
    """
    known = methods_of(clip)
    if name not in known:
        if name in METHODS:
            raise UnsupportedModel(
                f"method {name!r} has no meaning on a CLIP-ResNet: {_NOT_OF_RESNETS}. Type one of: {', '.join(known)}"
            )
        raise BadSpec(f"method {name!r} is not known. Type one of: {', '.join(known)}")
    return known[name]


def own_method(clip: Clip) -> Method:
    """What runs a `DenseAttention` of one's own on this model."""
    return {"transformer": OWN, "resnet": OWN_POOL}[clip.vision.architecture]
