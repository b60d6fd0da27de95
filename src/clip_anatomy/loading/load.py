"""`load`: from a spec, a path or a live model to a `Clip` that proved itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clip_anatomy.errors import BadCheckpoint, BadSpec
from clip_anatomy.files import path_of
from clip_anatomy.images.pixels import Preprocess
from clip_anatomy.loading import model_sources as sources
from clip_anatomy.loading.checkpoint import check_finite
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.host import Host, read_host, tensors_of
from clip_anatomy.loading.loaded_model import LoadedModel
from clip_anatomy.loading.open_clip_models import open_clip_named
from clip_anatomy.loading.parity import Proof, prove
from clip_anatomy.loading.tokenizer import Tokenizer
from clip_anatomy.loading.transformers_models import transformers_named

FORMS = (
    "demo | open_clip:NAME/TAG | open_clip:NAME (with weights=FILE) | hf:ORG/NAME | a folder or file saved by open_clip or "
    "transformers | a live model object"
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}

ModelSource = str | Path | nn.Module
"""What `load` opens: a spec, a path, or a live model."""


def as_clip(model: Clip | ModelSource) -> Clip:
    """Return an opened model as it is; open anything else as `load` does by default."""
    return model if isinstance(model, Clip) else load(model)


def load(
    spec: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    tokenizer: Any = None,
    preprocess: Preprocess | None = None,
    parity: bool = True,
) -> Clip:
    """Open a CLIP and prove that it was opened exactly.

    Args:
        spec: "demo" (the small model in this package); "open_clip:NAME/TAG" or "open_clip:NAME" with `weights`;
            "hf:ORG/NAME"; a folder or file in open_clip's, transformers' or OpenAI's saved format; or a live open_clip or
            transformers model (then nothing is copied or changed, and `device` and `dtype` stay the model's own).
        weights: a checkpoint file for "open_clip:NAME".
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32", "float16", "bfloat16" or "float64"; parts are summed in float32 whatever it is.
        tokenizer: for models that came without one: texts → ids [text, token].
        preprocess: instead of the model's own.
        parity: compare with the host library on a random image and text (about two forwards).

    Returns:
        Clip.

    Raises:
        BadSpec: the spec, device or dtype is not known.
        MissingExtra: the library it needs is not installed.
        UnsupportedModel: an architecture that the linear split does not cover.
        BadCheckpoint: a file that does not hold these weights, or OpenAI weights under a GELU config.
        ParityError: ours and the host's embeddings differ by more than float error.

    Example:
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> clip.proof.holds
        True
    """
    if dtype not in DTYPES:
        raise BadSpec(f"dtype {dtype!r} is not known. Type one of: {', '.join(DTYPES)}")
    if isinstance(spec, nn.Module):
        host = read_host(spec)
        check_finite(tensors_of(spec), f"the live {host.library} model")
        opened = sources.live(spec, tokenizer)
        return _clip(type(spec).__name__, host, opened.tokenizer, preprocess or opened.preprocess, parity)
    where = device_of(device)
    name = str(spec)
    if name == "demo":
        from clip_anatomy.loading.demo import load_demo

        return load_demo(where, DTYPES[dtype], parity=parity)
    opened = _open(name, weights)
    if opened.module is None:
        raise BadSpec(f"{name!r} did not open a model. Type one of: {FORMS}")
    module = opened.module.to(device=where, dtype=DTYPES[dtype]).eval()
    check_finite(tensors_of(module), name)
    return _clip(name, read_host(module), tokenizer or opened.tokenizer, preprocess or opened.preprocess, parity)


def _open(name: str, weights: str | Path | None) -> LoadedModel:
    scheme, _, rest = name.partition(":")
    routes: dict[str, Callable[[], LoadedModel]] = {
        "open_clip": lambda: open_clip_named(rest, None if weights is None else Path(weights)),
        "hf": lambda: transformers_named(rest),
    }
    if scheme in routes and rest:
        if weights is not None and scheme != "open_clip":
            raise BadSpec(f"weights= goes with 'open_clip:NAME', not with {name!r}.")
        return routes[scheme]()
    path = path_of(name)
    if path.is_dir():
        return sources.folder(path)
    if path.is_file():
        return sources.file(path)
    if path.suffix in {".pt", ".pth", ".bin", ".safetensors"} or len(path.parts) > 1:
        raise BadCheckpoint(f"there is no file or folder {name!r}. Type one of: {FORMS}")
    raise BadSpec(f"model {name!r} is not known. Type one of: {FORMS}")


def device_of(device: str) -> torch.device:
    """The device that a name means; "auto" takes a GPU if there is one. Raises BadSpec where there is no such device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as e:
        raise BadSpec(f"device {device!r} is not known. Type one of: auto, cpu, cuda, cuda:1, mps") from e
    if where.type == "cuda" and not torch.cuda.is_available():
        raise BadSpec(f"device {device!r} was asked for, but torch finds no CUDA GPU here. Type: device='cpu'")
    if where.type == "mps" and not torch.backends.mps.is_available():
        raise BadSpec(f"device {device!r} was asked for, but torch finds no Apple GPU here. Type: device='cpu'")
    return where


def _clip(name: str, host: Host, tokenizer: Tokenizer | None, preprocess: Preprocess, parity: bool) -> Clip:
    proof: Proof | None = None
    if parity:
        proof = prove(host.image_tower, host.text_tower, host.encode_image, host.encode_text, against=host.library)
    return Clip(
        name=name,
        vision=host.image_tower,
        text_tower=host.text_tower,
        preprocess=preprocess,
        tokenizer=tokenizer,
        logit_scale=host.logit_scale,
        logit_bias=host.logit_bias,
        proof=proof,
        host=host.module,
    )
