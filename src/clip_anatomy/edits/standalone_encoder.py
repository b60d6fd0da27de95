"""A CLIP with parts of its image tower replaced, in one file: it needs torch, and safetensors to read its weights; nothing else.

This file is a part of clip-anatomy, and `clip-anatomy export` writes it beside the weights. Used from there:

    from edited_clip import load
    model = load(".")
    model.encode_image(pixels)                  # [image, embed], not normalised, as open_clip
    model.encode_both(pixels)                   # without and with the edit, from one forward
    model.get_image_features(pixel_values=…)    # the same, as transformers

It replaces direct effects (Gandelsman, Efros, Steinhardt, ICLR 2024, §3.2): with the last LayerNorm frozen at the image's own
statistics, the embedding is a sum of what each part wrote. The chosen parts' terms are taken out and constants are put in, so that
only rows of z = Σ_token a·v that the forward computes anyway are read: the price is one small matrix product.

Weights are buffers: `.to(...)` makes new tensors, so a live model whose weights are borrowed here is never moved or changed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_anatomy.towers.forward import (
    Readout,
    Step,
    embed_inputs,
    embed_readout,
    encode,
    linear,
    readout_attention,
    readout_of,
    walk,
)
from clip_anatomy.towers.layers import (
    Block,
    Linear,
    Norm,
    PatchEmbedding,
    TransformerWeights,
    WordEmbedding,
    split_qkv,
)

SCHEMA = "clip-anatomy/edited-model/1"
CONFIG, WEIGHTS, CHECK = "config.json", "weights.safetensors", "check.safetensors"


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below a prefix, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def read_weights(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TransformerWeights:
    """Lay out a tower's named tensors as the forward takes them; the names are the paths of the fields."""
    eps = float(config["eps"])

    def affine(name: str) -> Linear:
        return Linear(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm_named(name: str) -> Norm:
        return Norm(tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    def block(p: str) -> Block:
        qkv = affine(f"{p}.qkv") if f"{p}.qkv.weight" in tensors else None
        query, key, value = split_qkv(qkv) if qkv else (affine(f"{p}.{name}") for name in ("query", "key", "value"))
        return Block(
            ln1=norm_named(f"{p}.ln1"),
            query=query,
            key=key,
            value=value,
            qkv=qkv,
            out=affine(f"{p}.out"),
            ln2=norm_named(f"{p}.ln2"),
            up=affine(f"{p}.up"),
            down=affine(f"{p}.down"),
            scale_attention=tensors.get(f"{p}.scale_attention"),
            scale_mlp=tensors.get(f"{p}.scale_mlp"),
        )

    weight, position = tensors["embedding.weight"], tensors["embedding.position"]
    if config["grid"] is None:
        embedding = WordEmbedding(weight, position)
    else:
        rows, cols = config["grid"]
        embedding = PatchEmbedding(
            weight, tensors["embedding.class_token"], position, (rows, cols), config["resampling"]
        )
    return TransformerWeights(
        embedding=embedding,
        ln_pre=norm_named("ln_pre") if "ln_pre.weight" in tensors else None,
        blocks=tuple(block(f"blocks.{i}") for i in range(config["layers"])),
        ln_post=norm_named("ln_post"),
        projection=tensors["projection"],
        projection_bias=tensors.get("projection_bias"),
        heads=config["heads"],
        activation=config["activation"],
        pool=config["pool"],
        pool_before_norm=config["pool_before_norm"],
        causal=config["causal"],
        eos=config["eos"],
    )


class HeldTower(nn.Module):
    """A tower whose tensors are buffers: `.to(...)`, `state_dict` and `load_state_dict` work as on any module."""

    projection: Tensor

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take the tower's facts and tensors."""
        super().__init__()
        self.config = dict(config)
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for step in path:
                if step not in dict(module.named_children()):
                    module.add_module(step, nn.Module())
                module = module.get_submodule(step)
            module.register_buffer(last, tensor)

    def weights(self) -> TransformerWeights:
        """Return the tensors as the forward takes them."""
        return read_weights(self.config, dict(self.named_buffers()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings [*, embed], not edited."""
        return encode(self.weights(), inputs)


class ReplacedParts(nn.Module):
    """Which parts are taken out, and what is put in: linear maps of what they computed, and one constant."""

    maps: Tensor
    constant: Tensor

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take the parts, `maps` [what they computed, embed] and `constant` [embed]."""
        super().__init__()
        self.heads = {int(layer): list(heads) for layer, heads in config["heads"].items()}
        self.class_to_class, self.mlps = set(config["class_to_class"]), set(config["mlps"])
        self.input_embedding, self.puts = bool(config["input-embedding"]), bool(config["puts"])
        self.register_buffer("maps", tensors["maps"])
        self.register_buffer("constant", tensors["constant"])

    def encode_both(self, tower: TransformerWeights, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings [image, embed] without and with the replacement, from one forward."""
        x = embed_inputs(tower, inputs)
        readout = readout_of(tower, inputs, x.shape[1])
        # Where every row is normalised before the rows are averaged, what each row holds is weighed at the end.
        late = readout.index is None and not tower.pool_before_norm
        rows = Readout() if late else readout
        written = rows.rows(x) if self.input_embedding else None
        mixed: list[Tensor] = []
        stream, after = rows.rows(x), None
        for step in walk(tower, x, rows):
            if step.layer in self.heads:
                mixed.append(step.mixed[..., self.heads[step.layer], :].flatten(-2))
            if step.layer in self.class_to_class:
                mixed.append(_read_from_itself(tower, step, readout))
            if step.layer in self.mlps:
                written = step.mlp if written is None else written + step.mlp
            stream, after = step.readout, step.after
            del step  # as in `record`: while the next block runs, nothing of this one is kept but what is wanted
        y = embed_readout(tower, stream, after, readout)
        if not mixed and written is None and not self.puts:
            return y, y
        wide = torch.promote_types(y.dtype, torch.float32)
        stream = stream.to(wide)
        spread = (stream - stream.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        scale = (spread + tower.ln_post.eps).rsqrt()  # the last LayerNorm's 1/σ, frozen

        def scaled(part: Tensor) -> Tensor:
            part = part.to(wide) * scale
            return part[:, 1:].mean(1) if late else part

        gone = torch.zeros_like(y, dtype=wide)
        if mixed:
            gone = gone + scaled(torch.cat(mixed, -1)) @ self.maps.to(wide)
        if written is not None:
            part = scaled(written)
            part = (part - part.mean(-1, keepdim=True)) * tower.ln_post.weight.to(wide)
            gone = gone + part @ tower.projection.to(wide)
        full = y.to(wide)
        return y, (full - gone + full.norm(dim=-1, keepdim=True) * self.constant.to(wide)).to(y.dtype)


def _read_from_itself(tower: TransformerWeights, step: Step, readout: Readout) -> Tensor:
    """Return what the class token of every head read from itself: [image, head · d]."""
    attention = readout_attention(tower, step, readout)[:, :, :1]
    if step.value is not None:
        value = step.value[:, :, 0]
    else:
        value = linear(tower.blocks[step.layer].value, step.normed[:, 0]).unflatten(1, (tower.heads, tower.d))
    return (attention.to(value.dtype) * value).flatten(1)


class EditedModel(nn.Module):
    """A drop-in encoder: the names of open_clip's CLIP, and `get_image_features` / `get_text_features` of transformers'."""

    logit_scale: Tensor
    logit_bias: Tensor | None
    refusal: type[ValueError] = ValueError  # what is raised for pixels that are none

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take what `export` wrote."""
        super().__init__()
        self.config = dict(config)
        self.image_tower = HeldTower(config["image"], under(tensors, "image_tower"))
        self.text_tower = HeldTower(config["text"], under(tensors, "text_tower"))
        self.replaced = ReplacedParts(config["edit"], under(tensors, "replaced"))
        self.register_buffer("logit_scale", tensors["logit_scale"])  # its logarithm, as in both libraries
        self.register_buffer("logit_bias", tensors.get("logit_bias"))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Preprocessed pixels [image, 3, row, col] → edited embeddings [image, embed]."""
        y = self.encode_both(image)[1]
        return F.normalize(y, dim=-1) if normalize else y

    def encode_both(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images [image, embed] without and with the edit, from one forward."""
        self.refuse_odd(image)
        return self.replaced.encode_both(self.image_tower.weights(), image)

    def refuse_odd(self, image: Tensor) -> None:
        """Raise for what is no batch of pixels, or smaller than a patch."""
        row, col = self.image_tower.get_buffer("embedding.weight").shape[2:]
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] < row or image.shape[3] < col:
            expected = f"[image, 3, row, col] of at least {row} x {col} was expected. Type pixels[None] for one image"
            raise self.refusal(f"pixels are {list(image.shape)}; {expected}")

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Token ids [text, token] → embeddings [text, embed]; the text tower is not edited."""
        y = self.text_tower(text)
        return F.normalize(y, dim=-1) if normalize else y

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> Any:
        """`encode_image` under the name that transformers gives it."""
        return self.encode_image(pixel_values)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """`encode_text` likewise. Padding stands behind the row that is read, where it cannot be seen: the mask is not needed."""
        return self.encode_text(input_ids)

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits [image, text] and [text, image]."""
        logits = self.logit_scale.exp() * self.encode_image(image, True) @ self.encode_text(text, True).T
        logits = logits if self.logit_bias is None else logits + self.logit_bias
        return logits, logits.T

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Return unit embeddings of both, and the factor of the cosine (and its bias, if the model has one), as open_clip's forward."""
        images = None if image is None else self.encode_image(image, True)
        texts = None if text is None else self.encode_text(text, True)
        outputs = (images, texts, self.logit_scale.exp())
        return outputs if self.logit_bias is None else (*outputs, self.logit_bias)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = True) -> Any:
        """Load as torch does, but put tensors in place of the old ones, never write into them: those may be a live model's."""
        return super().load_state_dict(state_dict, strict, True)


def load(folder: str | Path, device: str | torch.device = "cpu") -> EditedModel:
    """Read the model that `clip-anatomy export` wrote."""
    from safetensors.torch import load_file

    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("schema") != SCHEMA:
        raise ValueError(f"{folder / CONFIG} has the schema {config.get('schema')!r}; this file reads {SCHEMA!r}")
    return EditedModel(config, load_file(folder / WEIGHTS, device=str(device))).eval()


def check(folder: str | Path) -> float:
    """Largest difference from the embeddings that were computed when the model was exported, relative to their length."""
    from safetensors.torch import load_file

    model, known = load(folder), load_file(Path(folder) / CHECK)
    with torch.no_grad():
        found = model.encode_image(known["pixels"])
    return float(((found - known["embedding"]).float().norm(dim=-1) / known["embedding"].float().norm(dim=-1)).max())


if __name__ == "__main__":
    print(f"relative difference from the embeddings taken on export: {check(Path(__file__).parent):.1e}")
