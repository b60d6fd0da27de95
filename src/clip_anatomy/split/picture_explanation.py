"""One picture and several texts: each cosine split by part and by patch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput, ModelError
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.results import Compact
from clip_anatomy.split.parts import decompose

DIGITS = 7  # significant digits of stored numbers: what float32 holds


class Share(NamedTuple):
    """One part of the model, or one patch of the picture, and its share of a cosine (direct logit attribution)."""

    name: str
    value: float

    @property
    def signed(self) -> str:
        """The value with its sign and a true minus."""
        return signed(self.value)


@dataclass(frozen=True, repr=False)
class PictureExplanation(Compact):
    """The cosines of one picture with several texts, split.

    cosine = heads + mlps + input_embedding + bias, and heads = patches + class_token. Both sums are exact.

    Attributes:
        cosine: between picture and text.
        probability: by the model's own rule, `Clip.probabilities`: over these texts alone, or of each text by itself.
        heads: the share of each head, over all tokens that it read.
        mlps: the share of each MLP (a CLIP-ResNet has none behind its one layer of heads); of a model with an attention pool the last
            is the MLP behind the pool.
        input_embedding: what was there before the first layer: nearly the same for every picture.
        bias: what LayerNorm and the heads' biases add: nearly the same for every picture.
        patches: what the heads read from each patch, over all layers and heads.
        class_token: what the heads read from the class token itself and from registers (from the mean token in a CLIP-ResNet); zero
            in models that have neither.
        sigmoid: whether each probability is of its text by itself, not among these.
        against: None, or what was subtracted from every text: "the mean of the other texts".
        versus: None, or what these numbers are the difference to: another picture, or another model. Cosine and parts are differences then.
        cosines: of this one and of the other, where it is a difference.
        other_patches: the map of another picture, whose sum is taken away from `heads` as `patches` are added: heads = patches −
            other_patches + class_token. None where there is no other picture.
    """

    cosine: Float[Tensor, " text"]
    probability: Float[Tensor, " text"]
    heads: Float[Tensor, "layer head text"]
    mlps: Float[Tensor, "mlp text"]
    input_embedding: Float[Tensor, " text"]
    bias: Float[Tensor, " text"]
    patches: Float[Tensor, "row col text"]
    class_token: Float[Tensor, " text"]
    against: str | None = None
    sigmoid: bool = False
    versus: str | None = None
    cosines: tuple[Float[Tensor, " text"], Float[Tensor, " text"]] | None = None
    other_patches: Float[Tensor, "row col text"] | None = None

    @property
    def total(self) -> Float[Tensor, " text"]:
        """Sum of all parts in float64."""
        heads, mlps = self.heads.double().sum((0, 1)), self.mlps.double().sum(0)
        return heads + mlps + self.input_embedding.double() + self.bias.double()

    @property
    def one_part(self) -> bool:
        """Whether the tower has no heads: its places are averaged, or nothing of it is split."""
        return len(self.heads.flatten(0, 1)) <= 1 and not len(self.mlps)

    @property
    def residue(self) -> Float[Tensor, " text"]:
        """The cosine minus the sum of the parts: float error."""
        return self.cosine.double() - self.total

    def contrast(self) -> "PictureExplanation":
        """Subtract from every number its mean over the other texts: what speaks for this text more than for the others.

        The split is linear, so these parts sum to the difference of the cosines, exactly as before.

        Raises:
            BadInput: there is one text only.
        """
        count = self.cosine.shape[0]
        if count < 2:
            raise BadInput('one text cannot be compared with others. Type a second one: texts="..."')

        def less(x: Tensor) -> Tensor:
            return (count * x - x.sum(-1, keepdim=True)) / (count - 1)

        parts = ("cosine", "heads", "mlps", "input_embedding", "bias", "patches", "class_token")
        return replace(
            self,
            **{part: less(getattr(self, part)) for part in parts},
            other_patches=None if self.other_patches is None else less(self.other_patches),
            cosines=None if self.cosines is None else (less(self.cosines[0]), less(self.cosines[1])),
            against="the mean of the other texts",
        )

    def ranked_parts(self, text: int) -> list[Share]:
        """Rank heads and MLPs by their share of one cosine, the largest first; where all is one part, the places that it sums."""
        layers, heads, _ = self.heads.shape
        if self.one_part:
            return self.ranked_patches(text) or [Share("the whole embedding", float(self.cosine[text]))]
        shares = [
            Share(f"layer {layer} head {head}", value)
            for layer, row in enumerate(self.heads[..., text].tolist())
            for head, value in enumerate(row)
        ]
        names = [f"layer {layer} MLP" if layer < layers else "pool MLP" for layer in range(len(self.mlps))]
        shares += [Share(name, value) for name, value in zip(names, self.mlps[:, text].tolist(), strict=True)]
        assert len(shares) == layers * heads + len(self.mlps)
        return sorted(shares, key=lambda share: -share.value)

    def ranked_patches(self, text: int) -> list[Share]:
        """Rank patches by what the heads read from them toward one text, the largest first; none where nothing is split."""
        if not len(self.heads):
            return []
        shares = [
            Share(f"patch row {row} col {col}", value)
            for row, values in enumerate(self.patches[..., text].tolist())
            for col, value in enumerate(values)
        ]
        return sorted(shares, key=lambda share: -share.value)

    def layers(self, text: int) -> Float[Tensor, "layer 2"]:
        """Return the share of the attention and of the MLP of each layer; the MLP behind an attention pool is of none."""
        heads = self.heads[..., text].sum(1)
        return torch.stack([heads, self.mlps[: len(heads), text] if len(self.mlps) else torch.zeros_like(heads)], 1)


def explain_pixels(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], texts: Float[Tensor, "text embed"]
) -> list[PictureExplanation]:
    """Split the cosines of pictures with texts by part and by place.

    Source: Gandelsman et al., "Interpreting CLIP's Image Representation via Text-Based Decomposition" (ICLR 2024), §3 and §5;
    here each part is centred by its own mean (convention "centered").

    Args:
        clip: an opened model.
        pixels: preprocessed pictures.
        texts: text embeddings of any length.

    Returns:
        One `PictureExplanation` per picture, on the CPU.

    Raises:
        ModelError: the embeddings are not finite.
    """
    parts = decompose(clip, pixels, texts=texts)
    toward, tokens = parts.toward(texts), parts.tokens(texts)
    if not bool(toward.cosine.isfinite().all()):
        raise ModelError(
            f"{clip.name} gives embeddings that are not numbers (NaN or infinite). Type: clip-anatomy check {clip.name}"
        )
    by_token = tokens.sum((1, 2)).cpu()  # [image, token, text]
    grid = patch_grid(pixels.shape, clip.patch)
    own = clip.vision.own
    probability = clip.probabilities(toward.cosine)
    return [
        PictureExplanation(
            cosine=toward.cosine[i].cpu(),
            probability=probability[i].cpu(),
            heads=toward.heads[i].cpu(),
            mlps=toward.mlps[i].cpu(),
            input_embedding=toward.input_embedding[i].cpu(),
            bias=toward.bias[i].cpu(),
            patches=by_token[i, own:].unflatten(0, grid),
            class_token=by_token[i, :own].sum(0),
            sigmoid=clip.logit_bias is not None,
        )
        for i in range(len(pixels))
    ]


def sink_patch(explanation: PictureExplanation, share: float = 0.3) -> tuple[int, int, float] | None:
    """Find the patch that holds much of the map of every text, if there is one: an attention sink, not a place.

    Source: Darcet et al., "Vision Transformers Need Registers" (ICLR 2024): tokens without content store global information.

    Args:
        explanation: the explanation.
        share: of the sum of absolute values, in the text where the patch holds least.

    Returns:
        Row, column and share of the patch, or None.
    """
    size = explanation.patches.double().abs()
    least = (size / size.sum((0, 1)).clamp(min=1e-30)).amin(-1)  # [row, col]
    best = int(least.argmax())
    row, col = divmod(best, least.shape[1])
    if least.numel() < 25 or float(least[row, col]) < share:
        return None
    return row, col, float(f"{float(least[row, col]):.3g}")


def strongest_region(patches: Tensor) -> tuple[str, float]:
    """Say which ninth of a map holds most of what is positive, and its share of it."""
    rows, cols = patches.shape
    yes = patches.double().clamp(min=0)
    row = ((2 * torch.arange(rows) + 1) * 3 // (2 * rows))[:, None].expand(rows, cols)
    col = ((2 * torch.arange(cols) + 1) * 3 // (2 * cols))[None].expand(rows, cols)
    sums = torch.zeros(9, dtype=torch.float64).index_add_(0, (3 * row + col).flatten(), yes.flatten())
    best = int(sums.argmax())
    lines = (
        "upper left",
        "top",
        "upper right",
        "left side",
        "middle",
        "right side",
        "lower left",
        "bottom",
        "lower right",
    )
    return lines[best], float(sums[best] / sums.sum().clamp(min=1e-30))


def summands(explanation: PictureExplanation, text: int) -> list[Share]:
    """Return the sum that makes one cosine, in six lines or seven; in four for a CLIP-ResNet, where nothing but heads writes."""
    patches: Float[Tensor, "row col"] = explanation.patches[..., text].double()
    reading = "" if explanation.one_part else "heads reading "
    places = [
        Share(f"{reading}patches that say yes", float(patches.clamp(min=0).sum())),
        Share(f"{reading}patches that say no", float(patches.clamp(max=0).sum())),
    ]
    if explanation.other_patches is not None:
        places.append(
            Share(
                f"{reading}the other picture",
                -float(explanation.other_patches[..., text].double().sum()),
            )
        )
    if not len(explanation.heads):
        return [Share("the whole embedding", float(explanation.total[text]))]
    if explanation.one_part:
        return [*places, Share("biases", float(explanation.bias[text]))]
    if not len(explanation.mlps):
        mean = Share("heads reading the mean of all places", float(explanation.class_token[text]))
        return [*places, mean, Share("biases", float(explanation.bias[text]))]
    layers, own = len(explanation.heads), explanation.class_token
    pool = [Share("MLP behind the pool", float(value)) for value in explanation.mlps[layers:, text]]
    return [
        *places,
        *([Share("heads reading the class token", float(own[text]))] if own.any() else []),
        Share("MLPs", float(explanation.mlps[:layers, text].double().sum())),
        *pool,
        Share("input embedding", float(explanation.input_embedding[text])),
        Share("biases", float(explanation.bias[text])),
    ]


def signed(value: float, digits: int = 4) -> str:
    """Write a number as people read it: +0.0123, −0.0040."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def explanation_dict(explanation: PictureExplanation, texts: Sequence[str], largest: int = 5) -> list[dict[str, Any]]:
    """Return one dictionary per text, ready for JSON: all parts, their sum and residue, the largest shares.

    Args:
        explanation: the explanation.
        texts: the texts asked, in its order.
        largest: how many shares to name on either side.
    """
    contrast = explanation.contrast() if len(texts) > 1 else None
    return [
        {
            "text": text,
            **_cosines(explanation, k),
            "probability": _plain(explanation.probability[k]),
            "sum": _plain(explanation.total[k]),
            "residue": _plain(explanation.residue[k]),
            "heads": _plain(explanation.heads[..., k]),
            "mlps": _plain(explanation.mlps[:, k]),
            "input_embedding": _plain(explanation.input_embedding[k]),
            "bias": _plain(explanation.bias[k]),
            "patches": _plain(explanation.patches[..., k]),
            **(
                {}
                if explanation.other_patches is None
                else {"other_patches": _plain(explanation.other_patches[..., k])}
            ),
            "class_token": _plain(explanation.class_token[k]),
            "yes_and_no": _largest(explanation, k, largest),
            "against_other_texts": None
            if contrast is None
            else {"cosine": _plain(contrast.cosine[k]), "yes_and_no": _largest(contrast, k, largest)},
        }
        for k, text in enumerate(texts)
    ]


def _cosines(explanation: PictureExplanation, text: int) -> dict[str, Any]:
    if explanation.cosines is None:
        return {"cosine": _plain(explanation.cosine[text])}
    own, other = (_plain(each[text]) for each in explanation.cosines)
    return {"cosine": own, "cosine_of_versus": other, "difference": _plain(explanation.cosine[text])}


def _largest(explanation: PictureExplanation, text: int, count: int) -> dict[str, Any]:
    def ends(shares: list[Share]) -> tuple[list[Any], list[Any]]:
        yes = [[v.name, _plain(v.value)] for v in shares[:count] if v.value > 0]
        return yes, [[v.name, _plain(v.value)] for v in shares[::-1][:count] if v.value < 0]

    (yes, no), (yes_places, no_places) = ends(explanation.ranked_parts(text)), ends(explanation.ranked_patches(text))
    return {"yes": yes, "no": no, "yes_patches": yes_places, "no_patches": no_places}


def _plain(value: Any) -> Any:
    """Round numbers to what float32 holds, in lists nested like the axes."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return float(f"{value:.{DIGITS}g}")
