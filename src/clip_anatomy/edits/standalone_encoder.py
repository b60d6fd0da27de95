"""A CLIP with parts of its image tower replaced, in one file: it needs torch, and safetensors to read its weights; nothing else.

This file is a part of clip-anatomy, and `clip-anatomy export` writes it beside the weights. Used from there:

    from edited_clip import load
    model = load(".")
    model.encode_image(pixels)                  # [image, embed], not normalised, as open_clip
    model.encode_both(pixels)                   # without and with the edit
    model.get_image_features(pixel_values=…)    # the same, as transformers

It replaces direct effects (Gandelsman, Efros, Steinhardt, ICLR 2024, §3.2): with the last LayerNorm frozen at the image's own
statistics, the embedding is a sum of what each part wrote. The chosen parts' terms are taken out and constants are put in, so that
only rows of z = Σ_token a·v that the forward computes anyway are read: the price is one small matrix product. Where an edit runs the
model again, the parts' writes into the class token's row are held while the forward runs (`FixedWrites`), and later blocks see it; where
that is to be felt along some directions alone, the rest of the embedding is that of a second forward with nothing held.

Weights are buffers: `.to(...)` makes new tensors, so a live model whose weights are borrowed here is never moved or changed.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_anatomy.towers.embedding import embed_inputs
from clip_anatomy.towers.forward import Step, encode, readout_attention, walk
from clip_anatomy.towers.layers import (
    AttentionPooling,
    Block,
    FixedWrites,
    Linear,
    Norm,
    PatchEmbedding,
    Registers,
    Rotary,
    TransformerWeights,
    WordEmbedding,
    split_qkv,
)
from clip_anatomy.towers.operations import inverse_deviation, linear, norm, pool_mlp
from clip_anatomy.towers.readout import (
    Readout,
    embed_readout,
    pool_attention,
    pool_tokens,
    readout_of,
    row_weights,
)

SCHEMA = "clip-anatomy/edited-model/1"
CONFIG, WEIGHTS, CHECK = "config.json", "weights.safetensors", "check.safetensors"


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below a prefix, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        AttentionPooling,
        Block,
        FixedWrites,
        Linear,
        Norm,
        PatchEmbedding,
        Registers,
        Rotary,
        TransformerWeights,
        WordEmbedding,
    )
}


def rebuilt(facts: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Lay out what the config describes as the forward takes it: a dataclass by its name, a tensor by the path of its fields."""
    if isinstance(facts, list):
        return tuple(rebuilt(one, tensors) for one in facts)
    if not isinstance(facts, dict):
        return facts
    if "tensor" in facts:
        return tensors[facts["tensor"]]
    fields = {name: rebuilt(one, tensors) for name, one in facts.items() if name != "is"}
    if fields.get("qkv") is not None:  # query, key and value are views of it
        fields.update(zip(("query", "key", "value"), split_qkv(fields["qkv"]), strict=True))
    return KINDS[facts["is"]](**fields)


class HeldTower(nn.Module):
    """A tower whose tensors are buffers: `.to(...)`, `state_dict` and `load_state_dict` work as on any module."""

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
        """Return the tensors as the forward takes them, with the writes that are held."""
        return rebuilt(self.config, dict(self.named_buffers(remove_duplicate=False)))  # parallel blocks share one norm

    def unedited(self) -> TransformerWeights:
        """Return the tensors of the tower as it is by itself."""
        weights = self.weights()
        return replace(weights, blocks=tuple(replace(block, fixed=None) for block in weights.blocks))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings [*, embed], not edited."""
        return encode(self.unedited(), inputs)


class ReplacedParts(nn.Module):
    """Which parts are taken out, and what is put in: linear maps of what they computed, and one constant."""

    maps: Tensor
    constant: Tensor

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take the parts, `maps` [what they computed, embed] and `constant` [embed]."""
        super().__init__()
        self.heads = {int(layer): list(heads) for layer, heads in config["heads"].items()}
        self.class_to_class, self.mlps = set(config["class_to_class"]), set(config["mlps"])
        self.pool_mlp = bool(config["pool-mlp"])
        self.input_embedding, self.puts = bool(config["input-embedding"]), bool(config["puts"])
        self.register_buffer("maps", tensors["maps"])
        self.register_buffer("constant", tensors["constant"])

    def encode_both(self, tower: TransformerWeights, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings [image, embed] without and with the replacement, from one forward."""
        x = embed_inputs(tower, inputs)
        readout = readout_of(tower, inputs, x.shape[1])  # where it is late, every token is held, and weighed at the end
        written = readout.rows(x) if self.input_embedding else None
        mixed: list[Tensor] = []
        stream, after = readout.rows(x), None
        for step in walk(tower, x, readout):
            if step.layer in self.heads:
                mixed.append(step.mixed[..., self.heads[step.layer], :].flatten(-2))
            if step.layer in self.class_to_class:
                mixed.append(_read_from_itself(tower, step, readout))
            if step.layer in self.mlps:
                written = step.mlp if written is None else written + step.mlp
            stream, after = step.readout, step.after
            del step  # as in `record`: while the next block runs, nothing of this one is kept but what is wanted
        y = embed_readout(tower, stream, after, readout)
        pool = self.pool_mlp and tower.pooling is not None
        if not mixed and written is None and not self.puts and not pool:
            return y, y
        wide = torch.promote_types(y.dtype, torch.float32)
        if readout.late:
            weights = row_weights(tower, stream, readout).to(wide)  # [image, row, token], 1/σ of every token in it
        else:
            spread = inverse_deviation(tower.ln_post, stream.to(wide))  # the last LayerNorm's 1/σ, frozen
            weights = spread[:, None, None]

        def rows(part: Tensor) -> Tensor:
            """[image, (token,) width] → [image, row, width]."""
            return weights @ (part if readout.late else part[:, None]).to(wide)

        gone = torch.zeros_like(y, dtype=wide)
        if mixed:
            gone = gone + rows(torch.cat(mixed, -1)).flatten(1) @ self.maps.to(wide)
        if written is not None:
            part = rows(written)
            gone = gone + _end(tower, (part - part.mean(-1, keepdim=True)) * tower.ln_post.weight.to(wide))
        if tower.pooling is not None:
            gone = _behind_pool(tower, stream, gone, pool, wide)
        full = y.to(wide)
        return y, (full - gone + full.norm(dim=-1, keepdim=True) * self.constant.to(wide)).to(y.dtype)


def _end(tower: TransformerWeights, part: Tensor) -> Tensor:
    """Rows [image, row, width] to the joint space: through an attention pool, and the projection."""
    wide, pool = part.dtype, tower.pooling
    if pool is None:
        return _projected(tower, part[:, 0])
    value = pool.value.weight.to(wide).unflatten(0, (pool.heads, pool.d))
    return _past_pool(tower, torch.einsum("brw,rdw->brd", part, value).flatten(1) @ pool.out.weight.to(wide).T)


def _past_pool(tower: TransformerWeights, pooled: Tensor) -> Tensor:
    """Compute what an attention pool wrote to the joint space: centred where a norm follows."""
    if tower.pooling is not None and tower.pooling.norm is not None:
        pooled = (pooled - pooled.mean(-1, keepdim=True)) * tower.pooling.norm.weight.to(pooled.dtype)
    return _projected(tower, pooled)


def _projected(tower: TransformerWeights, x: Tensor) -> Tensor:
    return x if tower.projection is None else x @ tower.projection.to(x.dtype)


def _behind_pool(tower: TransformerWeights, after: Tensor, gone: Tensor, mlp_too: bool, wide: torch.dtype) -> Tensor:
    """Add what the pool's MLP wrote to what is taken out, and freeze the norm behind both."""
    pool = tower.pooling
    assert pool is not None
    normed = norm(tower.ln_post, after)
    u = pool_tokens(pool, normed, pool_attention(pool, normed))
    added = pool_mlp(pool, u)
    if mlp_too and added is not None:
        gone = gone + _past_pool(tower, added.to(wide))
    if pool.norm is None:
        return gone
    return gone * inverse_deviation(pool.norm, u if added is None else u + added)[:, None].to(wide)


def _read_from_itself(tower: TransformerWeights, step: Step, readout: Readout) -> Tensor:
    """Return what the class token of every head read from itself: [image, head · d]."""
    attention = readout_attention(tower, step, readout)[:, :, :1]
    if step.value is not None:
        value = step.value[:, :, 0]
    else:
        value = linear(tower.blocks[step.layer].value, step.normed[:, 0]).unflatten(1, (tower.heads, tower.d))
    read = attention.to(value.dtype) * value
    return (read if step.gain is None else read * step.gain[:, None, None].to(read.dtype)).flatten(1)


class EditedModel(nn.Module):
    """A drop-in encoder: the names of open_clip's CLIP, and `get_image_features` / `get_text_features` of transformers'."""

    logit_scale: Tensor
    logit_bias: Tensor | None
    felt_along: Tensor | None
    refusal: tuple[type[ValueError], ...] = (
        ValueError,
        ValueError,
    )  # what is raised for pixels and for ids that are none

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take what `export` wrote."""
        super().__init__()
        self.config = dict(config)
        self.image_tower = HeldTower(config["image"], under(tensors, "image_tower"))
        self.text_tower = HeldTower(config["text"], under(tensors, "text_tower"))
        self.replaced = ReplacedParts(config["edit"], under(tensors, "replaced"))
        text = config.get("edit_text")
        self.replaced_text = None if text is None else ReplacedParts(text, under(tensors, "replaced_text"))
        self.register_buffer("logit_scale", tensors["logit_scale"])  # its logarithm, as in both libraries
        self.register_buffer("logit_bias", tensors.get("logit_bias"))
        self.register_buffer("felt_along", tensors.get("felt_along"))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Preprocessed pixels [image, 3, row, col] → edited embeddings [image, embed]."""
        self.refuse_odd(image)
        y = self._edited(image)
        return F.normalize(y, dim=-1) if normalize else y

    def _edited(self, image: Tensor) -> Tensor:
        return (
            self.replaced.encode_both(self.image_tower.weights(), image)[1]
            if self.felt_along is None
            else self.encode_both(image)[1]
        )

    def encode_both(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images [image, embed] without and with the edit: from one forward, or two where writes are held in it."""
        self.refuse_odd(image)
        weights = self.image_tower.weights()
        held, after = self.replaced.encode_both(weights, image)
        if all(block.fixed is None for block in weights.blocks):
            return held, after
        before = self.image_tower(image)
        if self.felt_along is not None:
            rows = self.felt_along.to(held.dtype)
            after = before + (held - before) @ rows.T @ rows + (after - held)
        return before, after

    def refuse_odd(self, image: Tensor) -> None:
        """Raise for what is no batch of pixels, or smaller than a patch."""
        row, col = self.image_tower.get_buffer("embedding.weight").shape[2:]
        if not isinstance(image, Tensor):
            raise self.refusal[0](f"pixels are a {type(image).__name__}. Type a tensor [image, 3, row, col]")
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] < row or image.shape[3] < col:
            expected = f"[image, 3, row, col] of at least {row} x {col} was expected. Type pixels[None] for one image"
            raise self.refusal[0](f"pixels are {list(image.shape)}; {expected}")

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Token ids [text, token] → embeddings [text, embed], edited where the edit is of the text tower."""
        if not isinstance(text, Tensor) or text.dim() != 2 or text.is_floating_point() or not text.shape[1]:
            given = f"{list(text.shape)} of {text.dtype}" if isinstance(text, Tensor) else f"a {type(text).__name__}"
            raise self.refusal[1](
                f"token ids are {given}. Type whole numbers [text, token], as the model's tokenizer gives them"
            )
        if self.replaced_text is None:
            y = self.text_tower(text)
        else:
            y = self.replaced_text.encode_both(self.text_tower.weights(), text)[1]
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
        embeddings = model.encode_image(known["pixels"])
    return float(
        ((embeddings - known["embedding"]).float().norm(dim=-1) / known["embedding"].float().norm(dim=-1)).max()
    )


if __name__ == "__main__":
    print(f"relative difference from the embeddings taken on export: {check(Path(__file__).parent):.1e}")
