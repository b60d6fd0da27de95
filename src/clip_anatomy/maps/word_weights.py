"""`word_weights`: Grad-ECLIP on the text side: which words of a caption the cosine with a picture hangs on.

    o_l = Σ_i a_i v_i      what the end-of-text row gathered in block l, heads side by side, before the out-projection
    g_l = ∂cos/∂o_l        through everything behind it
    E_i = ReLU(Σ_l Σ_d g_ld v_lid λ_li)      λ: cosine of query and key after the out-projection, stretched to 0 … 1

Zhao et al., ICML 2024, §3.3, over the last blocks; divided by the sum over the words. One forward of the caption serves all pictures: a
vector–Jacobian product each. λ is stretched over the tokens that the row can see; the released code stretches it over the padding, too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.data.picture_batches import Pictures, picture_batches
from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.maps.gradients import text_gradients, vjp_of, widened_from
from clip_anatomy.maps.heatmap import BATCH
from clip_anatomy.maps.word_maps import split_words
from clip_anatomy.public_functions import public
from clip_anatomy.results import Compact
from clip_anatomy.towers.embedding import embed_inputs
from clip_anatomy.towers.forward import walk
from clip_anatomy.towers.operations import before_attention, linear, mlp, project_in, project_out, widened
from clip_anatomy.towers.readout import Readout, embed_readout, readout_of, visible_to_row
from clip_anatomy.towers.transformer import Transformer, as_transformer

__all__ = ["WordWeights", "word_weights"]


@public
@dataclass(frozen=True, repr=False)
class WordWeights(Compact):
    """How much the cosine with each picture hangs on each word of a caption.

    Attributes:
        words: of the caption, "a (2)" for the second "a".
        values: shares of 1; a row of zeros where no word speaks for the picture.
        left_out: words that did not fit into the model's context.
    """

    words: tuple[str, ...]
    values: Float[Tensor, "image word"] = field(repr=False)
    left_out: tuple[str, ...] = ()


@public
def word_weights(
    clip: Clip | ModelSource,
    images: Pictures,
    sentence: str,
    *,
    layers: int = 1,
    key_similarity: bool = True,
    heads: int | None = None,
) -> WordWeights:
    """Say which words of a caption its match with each picture hangs on (Grad-ECLIP, text side).

    `word_maps` shows where each word is answered; this weighs the words themselves, by gradients.

    Args:
        clip: an opened model with a tokenizer.
        images: as for `heatmap`, each through the model's own resize and crop.
        sentence: one text.
        layers: how many of the last blocks are added up.
        key_similarity: weigh each token by λ; without it the paper's "w/o ksim".
        heads: heads of these blocks' attention; None for the model's own. The released code runs them with heads=1.

    Returns:
        A share for every word. Start and end marks have none.

    Raises:
        BadText: a sentence without a word.
        BadSpec: no block, or a number of heads that does not divide the width.
        UnsupportedModel: a text tower that is not read out at one token, or that normalises its stream (BERT).

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = word_weights(ca.load("demo"), examples()[:2], "a bird on the water")
        >>> result.words, [round(share, 3) for share in result.values.sum(1).tolist()]
        (('a', 'bird', 'on', 'the', 'water'), [1.0, 1.0])
    """
    clip = as_clip(clip)
    tower = as_transformer(clip.text_tower)
    if layers < 1:
        raise BadSpec(f"layers={layers}: 1 or more were expected. Type: layers=1")
    heads = tower.heads if heads is None else heads
    if heads < 1 or (tower.heads * tower.d) % heads:
        raise BadSpec(f"heads={heads} does not divide the width {tower.heads * tower.d}. Type: heads={tower.heads}")
    ids, names, spans, cut = split_words(clip, sentence)
    last = _LastBlocks.of(tower, ids, min(layers, tower.layers), heads)
    rows: list[Tensor] = []
    places: list[int] = []
    for batch in picture_batches(clip, images, None, BATCH):
        unit = F.normalize(widened(clip.vision.encode(batch.pixels)), dim=-1)
        tokens = last.weights(unit.to(tower.device), key_similarity=key_similarity)
        rows.append(torch.stack([tokens[:, span].sum(1) for span in spans], 1))
        places += batch.places
    values = torch.cat(rows)[torch.tensor(places).argsort()]  # batches are of one shape each, not in order
    return WordWeights(names, (values / values.sum(1, keepdim=True).clamp_min(1e-30)).cpu(), cut)


@dataclass(frozen=True)
class _LastBlocks:
    """The last blocks of a text tower on one caption: what their attention read, and the gradient of the embedding by what it gathered."""

    read: tuple[
        tuple[Tensor, Tensor, Tensor], ...
    ]  # query, key after the out-projection, and value of each, [text token width]
    visible: Bool[Tensor, " token"]
    readout: Readout
    vjp: Callable[[Tensor], tuple[Tensor, ...]]

    @staticmethod
    def of(tower: Transformer, ids: Tensor, layers: int, heads: int) -> "_LastBlocks":
        x = embed_inputs(tower, ids)
        readout, first = readout_of(tower, ids, x.shape[1]), tower.layers - layers
        if readout.index is None:
            raise UnsupportedModel(
                "word weights are read at the end-of-text token, and this text tower is read out another way. Type: word_maps"
            )
        with torch.no_grad():
            for step in walk(replace(tower, blocks=tower.blocks[:first]), x, readout, fold_last=False):
                assert step.after is not None
                x = step.after
        tower, x = widened_from(tower, first), widened(x)
        here = torch.arange(x.shape[1], device=x.device) == readout.index[:, None]
        sees = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        sees = sees.tril() if tower.causal else sees
        sees = sees if readout.visible is None else sees & readout.visible[0]
        read: list[tuple[Tensor, Tensor, Tensor]] = []

        def rest(*added: Tensor) -> Tensor:
            y = x
            for block, one in zip(tower.blocks[first:], added, strict=True):
                projected = project_in(tower, block, before_attention(block, y), readout.rotation)
                q, k, v = (z.transpose(1, 2).flatten(2) for z in projected)
                read.append((linear(block.out, q), linear(block.out, k), v))
                split = [z.unflatten(2, (heads, -1)).transpose(1, 2) for z in (q, k, v)]
                scores = widened(split[0]) @ widened(split[1]).transpose(-1, -2) * split[0].shape[-1] ** -0.5
                looks = scores.masked_fill(~sees, float("-inf")).softmax(-1).to(v.dtype)
                mixed = (looks @ split[2]).transpose(1, 2).flatten(2)
                middle = y + project_out(block, mixed + here[..., None] * one[:, None])
                y = middle + mlp(tower, block, y, middle)
            return F.normalize(widened(embed_readout(tower, readout.rows(y), None, readout)), dim=-1)

        zeros = [x.new_zeros(1, tower.heads * tower.d) for _ in range(layers)]
        vjp, _ = vjp_of(rest, *zeros)
        held = tuple((q.detach(), k.detach(), v.detach()) for q, k, v in read)
        visible = visible_to_row(tower, readout, x.shape[1])
        return _LastBlocks(held, visible[0] if visible is not None else torch.ones_like(here[0]), readout, vjp)

    def weights(self, unit: Float[Tensor, "image embed"], *, key_similarity: bool) -> Float[Tensor, "image token"]:
        gradients = text_gradients(self.vjp, unit, 1)  # each [image, 1, width]
        total = torch.zeros(len(unit), len(self.visible), dtype=unit.dtype, device=unit.device)
        for slope, (query, key, value) in zip(gradients, self.read, strict=True):
            near = self.visible.to(unit.dtype)
            if key_similarity:
                cosine = F.cosine_similarity(widened(self.readout.rows(query))[:, None], widened(key), dim=-1)[0]
                low, high = cosine[self.visible].aminmax()
                near = near * (cosine - low) / (high - low).clamp_min(1e-12)
            total += widened(slope[:, 0]) @ widened(value[0]).T * near
        return total.relu_()
