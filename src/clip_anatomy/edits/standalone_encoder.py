"""A CLIP with parts of its image tower replaced, in one file: it needs torch, and safetensors to read its weights; nothing else.

This file is a part of clip-anatomy, and `clip-anatomy export` writes a copy of it beside the weights. Used from there:

    from edited_clip import load
    model = load(".")
    model.encode_image(pixels)                  # [image, embed], not normalised, as open_clip
    model.encode_both(pixels)                   # without and with the edit, from one forward
    model.get_image_features(pixel_values=…)    # the same, as transformers

It replaces direct effects (Gandelsman, Efros, Steinhardt, ICLR 2024, §3.2): with the last LayerNorm frozen at the image's own
statistics, the embedding is a sum of what each part wrote. The chosen parts' terms are taken out and constants are put in, so that
only rows of z = Σ_token a·v that the forward computes anyway are read: the price is one small matrix product.

Weights are buffers: `.to(...)` makes new tensors, so a live model whose weights are borrowed here is never moved or changed.
Shapes are in comments, since the file must not need the library that would check them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCHEMA = "clip-anatomy/edited-model/1"
CONFIG, WEIGHTS, CHECK = "config.json", "weights.safetensors", "check.safetensors"


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries below a prefix, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def softmax(scores: Tensor) -> Tensor:
    """Over the last axis; half precision is too coarse for it, double is kept."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)


class Affine(nn.Module):
    """y = x Wᵀ + b."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take `weight` and, if it is there, `bias`."""
        super().__init__()
        self.register_buffer("weight", tensors["weight"])
        self.register_buffer("bias", tensors.get("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """[*, in] → [*, out]."""
        return F.linear(x, self.weight, self.bias)


class Norm(Affine):
    """LayerNorm in the dtype of its own weights (half-precision models keep theirs in float32), back to x's."""

    def __init__(self, tensors: Mapping[str, Tensor], eps: float) -> None:
        """Take `weight` and `bias`."""
        super().__init__(tensors)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[*, width] → [*, width]."""
        return F.layer_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


class Block(nn.Module):
    """One pre-LN residual block."""

    qkv: Affine
    query: Affine
    key: Affine
    value: Affine
    scale_attention: Tensor | None
    scale_mlp: Tensor | None

    def __init__(self, tensors: Mapping[str, Tensor], heads: int, activation: str, eps: float) -> None:
        """Take the block's tensors; query, key and value are one tensor (`qkv`) or three."""
        super().__init__()
        self.heads, self.activation = heads, activation
        self.ln1, self.ln2 = Norm(under(tensors, "ln1"), eps), Norm(under(tensors, "ln2"), eps)
        self.fused = "qkv.weight" in tensors
        for name in ("qkv",) if self.fused else ("query", "key", "value"):
            self.add_module(name, Affine(under(tensors, name)))
        self.out, self.up, self.down = (Affine(under(tensors, name)) for name in ("out", "up", "down"))
        for name in ("scale_attention", "scale_mlp"):  # LayerScale
            self.register_buffer(name, tensors.get(name))

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[image, token, width] → query, key, value [image, head, token, d]."""
        b, n, width = x.shape
        d = width // self.heads
        if self.fused:
            q, k, v = self.qkv(x).view(b, n, 3, self.heads, d).permute(2, 0, 3, 1, 4)
            return q, k, v
        q, k, v = (layer(x).view(b, n, self.heads, d).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return q, k, v

    def side(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Weight [head, d, width] and bias [head, d] of the query (0), key (1) or value (2)."""
        layer: Any = self.qkv if self.fused else getattr(self, ("query", "key", "value")[index])
        weight, bias = layer.weight, layer.bias
        if self.fused:
            weight, bias = weight.chunk(3)[index], None if bias is None else bias.chunk(3)[index]
        shape = (self.heads, -1)
        return weight.unflatten(0, shape), None if bias is None else bias.unflatten(0, shape)

    def add_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        """X + W_O mixed + b_O, [*, width] both."""
        wrote = self.out(mixed)
        return x + (wrote if self.scale_attention is None else wrote * self.scale_attention)

    def mlp(self, x: Tensor) -> Tensor:
        """What the MLP writes, given the residual stream [*, width]."""
        y = self.up(self.ln2(x))
        gelu = "tanh" if self.activation == "gelu_tanh" else "none"
        y = self.down(y * torch.sigmoid(1.702 * y) if self.activation == "quick_gelu" else F.gelu(y, approximate=gelu))
        return y if self.scale_mlp is None else y * self.scale_mlp

    def mix_row(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attention of row 0 alone, keys folded into its query and values out of the sum.

        Returns z [image, width]; attention [image, head, token]; the normed stream.
        """
        normed = self.ln1(x)
        (wq, bq), (wk, _), (wv, bv) = self.side(0), self.side(1), self.side(2)
        q = torch.einsum("bw,hdw->bhd", normed[:, 0], wq) + (0 if bq is None else bq)
        # q·(W_K x + b_K) = (W_Kᵀ q)·x + a constant that softmax removes.
        folded = torch.einsum("bhd,hdw->bhw", q * wq.shape[1] ** -0.5, wk)
        attention = softmax(folded @ normed.transpose(1, 2)).to(normed.dtype)
        z = torch.einsum("bhw,hdw->bhd", attention @ normed, wv) + (0 if bv is None else bv)
        return z.flatten(1), attention, normed


class Tower(nn.Module):
    """An image or text transformer; says what some of its parts wrote on the way."""

    projection: Tensor
    projection_bias: Tensor | None
    position: Tensor
    class_token: Tensor

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take the tower's facts and tensors."""
        super().__init__()
        self.heads, self.pool, self.eos = int(config["heads"]), str(config["pool"]), config["eos"]
        self.causal = bool(config["causal"])
        # Whether every row is normalised before the rows are averaged.
        self.averages_rows = self.pool == "mean" and not config["pool_before_norm"]
        self.grid = None if config["grid"] is None else tuple(config["grid"])
        self.resampling = config.get("resampling")
        eps = float(config["eps"])
        self.embedding = Affine(under(tensors, "embedding"))
        for name in ("class_token", "position", "projection", "projection_bias"):
            self.register_buffer(name, tensors.get(name))
        self.ln_pre = Norm(under(tensors, "ln_pre"), eps) if "ln_pre.weight" in tensors else None
        self.ln_post = Norm(under(tensors, "ln_post"), eps)
        self.blocks = nn.ModuleList(
            Block(under(tensors, f"blocks.{i}"), self.heads, str(config["activation"]), eps)
            for i in range(int(config["layers"]))
        )

    def begin(self, inputs: Tensor) -> Tensor:
        """Pixels [image, 3, row, col] or token ids [text, token] → residual stream [*, token, width]."""
        if self.grid is None:
            first = self.blocks[0]
            assert isinstance(first, Block)
            x = F.embedding(inputs, self.embedding.weight).to(first.up.weight.dtype)
            x = x + self.position[: inputs.shape[1]].to(x.dtype)
        else:
            weight = self.embedding.weight
            patches = F.conv2d(inputs.to(weight.dtype), weight, stride=weight.shape[2:])
            token = self.class_token.to(weight.dtype).expand(patches.shape[0], 1, -1)
            x = torch.cat([token, patches.flatten(2).transpose(1, 2)], 1)
            x = x + self.positions((patches.shape[2], patches.shape[3])).to(weight.dtype)
        return x if self.ln_pre is None else self.ln_pre(x)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position vectors of another grid of patches, resampled."""
        if self.grid is None or grid == self.grid:
            return self.position
        old = self.position[1:].reshape(1, *self.grid, -1).permute(0, 3, 1, 2).float()
        antialias = self.resampling == "bicubic-antialias"
        new = F.interpolate(old, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
        return torch.cat([self.position[:1], new.permute(0, 2, 3, 1).flatten(0, 2).to(self.position.dtype)])

    def read(self, x: Tensor) -> Tensor:
        """The rows that the embedding is read from: [image, token, k] → [image, k], or all patches where rows are averaged late."""
        if self.pool == "mean":
            return x[:, 1:] if self.averages_rows else x[:, 1:].mean(1)
        return x[:, 0]

    def read_text(self, x: Tensor, ids: Tensor) -> Tensor:
        """The end-of-text rows: [text, token, width] → [text, width]."""
        if self.pool in ("first", "last"):
            return x[:, 0 if self.pool == "first" else -1]
        index = ids.argmax(1) if self.pool == "argmax" else (ids == self.eos).int().argmax(1)
        return x[torch.arange(x.shape[0], device=x.device), index]

    def project(self, row: Tensor) -> Tensor:
        """Normed rows [*, width] → [*, embed]."""
        y = row @ self.projection.to(row.dtype)
        return y if self.projection_bias is None else y + self.projection_bias

    def forward(self, inputs: Tensor, wanted: "Replacement | None" = None) -> Tensor:
        """Embeddings [*, embed], those of images with the wanted parts replaced."""
        return self.both(inputs, wanted)[1]

    def both(self, inputs: Tensor, wanted: "Replacement | None" = None) -> tuple[Tensor, Tensor]:
        """Embeddings [*, embed] without and with the replacement, from one forward."""
        x = self.begin(inputs)
        written = self.read(x) if wanted is not None and wanted.input_embedding else None
        mixed_rows: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            heads, looked, mlp = ([], False, False) if wanted is None else wanted.at(layer)
            assert isinstance(block, Block)
            if layer == len(self.blocks) - 1 and self.pool == "class":
                x, wrote = self._last(block, x, (heads, looked), mixed_rows)
            else:
                x, wrote = self._full(block, x, (heads, looked), mixed_rows)
                wrote = self.read(wrote) if mlp else wrote
            if mlp:
                written = wrote if written is None else written + wrote
        if self.grid is None:
            y = self.project(self.ln_post(self.read_text(x, inputs)))
            return y, y
        stream = x if self.pool == "class" else self.read(x)
        normed = self.ln_post(stream)
        y = self.project(normed.mean(1) if self.averages_rows else normed)
        if wanted is None or (not mixed_rows and written is None and not wanted.puts):
            return y, y
        return y, wanted.replace(self, y, stream, mixed_rows, written)

    def _full(
        self, block: Block, x: Tensor, wanted: tuple[list[int], bool], mixed_rows: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        q, k, v = block.project_in(block.ln1(x))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2)
        heads, looked = wanted
        if heads:
            mixed_rows.append(self._pick(self.read(mixed), heads))
        if looked:  # what the class token read from itself
            own = softmax((q[:, :, :1] * q.shape[3] ** -0.5) @ k.transpose(2, 3))[:, :, 0, :1]
            mixed_rows.append((own.to(v.dtype) * v[:, :, 0]).flatten(1))
        middle = block.add_attention(x, mixed)
        wrote = block.mlp(middle)
        return middle + wrote, wrote

    def _last(
        self, block: Block, x: Tensor, wanted: tuple[list[int], bool], mixed_rows: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The last block, of which only the class token's row is needed: [image, token, width] → [image, width]."""
        z, attention, normed = block.mix_row(x)
        heads, looked = wanted
        if heads:
            mixed_rows.append(self._pick(z, heads))
        if looked:
            weight, bias = block.side(2)
            own = torch.einsum("bw,hdw->bhd", normed[:, 0], weight) + (0 if bias is None else bias)
            mixed_rows.append((attention[:, :, :1] * own).flatten(1))
        middle = block.add_attention(x[:, 0], z)
        wrote = block.mlp(middle)
        return middle + wrote, wrote

    def _pick(self, z: Tensor, heads: list[int]) -> Tensor:
        return z.unflatten(-1, (self.heads, -1))[..., heads, :].flatten(-2)


class Replacement(nn.Module):
    """Which parts are taken out, and what is put in: linear maps of what they computed, and one constant."""

    maps: Tensor
    constant: Tensor

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take the parts, `maps` [what they computed, embed] and `constant` [embed]."""
        super().__init__()
        self.heads = {int(layer): list(heads) for layer, heads in config["heads"].items()}
        self.looked, self.mlps = set(config["class_to_class"]), set(config["mlps"])
        self.input_embedding, self.puts = bool(config["input-embedding"]), bool(config["puts"])
        self.register_buffer("maps", tensors["maps"])
        self.register_buffer("constant", tensors["constant"])

    def at(self, layer: int) -> tuple[list[int], bool, bool]:
        """Heads, class-to-class attention, MLP of a layer."""
        return self.heads.get(layer, []), layer in self.looked, layer in self.mlps

    def replace(self, tower: Tower, y: Tensor, stream: Tensor, mixed: list[Tensor], written: Tensor | None) -> Tensor:
        """Embeddings [image, embed] without the parts and with the constant, which is in units of ‖embedding‖."""
        wide = torch.promote_types(y.dtype, torch.float32)
        rows = stream.to(wide)
        spread = (rows - rows.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        scale = (spread + tower.ln_post.eps).rsqrt()  # the last LayerNorm's 1/σ, frozen
        gone = torch.zeros_like(y, dtype=wide)
        if mixed:
            gone = gone + self._pooled(tower, torch.cat(mixed, -1).to(wide) * scale) @ self.maps.to(wide)
        if written is not None:
            part = self._pooled(tower, written.to(wide) * scale)
            part = (part - part.mean(-1, keepdim=True)) * tower.ln_post.weight.to(wide)
            gone = gone + part @ tower.projection.to(wide)
        full = y.to(wide)
        return (full - gone + full.norm(dim=-1, keepdim=True) * self.constant.to(wide)).to(y.dtype)

    @staticmethod
    def _pooled(tower: Tower, x: Tensor) -> Tensor:
        return x.mean(1) if tower.averages_rows else x


class EditedModel(nn.Module):
    """A drop-in encoder: the names of open_clip's CLIP, and `get_image_features` / `get_text_features` of transformers'."""

    logit_scale: Tensor
    logit_bias: Tensor | None
    refusal: type[ValueError] = ValueError  # what is raised for pixels that are none

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take what `export` wrote."""
        super().__init__()
        self.config = dict(config)
        self.image_tower = Tower(config["image"], under(tensors, "image_tower"))
        self.text_tower = Tower(config["text"], under(tensors, "text_tower"))
        self.replaced = Replacement(config["edit"], under(tensors, "replaced"))
        self.register_buffer("logit_scale", tensors["logit_scale"])  # its logarithm, as in both libraries
        self.register_buffer("logit_bias", tensors.get("logit_bias"))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Preprocessed pixels [image, 3, row, col] → edited embeddings [image, embed]."""
        y = self.encode_both(image)[1]
        return F.normalize(y, dim=-1) if normalize else y

    def encode_both(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [image, embed] without and with the edit, from one forward."""
        self.refuse_odd(image)
        return self.image_tower.both(image, self.replaced)

    def refuse_odd(self, image: Tensor) -> None:
        """Raise for what is no batch of pixels, or smaller than a patch."""
        row, col = self.image_tower.embedding.weight.shape[2:]
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
        """Logits [image, text] and [text, image]."""
        logits = self.logit_scale.exp() * self.encode_image(image, True) @ self.encode_text(text, True).T
        logits = logits if self.logit_bias is None else logits + self.logit_bias
        return logits, logits.T

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Unit embeddings of both, and the factor of the cosine (and its bias, if the model has one), as open_clip's forward."""
        images = None if image is None else self.encode_image(image, True)
        texts = None if text is None else self.encode_text(text, True)
        found = (images, texts, self.logit_scale.exp())
        return found if self.logit_bias is None else (*found, self.logit_bias)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = True) -> Any:
        """As torch's, but tensors are put in place of the old ones, never written into them: those may be a live model's."""
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
