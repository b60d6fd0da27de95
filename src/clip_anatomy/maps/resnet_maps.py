"""Maps of a CLIP-ResNet: its attention pool run again with every place of the picture as the query.

Tokens x_0 (the mean of all places) and x_i carry their position vectors; with q, k, v of the pool, s = d^(−1/2):

    raw        y_i = W_c Σ_j softmax_j(q_i · k_j s) v_j + b_c      every place is a query, as the mean token is in the model
    clearclip  softmax(q qᵀ s)                naclip  softmax(k kᵀ s + Gaussian)
    surgery    softmax(v vᵀ s)                CLIP Surgery's architecture surgery (Li et al. 2023, §3.2). Its released code also
                                              takes the class token from this path; here it comes from the model's own, as the
                                              paper has it
    maskclip   y_i = W_c (W_V f_i + b_V) + b_c    places alone: no position vectors and no mean token (Zhou et al. 2022, §3.2)

There is no residual stream and no MLP around the pool, so methods that keep either have no meaning here and are refused by name.

Gradient maps run the convolutions once; the gradients of all texts pass through the pool alone:

    gradcam   weights = mean over places of ∂cos/∂f, map = ReLU(f · weights), f = the last stage's map     (Selvaraju et al. 2017, §3)
    chefer    mean over heads of ReLU(∂logit/∂a ⊙ a), a = the mean token's row of the pool's attention     (Chefer et al. 2021)

Only one attention row reaches the embedding, so chefer's gradient is a closed form: with e the embedding, ê = e/‖e‖ and
g = (t − cos ê)/‖e‖ the gradient of the cosine with text t, ∂cos/∂a[h, i] = v[h, i] · W_c^hᵀ g; the logit is the cosine × logit scale.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.clip_surgery import contrasted
from clip_anatomy.maps.contrast import NEUTRAL, Against, Contrast, contrast_of
from clip_anatomy.maps.decomposition import DecompositionOptions
from clip_anatomy.maps.dense_attention import DenseAttention, gaussian, similarities
from clip_anatomy.maps.gradients import text_gradients, vjp_of
from clip_anatomy.maps.maskclip import check_probability, denoised, smoothed
from clip_anatomy.split.tokens import head_directions
from clip_anatomy.towers.operations import linear, widened
from clip_anatomy.towers.randomize_weights import map_tensors
from clip_anatomy.towers.resnet import ResNet, as_resnet, features, pool_tokens, run_pool, run_resnet

MOST_NUMBERS = 2**26  # of gradients at once: more texts are taken in turns
POOL_VARIANTS: dict[str, DenseAttention] = {
    "raw": DenseAttention(("qk",)),
    "maskclip": DenseAttention(("identity",)),
    "clearclip": DenseAttention(("qq",)),
    "naclip": DenseAttention(("kk",), neighbours=5.0),
    "surgery": DenseAttention(("vv",), class_row="original"),
}


def pool_path(
    resnet: ResNet, pixels: Float[Tensor, "image 3 row col"], variant: DenseAttention
) -> Float[Tensor, "image token embed"]:
    """Project every place into the joint space, not normalised; token 0 is the embedding itself, from the model's own path.

    Args:
        resnet: the image tower.
        pixels: preprocessed.
        variant: attention "qk", "qq", "kk", "vv", several of them, or "identity"; without residual and MLP.

    Raises:
        UnsupportedModel: an attention that needs what a ResNet does not have.
    """
    refuse(variant)
    with torch.no_grad():
        stage = features(resnet, pixels)
        tokens = pool_tokens(resnet, stage)
        total = torch.zeros(1, device=tokens.device, dtype=tokens.dtype)
        for kind in variant.attention:
            total = total + (
                _values(resnet, stage) if kind == "identity" else _attended(resnet, tokens, kind, variant, stage)
            )
        if variant.average:
            total = total / len(variant.attention)
        dense = linear(resnet.pool.out, total)
        return torch.cat([run_pool(resnet, tokens).embedding[:, None], dense], 1).float()


def refuse(variant: DenseAttention) -> None:
    """Raise UnsupportedModel for what the attention pool of a ResNet cannot do."""
    missing = [
        what
        for what, wanted in (
            ("a residual stream", variant.residual),
            ("an MLP behind its attention", variant.ffn),
            ("GEM's iterations", "gem" in variant.attention),
            ("an attention from outside", "given" in variant.attention),
        )
        if wanted
    ]
    if missing:
        raise UnsupportedModel(
            f"this attention wants {' and '.join(missing)}, which the attention pool of a CLIP-ResNet does not have. "
            "Type: DenseAttention(('qq',), residual=False, ffn=False), of qk, qq, kk, vv, identity"
        )


def _values(resnet: ResNet, stage: Float[Tensor, "image channel row col"]) -> Float[Tensor, "image token channel"]:
    return linear(resnet.pool.value, stage.flatten(2).transpose(1, 2))


def _attended(
    resnet: ResNet, tokens: Float[Tensor, "image token channel"], kind: str, variant: DenseAttention, stage: Tensor
) -> Float[Tensor, "image place channel"]:
    pool = resnet.pool
    layers = {"q": pool.query, "k": pool.key, "v": pool.value}
    x = {
        name: linear(layers[name], tokens).unflatten(2, (resnet.heads, resnet.d)).transpose(1, 2)
        for name in {*kind, "v"}
    }
    nearby = None
    if variant.neighbours is not None:
        nearby = gaussian((stage.shape[2], stage.shape[3]), variant.neighbours).to(tokens)[1:]
    scale = resnet.d**-0.5 * variant.temperature
    asks = x[kind[0]][:, :, 1:]  # the mean token's own row comes from the model's path
    mixed = F.scaled_dot_product_attention(asks, x[kind[1]], x["v"], attn_mask=nearby, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


def cosines(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: DenseAttention
) -> Float[Tensor, "image token text"]:
    """Compare every place with every text by cosine."""
    maps = similarities(pool_path(as_resnet(clip.vision), pixels, options), text)
    return maps - maps.mean(-1, keepdim=True) if options.minus_mean else maps


@dataclass(frozen=True)
class PoolSurgeryOptions:
    """What is subtracted from every text; see `SurgeryOptions`."""

    ALONE: ClassVar[str] = ""
    against: Against | Contrast = field(default=NEUTRAL, compare=False)


def surgery(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: PoolSurgeryOptions
) -> Float[Tensor, "image token text"]:
    """Run v–v attention in the pool, then compare with the texts; with each other by feature surgery."""
    tokens = pool_path(as_resnet(clip.vision), pixels, POOL_VARIANTS["surgery"])
    return contrasted(tokens, text, contrast_of(clip, options.against))[:, 1:]


@dataclass(frozen=True)
class PoolMaskclipOptions:
    """MaskCLIP's two refinements, off by default: see `maskclip.MaskclipOptions`."""

    denoise: float | None = None
    smooth_keys: bool = False

    def __post_init__(self) -> None:
        """Refuse a probability that is none."""
        check_probability(self.denoise)


def maskclip(
    clip: Clip,
    pixels: Float[Tensor, "image 3 row col"],
    text: Float[Tensor, "text embed"],
    options: PoolMaskclipOptions,
) -> Float[Tensor, "image token text"]:
    """Compare every place's value with every text by cosine, refined by the options."""
    resnet = as_resnet(clip.vision)
    with torch.no_grad():
        stage = features(resnet, pixels)
        dense = linear(resnet.pool.out, _values(resnet, stage)).float()
        maps = F.normalize(dense, dim=-1) @ F.normalize(text.float(), dim=-1).T
        if options.denoise is not None:
            maps = denoised(maps, clip.logit_scale, options.denoise)
        if options.smooth_keys:
            maps = smoothed(maps, linear(resnet.pool.key, stage.flatten(2).transpose(1, 2)), clip.logit_scale)
    return maps


def decomposition(
    clip: Clip,
    pixels: Float[Tensor, "image 3 row col"],
    text: Float[Tensor, "text embed"],
    options: DecompositionOptions,
) -> Float[Tensor, "image token text"]:
    """Split each cosine by place, summed over the selected heads of the pool.

    share[place, text] = Σ_h a[h, place] v[h, place] · (W_c^h u_text) / ‖embedding‖: one product over all heads side by side.
    """
    resnet = as_resnet(clip.vision)
    unit = contrast_of(clip, options.against).subtracted_from(F.normalize(text.float(), dim=-1))
    with torch.no_grad():
        pooled = run_resnet(resnet, pixels)
        attention = pooled.attention[..., 1:].float()
        if options.layers is not None or options.heads is not None:
            attention = attention * options.selected(resnet)[0].to(attention)[:, None]
        value = linear(resnet.pool.value, pooled.tokens[:, 1:]).float().unflatten(2, (resnet.heads, resnet.d))
        weighed = (value * attention.transpose(1, 2)[..., None]).flatten(2)
        written = weighed @ head_directions(resnet, 0, unit).flatten(0, 1)
        return written / pooled.embedding.float().norm(dim=-1).view(-1, 1, 1)


def attention(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: object
) -> Float[Tensor, "image token text"]:
    """Average the mean token's attention to each place over the heads: the same for every text."""
    weights = run_resnet(as_resnet(clip.vision), pixels).attention[..., 1:].float().mean(1)
    return weights[..., None].expand(-1, -1, len(text)).clone()


def gradcam(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: object
) -> Float[Tensor, "image token text"]:
    """Draw Grad-CAM on the last stage's map, which is what the method was made for."""
    resnet = as_resnet(clip.vision)
    with torch.no_grad():
        stage = widened(features(resnet, pixels))
    resnet = replace(resnet, pool=map_tensors(resnet.pool, widened))  # its gradients lie below what float16 holds
    unit = F.normalize(text.to(stage.dtype), dim=-1)
    vjp, _ = vjp_of(lambda x: F.normalize(run_pool(resnet, pool_tokens(resnet, x)).embedding, dim=-1), stage)
    maps: list[Tensor] = []
    for some in unit.split(max(1, MOST_NUMBERS // stage.numel())):
        (gradients,) = text_gradients(vjp, some, len(stage))  # [text, image, channel, row, col]
        weights = gradients.float().mean((3, 4))
        maps.append(torch.einsum("bcrk,tbc->brkt", stage.float(), weights).relu_().flatten(1, 2))
    return torch.cat(maps, -1)


def chefer(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: object
) -> Float[Tensor, "image token text"]:
    """Multiply the attention of the pool with the gradient of the logit by it, where that is positive."""
    resnet = as_resnet(clip.vision)
    with torch.no_grad():
        pooled = run_resnet(resnet, pixels)
        value = linear(resnet.pool.value, pooled.tokens[:, 1:]).float().unflatten(2, (resnet.heads, resnet.d))
        length = pooled.embedding.float().norm(dim=-1)
        own = pooled.embedding.float() / length[:, None]
        unit = F.normalize(text.float(), dim=-1)
        weighed = value.transpose(1, 2) * pooled.attention[..., 1:, None]  # [image, head, token, d]
        toward = weighed @ head_directions(resnet, 0, unit)  # [image, head, token, text]
        itself = torch.einsum("bhnd,hdb->bhn", weighed, head_directions(resnet, 0, own))
        gradient = (toward - itself[..., None] * (own @ unit.T)[:, None, None]) / length.view(-1, 1, 1, 1)
        return gradient.relu_().mean(1) * clip.logit_scale
