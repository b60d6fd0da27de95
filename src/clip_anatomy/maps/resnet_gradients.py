"""Gradient maps of a CLIP-ResNet: one forward of the convolutions, then the slopes of all texts through the pool alone.

    gradcam   weights = mean over places of ∂cos/∂f, map = ReLU(f · weights), f = the last stage's map     (Selvaraju et al. 2017, §3)
    chefer    mean over heads of ReLU(∂logit/∂a ⊙ a), a = the mean token's row of the pool's attention     (Chefer et al. 2021)

Only one attention row reaches the embedding, so chefer's slope is a closed form: with e the embedding, ê = e/‖e‖ and
g = (t − cos ê)/‖e‖ the slope of the cosine with text t, ∂cos/∂a[h, i] = v[h, i] · W_c^hᵀ g; the logit is the cosine × logit scale.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.method import Method, Options
from clip_anatomy.maps.vjp import graph_of, pulled
from clip_anatomy.split.tokens import head_directions
from clip_anatomy.towers.forward import linear
from clip_anatomy.towers.resnet import as_resnet, features, pool_tokens, run_pool, run_resnet

MOST_NUMBERS = 2**26  # of slopes at once: more texts are taken in turns


def gradcam(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: Options
) -> Float[Tensor, "image token text"]:
    """Grad-CAM on the last stage's map, which is what the method was made for."""
    resnet = as_resnet(clip.vision)
    with torch.no_grad():
        seen = features(resnet, pixels)
    unit = F.normalize(text.to(seen.dtype), dim=-1)
    pull, _ = graph_of(lambda x: F.normalize(run_pool(resnet, pool_tokens(resnet, x)).embedding, dim=-1), seen)
    maps: list[Tensor] = []
    for some in unit.split(max(1, MOST_NUMBERS // seen.numel())):
        (slopes,) = pulled(pull, some, len(seen))  # [text, image, channel, row, col]
        weights = slopes.float().mean((3, 4))
        maps.append(torch.einsum("bcrk,tbc->brkt", seen.float(), weights).relu_().flatten(1, 2))
    return torch.cat(maps, -1)


def chefer(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: Options
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
        slope = (toward - itself[..., None] * (own @ unit.T)[:, None, None]) / length.view(-1, 1, 1, 1)
        return slope.relu_().mean(1) * clip.logit_scale


GRADIENTS: dict[str, Method] = {
    "gradcam": Method(gradcam, "last stage's map, weighed by the gradient of the cosine (Grad-CAM)", alone=True),
    "chefer": Method(chefer, "attention of the pool times the gradient of the logit (Chefer)", alone=True),
}
