"""Name tables: the tensors of each library, borrowed into a `Transformer`.

Nothing is copied: a tower's tensors are the host's own parameters. Every parameter of the host must be claimed by a table;
one left over (an attention pool, a norm inside the attention, a gate) means an architecture that the linear split does not
cover, and `UnsupportedModel` names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.towers.layers import Activation, Block, Linear, Norm, PatchEmbedding, Pool, WordEmbedding, split_qkv
from clip_anatomy.towers.transformer import Transformer


@dataclass(frozen=True)
class Facts:
    """What a state dict does not say about a tower."""

    heads: int
    activation: Activation
    eps: float
    pool: Pool
    pool_before_norm: bool = True
    causal: bool = False
    eos: int | None = None
    grid: tuple[int, int] | None = None


class Names:
    """A state dict that remembers which names were taken.

    Parameters stay the user's own: what is handed out shares their storage and carries no gradient.

    Args:
        tensors: name → tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Start with nothing taken."""
        self._tensors = dict(tensors)
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Say whether the host has this tensor."""
        return name in self._tensors

    def take(self, name: str) -> Tensor:
        """Borrow a tensor that every CLIP of the kind has, or raise UnsupportedModel."""
        if name not in self._tensors:
            raise UnsupportedModel(
                f"the model has no tensor '{name}', which every CLIP of its kind has. "
                "Supported: open_clip CLIP with a VisionTransformer or a ModifiedResNet, transformers CLIPModel."
            )
        self._taken.add(name)
        return self._tensors[name].detach()

    def maybe(self, name: str) -> Tensor | None:
        """Borrow a tensor that some have."""
        return self.take(name) if name in self._tensors else None

    def linear(self, prefix: str) -> Linear:
        """Borrow a linear layer, with or without bias."""
        return Linear(self.take(f"{prefix}.weight"), self.maybe(f"{prefix}.bias"))

    def norm(self, prefix: str, eps: float) -> Norm:
        """Borrow a LayerNorm."""
        return Norm(self.take(f"{prefix}.weight"), self.take(f"{prefix}.bias"), eps)

    def count(self, prefix: str) -> int:
        """Count the consecutive blocks named prefix.0, prefix.1, …"""
        n = 0
        while any(name.startswith(f"{prefix}.{n}.") for name in self._tensors):
            n += 1
        return n

    def left(self) -> list[str]:
        """List what nobody took."""
        return sorted(set(self._tensors) - self._taken)


IGNORED = {
    "logit_scale",
    "logit_bias",
    "attn_mask",
    "text.attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
}


def finish(names: Names, found: str) -> None:
    """Raise if any tensor of the model was not claimed."""
    left = [n for n in names.left() if n not in IGNORED and not n.endswith("position_ids")]
    if left:
        shown = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        raise UnsupportedModel(
            f"{found}: tensors that a plain CLIP does not have: {shown}. "
            "Use a plain ViT or ResNet of open_clip (ViT-B-32, ViT-B-16, ViT-L-14, RN50, …) or a transformers CLIPModel."
        )


def open_clip_towers(names: Names, image: Facts, text: Facts, *, found: str) -> tuple[Transformer, Transformer]:
    """Towers over a state dict with open_clip's names (OpenAI checkpoints have the same ones).

    Args:
        names: the tensors.
        image: facts of the image tower.
        text: facts of the text tower.
        found: what the model calls itself, for the error message.

    Returns:
        Image tower and text tower.

    Raises:
        UnsupportedModel: a tensor is missing or left over.
    """
    pos = names.take("visual.positional_embedding")
    side = round((len(pos) - 1) ** 0.5)
    image_tower = Transformer(
        embedding=PatchEmbedding(
            names.take("visual.conv1.weight"),
            names.take("visual.class_embedding"),
            pos,
            image.grid or (side, side),
            resampling="bicubic-antialias",
        ),
        ln_pre=names.norm("visual.ln_pre", image.eps) if "visual.ln_pre.weight" in names else None,
        blocks=_open_clip_blocks(names, "visual.transformer.resblocks", image),
        ln_post=names.norm("visual.ln_post", image.eps),
        projection=names.take("visual.proj"),
        projection_bias=None,
        **_facts(image),
    )
    text_tower = open_clip_text(names, text)
    finish(names, found)
    return image_tower, text_tower


def open_clip_text(names: Names, text: Facts) -> Transformer:
    """Borrow the text tower of a state dict with open_clip's names."""
    t = "text." if "text.token_embedding.weight" in names else ""
    tokens = names.take(f"{t}token_embedding.weight")
    projection, bias = names.maybe(f"{t}text_projection"), None
    if projection is None:
        layer = names.linear(f"{t}text_projection")
        projection, bias = layer.weight.T, layer.bias
    return Transformer(
        embedding=WordEmbedding(tokens, names.take(f"{t}positional_embedding")),
        ln_pre=None,
        blocks=_open_clip_blocks(names, f"{t}transformer.resblocks", text),
        ln_post=names.norm(f"{t}ln_final", text.eps),
        projection=projection,
        projection_bias=bias,
        **_facts(text),
    )


def transformers_towers(names: Names, image: Facts, text: Facts, *, found: str) -> tuple[Transformer, Transformer]:
    """Towers over a state dict with the names of transformers' CLIPModel. Arguments as `open_clip_towers`."""
    pos = names.take("vision_model.embeddings.position_embedding.weight")
    side = round((len(pos) - 1) ** 0.5)
    image_projection = names.linear("visual_projection")
    image_tower = Transformer(
        embedding=PatchEmbedding(
            names.take("vision_model.embeddings.patch_embedding.weight"),
            names.take("vision_model.embeddings.class_embedding"),
            pos,
            image.grid or (side, side),
            resampling="bicubic",
        ),
        ln_pre=names.norm("vision_model.pre_layrnorm", image.eps),  # (sic)
        blocks=_transformers_blocks(names, "vision_model.encoder.layers", image),
        ln_post=names.norm("vision_model.post_layernorm", image.eps),
        projection=image_projection.weight.T,
        projection_bias=image_projection.bias,
        **_facts(image),
    )
    text_projection = names.linear("text_projection")
    text_tower = Transformer(
        embedding=WordEmbedding(
            names.take("text_model.embeddings.token_embedding.weight"),
            names.take("text_model.embeddings.position_embedding.weight"),
        ),
        ln_pre=None,
        blocks=_transformers_blocks(names, "text_model.encoder.layers", text),
        ln_post=names.norm("text_model.final_layer_norm", text.eps),
        projection=text_projection.weight.T,
        projection_bias=text_projection.bias,
        **_facts(text),
    )
    finish(names, found)
    return image_tower, text_tower


def _facts(facts: Facts) -> dict[str, Any]:
    return {k: getattr(facts, k) for k in ("heads", "activation", "pool", "pool_before_norm", "causal", "eos")}


def _open_clip_blocks(names: Names, prefix: str, facts: Facts) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for i in range(names.count(prefix)):
        p = f"{prefix}.{i}"
        qkv = Linear(names.take(f"{p}.attn.in_proj_weight"), names.maybe(f"{p}.attn.in_proj_bias"))
        q, k, v = split_qkv(qkv)
        blocks.append(
            Block(
                ln1=names.norm(f"{p}.ln_1", facts.eps),
                query=q,
                key=k,
                value=v,
                qkv=qkv,
                out=names.linear(f"{p}.attn.out_proj"),
                ln2=names.norm(f"{p}.ln_2", facts.eps),
                up=names.linear(f"{p}.mlp.c_fc"),
                down=names.linear(f"{p}.mlp.c_proj"),
                scale_attention=names.maybe(f"{p}.ls_1.gamma"),
                scale_mlp=names.maybe(f"{p}.ls_2.gamma"),
            )
        )
    return tuple(blocks)


def _transformers_blocks(names: Names, prefix: str, facts: Facts) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for i in range(names.count(prefix)):
        p = f"{prefix}.{i}"
        blocks.append(
            Block(
                ln1=names.norm(f"{p}.layer_norm1", facts.eps),
                query=names.linear(f"{p}.self_attn.q_proj"),
                key=names.linear(f"{p}.self_attn.k_proj"),
                value=names.linear(f"{p}.self_attn.v_proj"),
                qkv=None,
                out=names.linear(f"{p}.self_attn.out_proj"),
                ln2=names.norm(f"{p}.layer_norm2", facts.eps),
                up=names.linear(f"{p}.mlp.fc1"),
                down=names.linear(f"{p}.mlp.fc2"),
                scale_attention=None,
                scale_mlp=None,
            )
        )
    return tuple(blocks)
