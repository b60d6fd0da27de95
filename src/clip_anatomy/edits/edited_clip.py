"""`EditedClip`: the encoder that an `Edit` makes of a model, usable wherever the model was."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.replacement import embedding_change
from clip_anatomy.edits.rerun import direct_only, rerun_frame, rerun_tower
from clip_anatomy.edits.selection_parser import POOL
from clip_anatomy.edits.standalone_encoder import SCHEMA, EditedModel
from clip_anatomy.errors import BadImage, BadText, UnsupportedModel
from clip_anatomy.loading.clip import BATCH, Clip
from clip_anatomy.loading.live_models import read_host
from clip_anatomy.loading.tokenizer import average_each, check_texts, fill_templates
from clip_anatomy.public_functions import public
from clip_anatomy.split.layernorm import pull_back
from clip_anatomy.split.tokens import head_directions
from clip_anatomy.towers.layers import Stem, TransformerWeights
from clip_anatomy.towers.protocol import KINDS
from clip_anatomy.towers.transformer import Transformer, as_transformer

__all__ = ["EditedClip", "pack"]


class EditedClip(EditedModel):
    """A drop-in encoder: open_clip's `encode_image`, `encode_text`, `forward`, `logit_scale`; transformers' `get_image_features`.

    The weights are borrowed. The user's model object is never changed: `.to(...)`, `.half()` and `load_state_dict` make or take
    new tensors. The price is that of the forward: what the edited heads computed is read where the forward computes it anyway.

    The embeddings are in units of the unedited ones: contributions are divided by ‖embedding‖, replaced by means of such, and
    scaled back by the image's own ‖embedding‖.

    Args:
        clip: the model.
        edit: what to replace; an empty one gives the model's own embeddings.

    Raises:
        BadInput: the edit was made for another model.
        UnsupportedModel: a CLIP-ResNet, or a tower that its own library runs.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> clip = ca.load("demo")
        >>> edited = EditedClip(clip, Edit.of(clip, "7.0,7.1", by="zero"))
        >>> edited.encode_image(clip.pixels(examples()[:2]), normalize=True).shape
        torch.Size([2, 128])
    """

    refusal = (BadImage, BadText)

    @public
    def __init__(self, clip: Clip, edit: Edit) -> None:
        """Borrow the weights and prepare the maps of what is replaced."""
        edit.check(clip)
        if clip.vision.architecture != "transformer":
            raise UnsupportedModel(
                f"the image tower of {clip.name} is {KINDS[clip.vision.architecture]}; the edited encoder needs a transformer. "
                "Type edit.apply(decompose(clip, images)), which gives the same embeddings"
            )
        config, tensors = pack(clip, edit)
        super().__init__(config, tensors)
        self.clip, self.edit = clip, edit  # plain data: a module that it holds is not registered, and so never moved
        self._lent = list(self.image_tower.buffers())
        self.eval()

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Preprocessed pixels [image, 3, row, col] → edited embeddings [image, embed], in the model's dtype.

        Raises:
            BadImage: another shape, or smaller than a patch.
        """
        self.refuse_odd(image)
        own = not self.edit and self._unmoved() and self._fits(image)
        y = self._unedited(image) if own else self._edited(image)
        return F.normalize(y, dim=-1) if normalize else y

    @public
    def embed_texts(self, texts: Sequence[str], templates: Sequence[str] | None = None) -> Float[Tensor, "text embed"]:
        """Embed texts as typed, each alone or as the mean of its prompts: `Clip.encode_text` of the edited text tower."""
        if self.replaced_text is None:
            return self.clip.encode_text(texts, templates)
        if templates is not None:
            return self.embed_prompts([fill_templates(one, templates) for one in check_texts(texts)])
        return torch.cat([self.encode_text(some) for some in self.clip.ids(check_texts(texts)).split(BATCH)]).float()

    @public
    def embed_prompts(self, prompts: Sequence[Sequence[str]]) -> Float[Tensor, "text embed"]:
        """Embed each class as the mean of its prompts' unit embeddings, made unit again."""
        return average_each(self.embed_texts([text for some in prompts for text in some]), prompts)

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> Any:
        """`encode_image` in the form of the user's transformers: a tensor until version 4, since 5 an object with `pooler_output`."""
        return self._as_host(self.encode_image(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """`encode_text` likewise. Padding stands behind the row that is read, where it cannot be seen: the mask is not needed."""
        return self._as_host(self.encode_text(input_ids))

    def _unmoved(self) -> bool:
        """Tell whether the weights still are those that were borrowed, not turned to another device or precision nor loaded anew."""
        return all(mine is lent for mine, lent in zip(self.image_tower.buffers(), self._lent, strict=True))

    def _fits(self, image: Tensor) -> bool:
        """Tell whether the pictures have the size that the host library takes: at any other, it fails or places patches wrongly."""
        tower = self.clip.image_tower
        return tuple(image.shape[-2:]) == tuple(n * side for n, side in zip(tower.grid, tower.patch, strict=True))

    def _unedited(self, image: Tensor) -> Tensor:
        """Return the host library's own embeddings, to the last bit, where there is a host."""
        if self.clip.host is None:
            return self.image_tower(image)
        return read_host(self.clip.host).encode_image(image.to(self.image_tower.get_buffer("embedding.weight").dtype))

    def _as_host(self, y: Tensor) -> Any:
        module = sys.modules.get(type(self.clip.host).__module__)
        package = sys.modules.get("transformers")
        output = getattr(module, "BaseModelOutputWithPooling", None)
        if package is None or output is None or int(package.__version__.split(".")[0]) < 5:
            return y
        return output(pooler_output=y)


def pack(clip: Clip, edit: Edit) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of the edited model, as `EditedModel` takes them and `export` writes them. Nothing is copied."""
    tensors = {"logit_scale": torch.tensor(clip.logit_scale, device=clip.device).log()}
    towers: dict[str, Any] = {}
    edited = rerun_tower(clip.image_tower, edit.replacements)  # those of the text tower never are
    for kind, tower in (("image", edited), ("text", as_transformer(clip.text_tower))):
        own: dict[str, Tensor] = {}
        towers[kind] = _described(tower, "", own)
        tensors |= {f"{kind}_tower.{name}": tensor for name, tensor in own.items()}
    if clip.logit_bias is not None:
        tensors["logit_bias"] = torch.tensor(clip.logit_bias, device=clip.device)
    if (frame := rerun_frame(edit.replacements)) is not None:
        tensors["felt_along"] = frame.to(clip.device)
    wide = torch.promote_types(clip.image_tower.dtype, torch.float32)
    parts: dict[str, Any] = {}
    for name, kind, tower in (("replaced", "image", clip.image_tower), ("replaced_text", "text", clip.text_tower)):
        if edit.tower != kind and kind == "text":
            continue
        direct = direct_only(edit.replacements) if edit.tower == kind else ()
        maps, constant, parts[name] = _replacement(as_transformer(tower), replace(edit, replacements=direct))
        tensors[f"{name}.maps"] = maps.to(clip.device, wide)
        tensors[f"{name}.constant"] = constant.to(clip.device, wide)
    config = {
        "schema": SCHEMA,
        "model": {"name": edit.model, "digest": edit.digest},
        "replacements": edit.descriptions,
        "preprocess": clip.preprocess.to_dict(),
        "edit": parts["replaced"],
        **({"edit_text": parts["replaced_text"]} if "replaced_text" in parts else {}),
        "image": towers["image"],
        "text": towers["text"],
    }
    return config, tensors


def _described(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Say in plain values what a tower is, as `rebuilt` reads it; its tensors are put beside by the paths of their fields."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Stem):
        raise UnsupportedModel(
            "this model's patches are made by convolutions of its own library, which no file of ours holds. Type "
            "edit.apply(decompose(clip, images)), which gives the same embeddings"
        )
    if isinstance(value, tuple):
        return [_described(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    fused = ("query", "key", "value") if getattr(value, "qkv", None) is not None else ()
    known = fields(TransformerWeights if isinstance(value, TransformerWeights) else value)
    kind = "TransformerWeights" if isinstance(value, TransformerWeights) else type(value).__name__
    there = (f.name for f in known if f.name not in fused)
    return {"is": kind, **{n: _described(getattr(value, n), f"{name}.{n}".lstrip("."), tensors) for n in there}}


def _replacement(
    tower: Transformer, edit: Edit
) -> tuple[Float[Tensor, "source embed"], Float[Tensor, " embed"], dict[str, Any]]:
    """Build the maps from what the replaced heads compute to what is taken out, the constant that is put in, and which parts those are.

    The order of the rows is that in which the forward computes: per layer the replaced heads, then class-to-class attention.
    """
    per_head = {(one.layer, one.head): one for one in edit.replacements if one.kind == "head"}
    class_to_class = {one.layer: one for one in edit.replacements if one.kind == "class-to-class"}
    rows: list[Tensor] = []
    with torch.no_grad():
        back = pull_back(tower, torch.eye(tower.embed, dtype=torch.float64, device=tower.device), "centered")
    for layer in range(tower.layers):
        heads = [head for other, head in per_head if other == layer]
        if not heads and layer not in class_to_class:
            continue
        writes = head_directions(tower, layer, back).cpu().double()  # [head, source, embed]
        rows += [per_head[layer, head].replaced_part(writes[head]) for head in heads]
        if layer in class_to_class:
            whole = [
                per_head.get((layer, head)) for head in range(tower.heads)
            ]  # what is replaced with its head already
            rows += [x if one is None else x - one.replaced_part(x) for one, x in zip(whole, writes, strict=True)]
    constant = torch.zeros(tower.embed, dtype=torch.float64)
    if edit:  # what the replacements add to an image whose parts all wrote nothing
        nothing = {"class-to-class": torch.zeros(tower.heads, tower.embed, dtype=torch.float64)}
        constant = embedding_change(edit.replacements, lambda one: nothing.get(one.kind, constant))
    selection = edit.parts
    parts: Mapping[str, Any] = {
        "heads": {str(layer): [h for at, h in selection.heads if at == layer] for layer, _ in selection.heads},
        "mlps": [layer for layer in selection.mlps if layer != POOL],
        "pool-mlp": POOL in selection.mlps,
        "class_to_class": list(selection.class_to_class),
        "input-embedding": selection.input_embedding,
        "puts": bool(constant.any()),
    }
    # [source, embed] each, source = (row, d): together (row, all heads' d), as the forward lays them side by side
    each = [one.unflatten(0, (tower.rows, -1)) for one in rows]
    maps = torch.cat(each, 1).flatten(0, 1) if each else torch.zeros(0, tower.embed, dtype=torch.float64)
    return maps, constant, dict(parts)
