"""Text towers of transformers inside open_clip's models (HFTextEncoder): split block by block where they can be, else one part."""

from typing import Any

from torch import Tensor, nn

from clip_anatomy.loading.bert_towers import bert_tower
from clip_anatomy.loading.host import BorrowedTensors, tensors_of
from clip_anatomy.towers.host_tower import HostTower
from clip_anatomy.towers.layers import Block, Pool, WordEmbedding
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import Transformer

BERTS = ("BertModel", "RobertaModel", "XLMRobertaModel")
CONTEXT = 77  # of open_clip's tokenizers, for these too


def foreign_text(tensors: BorrowedTensors, model: Any) -> Tower:
    """Build the text tower of a model whose `text` is an HFTextEncoder.

    NLLB's encoder is pre-LN, BERT's and RoBERTa's are post-LN: every block is split. Where open_clip puts an MLP behind the pooling,
    as in all its configurations with RoBERTa or T5 but CoCa's, everything that the blocks write passes through that: one part.
    """
    text = model.text
    encoder, pooler = type(text.transformer).__name__, type(text.pooler).__name__
    if isinstance(text.proj, nn.Linear | nn.Identity):
        if (encoder, pooler) == ("M2M100Encoder", "ClsPooler") and text.config.activation_function == "relu":
            return _nllb(tensors, text)
        if encoder in BERTS and (pool := _bert_pool(text)) is not None:
            ends = [] if isinstance(text.proj, nn.Identity) else [tensors.linear("text.proj")]
            prefix, context = "text.transformer.", min(CONTEXT, int(text.context_length))
            return bert_tower(tensors, text.config, prefix=prefix, context=context, pool=pool, ends=ends)
    why = (
        f"its pooling is a {pooler} that is no sum"
        if encoder in BERTS
        else "its norms or positions are of another kind"
    )
    why = "an MLP stands behind its pooling" if isinstance(text.proj, nn.Sequential) else why
    state = tuple(tensors.take(f"text.{name}") for name in tensors_of(text))
    return HostTower(
        what=f"{encoder}, a foreign text tower",
        why=why,
        kind="text",
        run=lambda ids: _first(model.encode_text(ids, normalize=False)),
        state=state,
        embed=int(text.output_dim),
        grid=(1, min(CONTEXT, int(text.context_length) or CONTEXT)),
        vocabulary=int(text.vocab_size),
    )


def _bert_pool(text: Any) -> Pool | None:
    """Tell how a BERT-like model's tokens become one; None where that is a maximum or goes through a tanh."""
    pooler = type(text.pooler).__name__
    if pooler == "ClsPooler" and text.pooler.use_pooler_output and text.transformer.pooler is not None:
        return None
    pools: dict[str, Pool] = {"MeanPooler": "mean", "ClsPooler": "first", "ClsLastHiddenStatePooler": "first"}
    return pools.get(pooler)


def _first(encoded: Any) -> Tensor:
    return encoded[0] if isinstance(encoded, tuple) else encoded


def _nllb(tensors: BorrowedTensors, text: Any) -> Transformer:
    encoder, p = text.transformer, "text.transformer"
    pad, context = int(encoder.padding_idx), min(CONTEXT, int(text.context_length))
    table = tensors.take(f"{p}.embed_positions.weights")
    projection = None if isinstance(text.proj, nn.Identity) else tensors.linear("text.proj")
    return Transformer(
        embedding=WordEmbedding(
            tensors.take(f"{p}.embed_tokens.weight"),
            table[pad : pad + 1 + context],
            pad=pad,
            scale=float(encoder.embed_tokens.embed_scale),
            counted=True,
        ),
        ln_pre=None,
        blocks=tuple(_block(tensors, f"{p}.layers.{i}", layer) for i, layer in enumerate(encoder.layers)),
        ln_post=tensors.norm(f"{p}.layer_norm", encoder.layer_norm.eps),
        projection=None if projection is None else projection.weight.T,
        projection_bias=None if projection is None else projection.bias,
        heads=int(encoder.layers[0].self_attn.num_heads),
        activation="relu",
        pool="first",
        pool_before_norm=True,
        causal=False,
    )


def _block(tensors: BorrowedTensors, p: str, layer: Any) -> Block:
    query, key, value, out = (tensors.linear(f"{p}.self_attn.{name}_proj") for name in ("q", "k", "v", "out"))
    up, down = (tensors.linear(f"{p}.{name}") for name in ("fc1", "fc2"))
    return Block(
        ln1=tensors.norm(f"{p}.self_attn_layer_norm", layer.self_attn_layer_norm.eps),
        query=query,
        key=key,
        value=value,
        qkv=None,
        out=out,
        ln2=tensors.norm(f"{p}.final_layer_norm", layer.final_layer_norm.eps),
        up=up,
        down=down,
        scale_attention=None,
        scale_mlp=None,
    )
