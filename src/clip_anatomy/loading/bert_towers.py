"""BERT-like text models over their own tensors: BERT, RoBERTa, XLM-RoBERTa in open_clip, and their copies inside transformers' CLIPs.

Their layers are x ← norm(x + attention(x)), x ← norm(x + mlp(x)). With the norm of the embedding counted as the first layer's, and the
last one as the tower's own, that is a stream which goes through a norm in front of every attention and every MLP (`Block.in_stream`).
"""

from typing import Any

from clip_anatomy.loading.host import BorrowedTensors
from clip_anatomy.loading.transformers_towers import activation
from clip_anatomy.towers.layers import Block, Linear, Norm, Pool, WordEmbedding
from clip_anatomy.towers.transformer import Transformer

COUNTED = ("altclip_text_model", "roberta", "xlm-roberta")
"""Types of configs whose places count the tokens that are no padding, from behind the id of padding."""
UNREAD = (".pooler.", ".crossattention.", ".token_type_ids")
"""What no embedding of a text alone is read from: a tanh, BLIP's attention to pictures, zeros."""


def bert_tower(
    tensors: BorrowedTensors, config: Any, *, prefix: str, context: int, pool: Pool, ends: list[Linear]
) -> Transformer:
    """Build a BERT-like text tower.

    Args:
        tensors: all tensors of the model.
        config: of its text model.
        prefix: how names of that model's tensors begin.
        context: tokens of a text at most.
        pool: "first" (the class token) or "mean" (of what is no padding).
        ends: linear layers behind the pooling, one after another; two become their product, a tensor of its own.
    """
    e, pad, counted = f"{prefix}embeddings", int(config.pad_token_id), config.model_type in COUNTED
    table = tensors.take(f"{e}.position_embeddings.weight")
    segments = tensors.maybe(f"{e}.token_type_embeddings.weight")
    eps = float(config.layer_norm_eps)
    blocks, last = _blocks(tensors, prefix, eps)
    for name in tensors:
        if name.startswith(prefix) and any(part in f".{name}" for part in UNREAD):
            tensors.take(name)
    projection = _product(*ends) if len(ends) > 1 else next(iter(ends), None)
    return Transformer(
        embedding=WordEmbedding(
            tensors.take(f"{e}.word_embeddings.weight"),
            table[pad : pad + 1 + context] if counted else table[:context],
            pad=pad,
            segment=None if segments is None else segments[0],
            counted=counted,
        ),
        ln_pre=None,
        blocks=blocks,
        ln_post=last,
        projection=None if projection is None else projection.weight.T,
        projection_bias=None if projection is None else projection.bias,
        heads=int(config.num_attention_heads),
        activation=activation(config),
        pool=pool,
        pool_before_norm=False,
        causal=False,
    )


def _product(first: Linear, second: Linear) -> Linear:
    """Join two linear layers, in double precision so that nothing is rounded away."""
    weight = second.weight.double()
    biases = [] if first.bias is None else [weight @ first.bias.double()]
    biases += [] if second.bias is None else [second.bias.double()]
    return Linear(weight @ first.weight.double(), sum(biases[1:], biases[0]) if biases else None)


def _blocks(tensors: BorrowedTensors, prefix: str, eps: float) -> tuple[tuple[Block, ...], Norm]:
    """Borrow the layers, and the norm behind the last of them: AltCLIP has two there."""
    layers = f"{prefix}encoder.layer" if tensors.count(f"{prefix}encoder.layer") else f"{prefix}encoder.layers"
    before = tensors.norm(f"{prefix}embeddings.LayerNorm", eps)
    count, blocks = tensors.count(layers), []
    final = f"{prefix.removesuffix('roberta.')}pre_LN"
    for i in range(count):
        p = f"{layers}.{i}"
        query, key, value = (tensors.linear(f"{p}.attention.self.{name}") for name in ("query", "key", "value"))
        behind = tensors.norm(f"{p}.output.LayerNorm", eps)
        twice = i == count - 1 and f"{final}.weight" in tensors
        blocks.append(
            Block(
                ln1=before,
                query=query,
                key=key,
                value=value,
                qkv=None,
                out=tensors.linear(f"{p}.attention.output.dense"),
                ln2=tensors.norm(f"{p}.attention.output.LayerNorm", eps),
                up=tensors.linear(f"{p}.intermediate.dense"),
                down=tensors.linear(f"{p}.output.dense"),
                scale_attention=None,
                scale_mlp=None,
                in_stream=True,
                norm_after=behind if twice else None,
            )
        )
        before = tensors.norm(final, eps) if twice else behind
    return tuple(blocks), before
