"""The registry: every method of `heatmap` by name. Command line choices, docs tables and tests are derived from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

import numpy as np
from torch import Tensor

from clip_anatomy.argument_kinds import expected, fits
from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps import (
    attention,
    clip_surgery,
    dense_attention,
    grad_eclip,
    gradients,
    maskclip,
    neuron_head_maps,
    pearl,
    proxyclip,
    resclip,
    resnet_maps,
    rfclip,
    scclip,
)
from clip_anatomy.maps.contrast import EACH_OTHER
from clip_anatomy.maps.decomposition import DecompositionOptions, decomposition
from clip_anatomy.maps.dense_attention import VARIANTS, DenseAttention
from clip_anatomy.number_ranges import moderate
from clip_anatomy.towers.absent_tower import refuse_absent
from clip_anatomy.towers.transformer import KINDS

__all__ = [
    "CONTRASTED",
    "COSINES",
    "METHODS",
    "RESNET",
    "Method",
    "as_published",
    "dense_method",
    "method_of",
    "methods_of",
]

# Why the rest is refused there.
_NOT_OF = {
    "transformer": "a transformer: it has no attention pool behind convolutions",
    "resnet": "a CLIP-ResNet: its only attention is one pool, without a residual stream, an MLP or a block before it",
    "places": "a tower whose places are averaged: its own library runs what lies before, and only their exact shares are known",
}


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


@dataclass(frozen=True)
class Method:
    """One way of drawing maps.

    Attributes:
        run: (clip, pixels [image, 3, row, col], texts [text, embed] of any length, options) → [image, token, text], the
            patches only, row by row (no class token).
        description: one line for people.
        options: the defaults, a frozen dataclass; `heatmap(..., name=value)` replaces a field of it.
        per_text: whether different texts give different maps (False for attention alone).
        needs: options that have no default: such a method is left out where all methods are drawn side by side.
        alone: each text has a cost of its own, and its map does not depend on the other texts (gradients): who wants one text's
            map of an image asks for that text alone.
        together: a text's map depends on which texts stand beside it, also where nothing is subtracted.
    """

    run: Callable[..., Tensor]
    description: str
    options: Any = NoOptions()
    per_text: bool = True
    needs: tuple[str, ...] = ()
    alone: bool = False
    together: bool = False

    @property
    def contrasts(self) -> bool:
        """Whether something is subtracted from the texts; see `contrast`."""
        return hasattr(self.options, "against")

    def chosen(self, name: str, given: Mapping[str, Any]) -> Any:
        """Replace the defaults of the options that were given.

        Args:
            name: of the method, for the message.
            given: option → value.

        Raises:
            BadSpec: an option that the method does not have, naming those it has; one that it needs; a value it cannot take.
        """
        known = [f.name for f in fields(self.options)]
        if unknown := [key for key in given if key not in known]:
            defaults = ", ".join(f"{key}={getattr(self.options, key)!r}" for key in known) or "none"
            raise BadSpec(f"method {name!r} has no option {unknown[0]!r}. Its options and their defaults: {defaults}")
        for key in (key for key in self.needs if given.get(key) is None):
            raise BadSpec(f"method {name!r} needs {key}. Type: heatmap(..., method={name!r}, {key}=...)")
        hints = get_type_hints(type(self.options))
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}
        for key, value in plain.items():
            if not fits(value, hints[key]):
                fix = "torch.tensor(...)" if key in self.needs else repr(getattr(self.options, key))
                raise BadSpec(
                    f"method {name!r}: {key}={value!r} is a {type(value).__name__}; {expected(hints[key])} was expected. Type: {key}={fix}"
                )
            moderate(key, value)
        return replace(self.options, **plain)


def _dense(name: str, description: str) -> dict[str, Method]:
    return {name: Method(dense_attention.cosines, description, VARIANTS[name])}


_FAMILY: dict[str, Method] = {  # values are cosines of patches, or differences of such cosines
    "surgery": Method(
        clip_surgery.surgery,
        "v–v attention in the last six blocks (CLIP Surgery; against each other: as published)",
        clip_surgery.SurgeryOptions(),
    ),
    "maskclip": Method(
        maskclip.maskclip,
        "values of the last block alone (MaskCLIP as later papers run it: no residual, no MLP)",
        maskclip.MaskclipOptions(),
    ),
    "maskclip_ffn": Method(
        maskclip.maskclip,
        "values of the last block, with residual and MLP (MaskCLIP as published)",
        maskclip.MaskclipOptions(residual=True, ffn=True),
    ),
    **_dense("raw", "cosine of the last patch tokens: plain CLIP, for contrast"),
    **_dense("sclip", "query–query plus key–key attention in the last block (SCLIP)"),
    **_dense("clearclip", "query–query attention, no residual, no MLP (ClearCLIP)"),
    **_dense("naclip", "key–key attention and a Gaussian over neighbours, no residual, no MLP (NACLIP)"),
    **_dense("qq", "query–query attention in the last block, with residual and MLP"),
    **_dense("kk", "key–key attention in the last block, with residual and MLP"),
    **_dense("vv", "value–value attention in the last block, with residual and MLP"),
    **_dense("gem", "repeated self–self attention of q, k and v in the last six blocks (GEM)"),
    "proxyclip": Method(
        proxyclip.proxyclip,
        "values of the last block, mixed by an affinity of patches that you bring (ProxyCLIP)",
        proxyclip.ProxyOptions(),
        needs=("affinity",),
    ),
    "scclip": Method(
        scclip.scclip,
        "outlier tokens repaired, tokens gathered by what earlier blocks found alike (SC-CLIP)",
        scclip.ScclipOptions(),
    ),
    "rfclip": Method(
        rfclip.rfclip,
        "attention moved from distractors to the foreground in every block (RF-CLIP)",
        rfclip.RfclipOptions(),
    ),
    "resclip": Method(
        resclip.resclip,
        "attention of middle blocks mixed in, then bent toward the first answer (ResCLIP)",
        resclip.ResclipOptions(),
        together=True,
    ),
    "pearl": Method(
        pearl.pearl,
        "keys turned onto queries before they are compared (PEARL)",
        pearl.PearlOptions(),
        together=True,
    ),
}

METHODS: dict[str, Method] = {
    "decomposition": Method(
        decomposition,
        "exact share of the cosine that the heads read from each patch",
        DecompositionOptions(),
    ),
    **_FAMILY,
    "attention": Method(
        attention.attention,
        "what the class token looks at in one block, mean over heads; the same for every text",
        attention.AttentionOptions(),
        per_text=False,
    ),
    "rollout": Method(
        attention.rollout,
        "attention multiplied through all blocks; the same for every text",
        attention.RolloutOptions(),
        per_text=False,
    ),
    "gradcam": Method(
        gradients.gradcam,
        "tokens of the last block, weighed by the gradient of the cosine (Grad-CAM)",
        gradients.GradcamOptions(),
        alone=True,
    ),
    "legrad": Method(
        gradients.legrad,
        "gradient of the cosine by attention, all heads and queries, last two blocks (LeGrad)",
        gradients.DepthOptions(layers=2),
        alone=True,
    ),
    "chefer": Method(
        gradients.chefer,
        "attention times the gradient of the logit, class token's row of the last block (Chefer)",
        gradients.DepthOptions(layers=1),
        alone=True,
    ),
    "grad_eclip": Method(
        grad_eclip.grad_eclip,
        "values of the last block, weighed by the gradient of the cosine by the class token's row (Grad-ECLIP)",
        grad_eclip.GradEclipOptions(),
        alone=True,
    ),
}


def _pool(name: str, description: str) -> dict[str, Method]:
    return {name: Method(resnet_maps.cosines, description, resnet_maps.POOL_VARIANTS[name])}


RESNET: dict[str, Method] = {
    "decomposition": Method(
        resnet_maps.decomposition,
        "exact share of the cosine that the heads of the attention pool read from each place",
        DecompositionOptions(),
    ),
    "surgery": Method(
        resnet_maps.surgery,
        "v–v attention in the attention pool (CLIP Surgery; against each other: as published)",
        resnet_maps.PoolSurgeryOptions(),
    ),
    "maskclip": Method(
        resnet_maps.maskclip, "values of the attention pool alone (MaskCLIP)", resnet_maps.PoolMaskclipOptions()
    ),
    **_pool("clearclip", "query–query attention in the attention pool (ClearCLIP)"),
    **_pool("naclip", "key–key attention and a Gaussian over neighbours in the pool (NACLIP)"),
    **_pool("raw", "the attention pool with every place as its query, for contrast"),
    "gradcam": Method(
        resnet_maps.gradcam, "last stage's map, weighed by the gradient of the cosine (Grad-CAM)", alone=True
    ),
    "chefer": Method(resnet_maps.chefer, "attention of the pool times the gradient of the logit (Chefer)", alone=True),
    "neuron_heads": Method(
        neuron_head_maps.neuron_heads_map,
        "where the neurons fire that write the text through heads that read it there (neuron–attention pairs)",
        neuron_head_maps.NeuronHeadOptions(),
    ),
    "attention": Method(resnet_maps.attention, "where the attention pool looked, whatever the text", per_text=False),
}

PLACES: dict[str, Method] = {
    "decomposition": Method(
        decomposition,
        "exact share of the cosine that each place has in their mean, minus the mean over the texts",
        DecompositionOptions(),
    )
}

CUSTOM = "dense attention"  # what maps of a `DenseAttention` of one's own are called
CONTRASTED = frozenset(
    name for name, method in (METHODS | RESNET).items() if method.contrasts
)  # from whose texts something is subtracted
COSINES = frozenset({*_FAMILY, CUSTOM})  # methods of which only differences within a picture mean something


def methods_of(clip: Clip) -> dict[str, Method]:
    """Return the methods that have a meaning on this model: all of them on a transformer, those of RESNET on a CLIP-ResNet."""
    refuse_absent(clip.vision)
    by_kind: dict[str, dict[str, Method]] = {"transformer": METHODS, "resnet": RESNET, "places": PLACES}
    if clip.vision.architecture not in by_kind:
        raise UnsupportedModel(
            f"{clip.name}'s image tower is {KINDS[clip.vision.architecture]}: no place has a share of its own. Type explain or "
            "encode_image, or open another model"
        )
    return by_kind[clip.vision.architecture]


def method_of(clip: Clip, name: str) -> Method:
    """Find one of them by name.

    Raises:
        BadSpec: no such method.
        UnsupportedModel: a method that has no meaning on this model; names those that have.
    """
    known = methods_of(clip)
    if name not in known:
        if name in METHODS or name in RESNET:
            raise UnsupportedModel(
                f"method {name!r} has no meaning on {_NOT_OF[clip.vision.architecture]}. Type one of: {', '.join(known)}"
            )
        raise BadSpec(f"method {name!r} is not known. Type one of: {', '.join(known)}")
    return known[name]


def as_published(clip: Clip, name: "str | DenseAttention") -> dict[str, Any]:
    """Return the option with which papers run a method among classes: each compared with the others, where it compares at all."""
    known = None if isinstance(name, DenseAttention) else methods_of(clip).get(name)
    return {"against": EACH_OTHER} if known is not None and known.contrasts else {}


def dense_method(clip: Clip) -> Method:
    """Return the method that runs a `DenseAttention` of one's own on this model."""
    runs = {"transformer": dense_attention.cosines, "resnet": resnet_maps.cosines}
    if clip.vision.architecture not in runs:
        raise UnsupportedModel(
            f"{clip.name}'s image tower is {KINDS[clip.vision.architecture]}: it has no attention of its own to change. "
            "Type: method='decomposition'"
        )
    run = runs[clip.vision.architecture]
    return Method(run, "a dense attention of your own", DenseAttention())
