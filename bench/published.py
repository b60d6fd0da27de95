"""The published algorithms of this field, written out in our own words: their arithmetic, and what they hold in memory.

Each function does what a paper's released code does, in the same order and with tensors of the same shapes, on the modules of an open_clip
model. Where an order is not fixed by what is held in memory, the cheaper one is taken. They are what `against_published.py` measures beside ours. Sources: Gandelsman, Efros, Steinhardt (ICLR 2024; heads, tokens), the same (ICLR
2025; second order), Bu, Gandelsman (NeurIPS 2025; neurons × heads), Li et al. (2023; CLIP Surgery), Baniecki et al. (NeurIPS 2025; FIxLIP).
TextSpan is transcribed in `textspan.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_of(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values [image, head, token, d] of a block, and W_O [width, head, d]."""
    heads = block.attn.num_heads
    projected = (block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, -1)
    q, k, v = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in projected)
    return q, k, v, block.attn.out_proj.weight.unflatten(1, (heads, -1))


def softmax_of(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def decomposition(visual: Any, pixels: Tensor, *, tokens: bool) -> Tensor:
    """What every head wrote [image, layer, head, embed], or from which token [image, layer, token, head, embed], divided by ‖embedding‖.

    With tokens every block builds [image, query, token, head, width] and keeps the row of the class token.
    """
    x, kept = visual._embeds(pixels), []
    blocks = visual.transformer.resblocks
    for block in blocks:
        q, k, v, out = attention_of(block, x)
        bias, heads = block.attn.out_proj.bias, q.shape[1]
        weights = softmax_of(q, k)
        if tokens:
            read = torch.einsum("ihqt,ihtd->iqthd", weights, v)
            wrote = torch.einsum("iqthd,whd->iqthw", read, out)
            x = x + wrote.sum((2, 3)) + bias
        else:
            wrote = torch.einsum("ihqd,whd->iqhw", weights @ v, out)
            x = x + wrote.sum(2) + bias
        kept.append(wrote[:, 0] + bias / (heads * (x.shape[1] if tokens else 1)))
        x = x + block.mlp(block.ln_2(x))
    parts, last = torch.stack(kept, 1), visual.ln_post
    shares = (2 * len(blocks) + 1) * heads * (x.shape[1] if tokens else 1)
    ahead = [len(x)] + [1] * (parts.dim() - 1)
    row = x[:, 0]
    mean, sigma = row.mean(-1).view(ahead), (row.var(-1, unbiased=False) + last.eps).sqrt().view(ahead)
    joint = ((parts - mean / shares) / sigma * last.weight + last.bias / shares) @ visual.proj
    return joint / (last(row) @ visual.proj).norm(dim=-1).view(ahead)


def second_order(visual: Any, pixels: Tensor, layer: int) -> Tensor:
    """What every neuron of an MLP writes through all later heads [image, neuron, embed], divided by ‖embedding‖: one image after the other.

    For every later head [token, neuron, width] is built: what each neuron wrote at each token, normalised as the head's layer reads it.
    """
    return torch.stack([_second_order(visual, one[None], layer) for one in pixels])


def _second_order(visual: Any, pixels: Tensor, layer: int) -> Tensor:
    x, blocks = visual._embeds(pixels), visual.transformer.resblocks
    total: Any = 0
    down, activations = blocks[layer].mlp.c_proj, x.new_zeros(0)
    for at, block in enumerate(blocks):
        q, k, v, out = attention_of(block, x)
        weights = softmax_of(q, k)
        if at > layer:
            terms = (2 * at + 1) * len(down.weight[0])
            stream = x[0]
            deviation = (stream.var(-1, unbiased=False) + block.ln_1.eps).sqrt()
            values = block.attn.in_proj_weight[2 * x.shape[-1] :].unflatten(0, (q.shape[1], -1))
            biases = block.attn.in_proj_bias[2 * x.shape[-1] :].unflatten(0, (q.shape[1], -1))
            through: Any = 0
            for head in range(q.shape[1]):
                wrote = activations[:, :, None] * down.weight.T + down.bias / len(
                    down.weight[0]
                )  # [token, neuron, width]
                read = (wrote - stream.mean(-1)[:, None, None] / terms) / deviation[:, None, None]
                value = (read * block.ln_1.weight + block.ln_1.bias / terms) @ values[head].T + biases[head] / terms
                mixed = torch.einsum("t,tnd->nd", weights[0, head, 0], value)
                through = through + mixed @ out[:, head].T + block.attn.out_proj.bias / (terms * q.shape[1])
            shares = terms * (2 * len(blocks) + 1)
            total = total + torch.stack([through, torch.full_like(through, 1 / shares)])
        x = x + torch.einsum("ihqd,whd->iqw", weights @ v, out) + block.attn.out_proj.bias
        middle = block.ln_2(x)
        if at == layer:
            activations = block.mlp.gelu(block.mlp.c_fc(middle))[0]
        x = x + block.mlp(middle)
    wrote, share = total
    row, last = x[0, 0], visual.ln_post
    sigma = (row.var(unbiased=False) + last.eps).sqrt()
    joint = ((wrote - row.mean() * share) / sigma * last.weight + last.bias * share) @ visual.proj
    return joint / (last(row) @ visual.proj).norm()


def neuron_heads(visual: Any, pixels: Tensor) -> Tensor:
    """What every (head, neuron) of a CLIP-ResNet's attention pool adds [image, head, neuron, embed]: [head, token, d, neuron] an image."""
    pool, kept = visual.attnpool, []
    heads, channels = pool.num_heads, pool.v_proj.in_features
    value = pool.v_proj.weight.unflatten(0, (heads, -1))  # [head, d, neuron]
    out = pool.c_proj.weight.unflatten(1, (heads, -1))
    for one in pixels:
        features = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(one[None])))))
        tokens = features.flatten(2)[0].T
        tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding
        q, k = (
            F.linear(tokens, p.weight, p.bias).unflatten(-1, (heads, -1)).transpose(0, 1)
            for p in (pool.q_proj, pool.k_proj)
        )
        weights = softmax_of(q[:, :1], k)[:, 0]  # [head, token]
        values = value[:, None] * tokens[None, :, None, :]  # [head, token, d, neuron]
        values = values + pool.v_proj.bias.unflatten(0, (heads, -1))[:, None, :, None] / channels
        mixed = torch.einsum("ht,htdn->hnd", weights, values)
        kept.append(torch.einsum("hnd,ehd->hne", mixed, out) + pool.c_proj.bias / (heads * channels))
    return torch.stack(kept)


def surgery(visual: Any, pixels: Tensor, texts: Tensor, depth: int = 6) -> Tensor:
    """Similarities [image, token, text] of CLIP Surgery: a second path of value–value attention through the last blocks, then feature surgery.

    Feature surgery builds [token, text, embed] for each image.
    """
    x = visual._embeds(pixels)
    blocks = visual.transformer.resblocks
    path = x
    for at, block in enumerate(blocks):
        q, k, v, out = attention_of(block, x)
        bias = block.attn.out_proj.bias
        if at >= len(blocks) - depth:
            path = path + torch.einsum("ihqd,whd->iqw", softmax_of(v, v) @ v, out) + bias
        x = x + torch.einsum("ihqd,whd->iqw", softmax_of(q, k) @ v, out) + bias
        x = x + block.mlp(block.ln_2(x))
        if at < len(blocks) - depth:
            path = x
    both = torch.cat([x[:, :1], path[:, 1:]], 1)
    features = F.normalize(visual.ln_post(both) @ visual.proj, dim=-1)
    return torch.stack([_feature_surgery(one, texts) for one in features])


def _feature_surgery(features: Tensor, texts: Tensor) -> Tensor:
    weights = (2 * features[0] @ texts.T).softmax(-1)
    weights = weights / weights.mean()
    products = weights[None, :, None] * features[:, None] * texts[None]  # [token, text, embed]
    return (products - products.mean(1, keepdim=True)).sum(-1)


def fixlip_fit(one: Tensor, other: Tensor, values: Tensor) -> Tensor:
    """Interactions [player of one, player of other] of the second-order polynomial that fits the game's values best.

    All players of both sides and all pairs of them are columns, every product of a mask of one with a mask of the other a row.

    Args:
        one: masks [mask, player] of one side.
        other: of the other.
        values: of the game, [mask of one, mask of other].
    """
    rows = torch.cat([one.repeat_interleave(len(other), 0), other.repeat(len(one), 1)], 1).double()
    players = rows.shape[1]
    left, right = torch.triu_indices(players, players, 1)
    design = torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), rows, rows[:, left] * rows[:, right]], 1)
    fitted = torch.linalg.lstsq(design, values.double().flatten()[:, None], driver="gelsd").solution[:, 0]
    pairs = torch.zeros(players, players, dtype=torch.float64)
    pairs[left, right] = fitted[1 + players :]
    return pairs[: one.shape[1], one.shape[1] :]


def greyed(pixels: Tensor, masks: Tensor, patch: int) -> Tensor:
    """Pictures with the patches that a mask takes away in grey: [mask, 3, row, col] of one picture [3, row, col]."""
    side = pixels.shape[-1] // patch
    there = masks.view(-1, 1, side, side).float().repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return pixels * there
