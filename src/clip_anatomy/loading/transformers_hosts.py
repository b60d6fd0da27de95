"""Live models of transformers as towers: CLIP, SigLIP and their relatives, both towers or one, and vision transformers without text.

Which class it is says where its embedding comes from; which tensors are there says what its towers are made of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.bert_towers import COUNTED, bert_tower
from clip_anatomy.loading.host import BorrowedTensors, Host, library_version, tensors_of
from clip_anatomy.loading.open_clip_timm import refuse_batch_norm
from clip_anatomy.loading.score_rule import ScoreRule
from clip_anatomy.loading.transformers_towers import blip_image_tower, image_tower, patches_of, text_tower
from clip_anatomy.loading.transformers_vit import APART, vit_tower
from clip_anatomy.towers.absent_tower import beside
from clip_anatomy.towers.host_tower import HostTower, MeanOfPlaces
from clip_anatomy.towers.layers import Linear
from clip_anatomy.towers.protocol import Tower

CLASSES: dict[str, tuple[str, ...]] = {
    "clip": ("CLIPModel",),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "clip_text_model": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "siglip": ("SiglipModel",),
    "siglip_vision_model": ("SiglipVisionModel",),
    "siglip_text_model": ("SiglipTextModel",),
    "siglip2": ("Siglip2Model",),
    "siglip2_vision_model": ("Siglip2VisionModel",),
    "siglip2_text_model": ("Siglip2TextModel",),
    "metaclip_2": ("MetaClip2Model",),
    "metaclip_2_vision_model": ("MetaClip2VisionModel", "MetaClip2VisionModelWithProjection"),
    "metaclip_2_text_model": ("MetaClip2TextModel", "MetaClip2TextModelWithProjection"),
    "clipseg": ("CLIPSegModel",),
    "clipseg_vision_model": ("CLIPSegVisionModel",),
    "clipseg_text_model": ("CLIPSegTextModel",),
    "chinese_clip": ("ChineseCLIPModel",),
    "chinese_clip_vision_model": ("ChineseCLIPVisionModel",),
    "chinese_clip_text_model": ("ChineseCLIPTextModel",),
    "altclip": ("AltCLIPModel",),
    "altclip_vision_model": ("AltCLIPVisionModel",),
    "altclip_text_model": ("AltCLIPTextModel",),
    "align": ("AlignModel",),
    "align_vision_model": ("AlignVisionModel",),
    "align_text_model": ("AlignTextModel",),
    "blip": ("BlipForImageTextRetrieval",),
    "blip_vision_model": ("BlipVisionModel",),
    "blip_text_model": ("BlipTextModel",),
    "dinov2": ("Dinov2Model",),
    "dinov2_with_registers": ("Dinov2WithRegistersModel",),
    "dinov3_vit": ("DINOv3ViTModel",),
    "vit": ("ViTModel",),
}
"""Type of a config → the classes of it that open; the first one where a folder does not say which."""

BERT_LIKE = ("chinese_clip_text_model", "altclip_text_model", "align_text_model", "blip_text_model")
"""Text models with a norm behind every sum."""
VITS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
"""Vision transformers that were trained without texts."""
OF_TOWER = {
    "image": ("vision_model.", "visual_projection.", "vision_proj."),
    "text": ("text_model.", "text_encoder.", "text_projection.", "text_proj."),
}
"""How names of each tower's tensors begin."""
MATCHING = ("itm_head.",)
"""What a BLIP has for pairs of picture and text, which no embedding reads."""


@dataclass(frozen=True)
class HostSide:
    """One tower of a host, and the host's own encoder of it."""

    tower: Tower
    encode: Callable[[Tensor], Tensor]


def read_transformers(model: Any) -> Host:
    """Read a live model of transformers.

    Raises:
        UnsupportedModel: no tower can be read, or a tensor is left over. Where one of two cannot (an activation that is no GELU, a
            tensor that is missing), the other opens, and what needs the first says why it did not.
    """
    what, tensors = type(model).__name__, BorrowedTensors(tensors_of(model))
    configs = tower_configs(model.config)
    sides: dict[str, HostSide] = {}
    failed: dict[str, UnsupportedModel] = {}
    for kind, read in (("image", image_side), ("text", text_side)):
        taken = tensors.taken
        try:
            if kind in configs:
                sides[kind] = read(model, tensors, configs[kind])
        except UnsupportedModel as error:  # the other tower may be fine
            failed[kind] = error
            tensors.give_back(taken)
    if not sides:
        raise next(iter(failed.values()))
    apart = [name for kind in failed for name in OF_TOWER[kind]]
    tensors.refuse_left_over(f"transformers {what}", (*APART, *MATCHING, *apart))
    there = next(iter(sides.values())).tower
    why = " ".join(map(str, failed.values()))
    other = beside(there, what, _instead(model.config.model_type, there), why)
    image, text = (sides.get(kind, HostSide(other, other.encode)) for kind in ("image", "text"))
    return Host(
        library=library_version("transformers"),
        module=model,
        image_tower=image.tower,
        text_tower=text.tower,
        encode_image=image.encode,
        encode_text=text.encode,
        rule=ScoreRule(*(getattr(model, name, None) for name in ("logit_scale", "logit_bias", "temperature"))),
    )


def tower_configs(config: Any) -> dict[str, Any]:
    """Give the config of each tower that a model has, by what it reads."""
    if hasattr(config, "vision_config"):
        return {"image": config.vision_config, "text": config.text_config}
    return {"text" if config.model_type.endswith("text_model") else "image": config}


def context_of(config: Any) -> int:
    """Give the most tokens that a text tower takes; RoBERTa counts its places from behind the id of padding."""
    shift = int(config.pad_token_id) + 1 if config.model_type in COUNTED else 0
    return int(config.max_position_embeddings) - shift


def image_side(model: Any, tensors: BorrowedTensors, config: Any) -> HostSide:
    """Read the image tower, and what the model calls a picture's embedding."""
    kind = config.model_type
    if kind == "align_vision_model":
        return _align_image(model, tensors, config)
    if kind in VITS:
        return HostSide(vit_tower(tensors, config), lambda pixels: model(pixels).last_hidden_state[:, 0])
    if kind == "blip_vision_model":
        vision, project = getattr(model, "vision_model", model), getattr(model, "vision_proj", None)
        tower = blip_image_tower(tensors, config)
        return HostSide(tower, lambda pixels: _first(vision(pixel_values=pixels), project))
    tower = image_tower(tensors, config)
    naflex = kind == "siglip2_vision_model"

    def encode(pixels: Tensor) -> Tensor:
        sized = pixels if naflex else _own_size(pixels, config)
        given = patches_of(pixels, tower.patch[0], int(config.num_patches)) if naflex else {"pixel_values": sized}
        features = getattr(model, "get_image_features", model)
        return _embedding(features(**given))

    return HostSide(tower, encode)


def text_side(model: Any, tensors: BorrowedTensors, config: Any) -> HostSide:
    """Read the text tower, and what the model calls a text's embedding."""
    if config.model_type in BERT_LIKE:
        return _bert_like(model, tensors, config)
    features = getattr(model, "get_text_features", model)
    return HostSide(text_tower(tensors, config), lambda ids: _embedding(features(input_ids=ids)))


def _bert_like(model: Any, tensors: BorrowedTensors, config: Any) -> HostSide:
    """Read a BERT-like text model; its library runs it behind a mask over its padding, as its own tokenizer makes one."""
    kind, pad = config.model_type, int(config.pad_token_id)
    inner, project = getattr(model, "text_encoder", model), getattr(model, "text_proj", None)

    def run(ids: Tensor) -> Tensor:
        given = {"input_ids": ids, "attention_mask": (ids != pad).long()}
        if hasattr(model, "get_text_features"):
            return _embedding(model.get_text_features(**given))
        output = inner(**given)
        return output.pooler_output if kind == "altclip_text_model" else _first(output, project)

    words = "embeddings.word_embeddings.weight"
    prefix = next((name.removesuffix(words) for name in tensors if name.endswith(words)), "")
    ends = [f"{prefix.removesuffix('roberta.')}transformation", "text_projection", "text_proj"]
    tower = bert_tower(
        tensors,
        config,
        prefix=prefix,
        context=context_of(config),
        pool="first",
        ends=[tensors.linear(end) for end in ends if f"{end}.weight" in tensors],
    )
    return HostSide(tower, run)


def _align_image(model: Any, tensors: BorrowedTensors, config: Any) -> HostSide:
    """Split ALIGN's EfficientNet at the mean of its places: behind it there is nothing more."""
    vision = getattr(model, "vision_model", model)
    refuse_batch_norm(vision)
    if config.pooling_type != "mean":
        raise UnsupportedModel(f"found an image tower that pools its places by {config.pooling_type!r}, not by a mean")
    state = tuple(tensors.take(name) for name in tensors if vision is model or name.startswith("vision_model."))

    def places(pixels: Tensor) -> Tensor:
        return vision(pixel_values=pixels).last_hidden_state

    side, first = int(config.image_size), next(one for one in state if one.is_floating_point())
    with torch.no_grad():
        features = places(torch.zeros(1, 3, side, side, dtype=first.dtype, device=first.device))
    _, width, rows, cols = features.shape
    tower = HostTower(
        what="AlignVisionModel",
        kind="image",
        run=places,
        state=state,
        embed=width,
        grid=(rows, cols),
        patch=(side // rows, side // cols),
        blocks=(MeanOfPlaces(Linear(torch.eye(width, dtype=first.dtype, device=first.device), None)),),
    )
    return HostSide(tower, lambda pixels: vision(pixel_values=pixels).pooler_output)


def _instead(kind: str, tower: Tower) -> str:
    if kind in VITS:
        return (
            "clip-anatomy check MODEL for what it is; a CLIP for what needs texts, e.g. hf:openai/clip-vit-base-patch32"
        )
    if tower.kind == "image":
        return f"the whole model that it was taken from, or pass embeddings [text, {tower.embed}] of its text model instead of words"
    return "the whole model that it was taken from"


def _own_size(pixels: Tensor, config: Any) -> Tensor:
    """Give pictures back the pixels that no patch covers: transformers asks for its own size, then cuts them off."""
    side, patch = int(config.image_size), int(config.patch_size)
    missing = [side - length if side // patch == length // patch else 0 for length in pixels.shape[-2:]]
    return torch.nn.functional.pad(pixels, (0, missing[1], 0, missing[0])) if any(missing) else pixels


def _first(output: Any, project: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Take the first token of what a model returns, through its projection."""
    first = output.last_hidden_state[:, 0]
    return first if project is None else project(first)


def _embedding(features: Any) -> Tensor:
    """Take the embedding from what transformers returns: a tensor in version 4, or an object that holds it under one of these names."""
    if isinstance(features, Tensor):
        return features
    names = ("image_embeds", "text_embeds", "pooler_output")
    return next(one for one in (getattr(features, name, None) for name in names) if one is not None)
