"""`load`: from a spec, a path or a live model to a `Clip` that proved itself."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import patch_grid, pixels_of_grid
from clip_anatomy.images.pixels import Preprocess
from clip_anatomy.loading.checkpoint import check_finite
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.host import Host, LoadedModel, tensors_of
from clip_anatomy.loading.input_parity import with_inputs
from clip_anatomy.loading.live_models import check_weights, read_host, refuse_dropout, unwrapped
from clip_anatomy.loading.model_origin import Origin
from clip_anatomy.loading.model_sources import live_model, model_from
from clip_anatomy.loading.parity import prove
from clip_anatomy.loading.tokenizer import own_tokenizer
from clip_anatomy.network import named_by_a_file
from clip_anatomy.public_functions import public
from clip_anatomy.run_record import opened
from clip_anatomy.towers.protocol import Tower

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}

ModelSource = str | Path | nn.Module
"""What `load` opens: a spec, a path, or a live model."""


def as_clip(model: Clip | ModelSource, device: str = "auto") -> Clip:
    """Return an opened model as it is; open anything else as `load` does by default."""
    return model if isinstance(model, Clip) else load(model, device=device)


def load_recorded(given: str | Path | None, recorded: str, **options: Any) -> Clip:
    """Open a model as `load` does; one that a store or an edit names, and no person, is not fetched unasked.

    Args:
        given: what a person typed, or None.
        recorded: what the store or the edit names.
        **options: of `load`.
    """
    if given is not None:
        return load(given, **options)
    with named_by_a_file():
        return load(recorded, **options)


@public
def load(
    spec: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    tokenizer: Callable[[list[str]], Any] | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    parity: bool = True,
) -> Clip:
    """Open a CLIP and prove that it was opened exactly.

    Args:
        spec: "demo" (the small model in this package); "open_clip:NAME/TAG", or "open_clip:NAME" with `weights`;
            "open_clip:hf-hub:ORG/NAME"; "hf:ORG/NAME"; a folder or file in open_clip's, transformers' or OpenAI's saved format; or a live open_clip,
            transformers or timm model, or a tower of one alone (then nothing is copied or changed, and `device` and `dtype` stay the model's own).
        weights: a checkpoint file for "open_clip:NAME", or for "open_clip:NAME/TAG", whose published preprocessing it then keeps.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32", "float16", "bfloat16" or "float64"; parts are summed in float32 whatever it is.
        tokenizer: for models that came without one: texts → ids [text, token].
        preprocess: instead of the model's own: a `Preprocess`, or its fields as a mapping.
        parity: compare with the host library on a random image and texts, in double precision and in the model's own (about
            eight forwards).

    Returns:
        Clip.

    Raises:
        BadSpec: the spec, device or dtype is not known.
        MissingExtra: the library it needs is not installed.
        UnsupportedModel: an architecture that the linear split does not cover.
        BadCheckpoint: a file that does not hold these weights, or OpenAI weights under a GELU config.
        ParityError: ours and the host's embeddings differ by more than rounding.

    Example:
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> clip.proof.holds
        True
    """
    if dtype not in DTYPES:
        raise BadSpec(f"dtype {dtype!r} is not known. Type one of: {', '.join(DTYPES)}")
    refuse_stray_weights(spec, weights)
    own = Preprocess.from_dict(preprocess) if isinstance(preprocess, Mapping) else preprocess
    if isinstance(spec, nn.Module):
        return opened(_opened(unwrapped(spec), tokenizer, own, parity))
    place = device_of(device)
    name = str(spec)
    if name == "demo":
        if tokenizer is not None or preprocess is not None:
            raise BadSpec("the bundled model has its own tokenizer and preprocessing. Type: load('demo')")
        from clip_anatomy.loading.demo import load_demo

        return opened(load_demo(place, DTYPES[dtype], parity=parity))
    loaded = model_from(name, weights)
    module = loaded.module.to(device=place, dtype=DTYPES[dtype]).eval()
    check_finite(tensors_of(module), name)
    host = read_host(module)
    if tokenizer is not None:
        words = own_tokenizer(tokenizer, host.text_tower.grid[1])
        loaded = replace(loaded, tokenizer=words, inputs=replace(loaded.inputs, ids=None))
    return opened(replace(_clip(name, host, loaded, own, parity), origin=Origin.of(name, weights)))


def refuse_stray_weights(spec: "str | Path | nn.Module | Clip", weights: str | Path | None) -> None:
    """Raise BadSpec where a checkpoint is given with a model that has weights of its own, so that it is never left unused in silence."""
    if weights is not None and (isinstance(spec, Clip) or not str(spec).startswith("open_clip:")):
        given = f"a live {type(spec).__name__}" if isinstance(spec, nn.Module | Clip) else repr(str(spec))
        raise BadSpec(
            f"weights={str(weights)!r} goes with open_clip:NAME, not with {given}. Type: open_clip:NAME, or leave weights out"
        )


def _opened(module: nn.Module, tokenizer: Any, preprocess: Preprocess | None, parity: bool) -> Clip:
    """Open a live model, once nothing of its state would make the proof compare something else than its weights."""
    check_weights(module, f"the live {type(module).__name__}")
    host = read_host(module)
    refuse_dropout(module)
    check_finite(tensors_of(module), f"the live {host.library} model")
    return _clip(type(module).__name__, host, live_model(module, tokenizer), preprocess, parity)


def device_of(device: str) -> torch.device:
    """Find the device that a name means; "auto" takes a GPU if there is one.

    Raises:
        BadSpec: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as e:
        raise BadSpec(f"device {device!r} is not known. Type one of: auto, cpu, cuda, cuda:1, mps") from e
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BadSpec(f"device {device!r} was asked for, but torch finds no CUDA GPU here. Type: device='cpu'")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise BadSpec(f"device {device!r} was asked for, but torch finds no Apple GPU here. Type: device='cpu'")
    return place


def _clip(name: str, host: Host, loaded: LoadedModel, preprocess: Preprocess | None, parity: bool) -> Clip:
    """Put an opened model together; `preprocess` is the user's own, which is not compared with the host's."""
    if preprocess is not None:
        loaded = replace(loaded, preprocess=preprocess, inputs=replace(loaded.inputs, pixels=None))
    if host.text_tower.architecture == "absent":
        loaded = replace(loaded, tokenizer=None)  # nothing reads its ids
    proof = None
    if parity:
        towers, encoders = (host.image_tower, host.text_tower), (host.encode_image, host.encode_text)
        proof = prove(*towers, *encoders, against=host.library, exactly=host.exact)
        proof = with_inputs(proof, loaded, host.text_tower)
    return Clip(
        name=name,
        vision=host.image_tower,
        text_tower=host.text_tower,
        preprocess=_cut_to_patches(loaded.preprocess, host.image_tower),
        tokenizer=loaded.tokenizer,
        rule=host.rule,
        proof=proof,
        host=host.module,
    )


def _cut_to_patches(preprocess: Preprocess, tower: Tower) -> Preprocess:
    """Leave out the pixels at the end that no patch covers, where the model's size is no multiple of its patch."""
    covered = pixels_of_grid(patch_grid(preprocess.size, tower.patch), tower.patch)
    cuts = covered != preprocess.size and min(covered) > 0 and tower.architecture == "transformer"
    return replace(preprocess, cut=covered) if cuts else preprocess
