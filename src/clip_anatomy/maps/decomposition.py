"""Maps by the exact split: what the heads read from each patch, as shares of the cosine (Gandelsman et al. 2024, §4.3).

Summed over heads while the tower runs. With a[h, token] the readout row's attention and u = text carried back to the residual
stream (`linear.pull_back`), one layer's share of the map is

    share[token, text] = scale / ‖embedding‖ · Σ_h a[h, token] v[h, token] · (W_O^h u_text)
                       = scale / ‖embedding‖ · (a ⊙ v)[token, width] · (W_Oᵀ u)[width, text]

one product per layer; nothing as wide as the joint space is held per token, and 100 texts cost what 20 do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.contrast import NEUTRAL, NOTHING, Against, Contrast, contrast_of
from clip_anatomy.split.layernorm import pull_back
from clip_anatomy.split.tokens import head_directions, read_shares
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.trace import LayerReading


@dataclass(frozen=True)
class DecompositionOptions:
    """What to sum over.

    Attributes:
        layers: layers whose heads are summed: "8-11", "0,3", numbers; None for all.
        heads: heads to sum, as `Selection.parse` reads them ("9.3,10.1", "last=4"), or a `Selection`; None for all.
        against: what is subtracted from every text; see `contrast`.
    """

    ALONE: ClassVar[str] = NOTHING  # what one text is compared with where texts are to be compared with each other

    layers: str | int | Sequence[int] | None = None
    heads: str | Selection | None = None
    against: Against | Contrast = field(default=NEUTRAL, compare=False)

    def selected(self, tower: Tower) -> Float[Tensor, "layer head"]:
        """Return 1 for each head that is summed, 0 for the others."""
        chosen = torch.zeros(tower.layers, tower.heads)
        for layer, head in self._selection(tower).heads:
            chosen[layer, head] = 1
        return chosen

    def _selection(self, tower: Tower) -> Selection:
        if self.layers is not None and self.heads is not None:
            raise BadSpec("layers and heads are both given. Type one of them: heads='last=4', or layers='8-11'")
        if isinstance(self.heads, Selection):
            found = self.heads.checked(tower.layers, tower.heads)
        else:
            layers = self.layers
            if layers is not None and not isinstance(layers, str):
                layers = ",".join(map(str, [layers] if isinstance(layers, int) else layers))
            spec = self.heads if layers is None else f"layer={layers}"
            found = Selection.parse(spec or "all", tower.layers, tower.heads)
        if not found.heads or len(found) > len(found.heads):
            raise BadSpec(
                f"a map is written by heads alone; {found.description} was selected. Type: heads='last=4', or heads='9.3,10.1'"
            )
        return found


def token_map(
    tower: Tower,
    inputs: Float[Tensor, "image 3 row col"] | Int[Tensor, "image token"],
    text: Float[Tensor, "text embed"],
    selected: Float[Tensor, "layer head"] | None = None,
) -> Float[Tensor, "image token text"]:
    """Split each cosine by token, summed over layers and heads.

    Equal to `Parts.tokens(text).sum((1, 2))` under the convention "centered".

    Args:
        tower: any tower whose readout attends to patches.
        inputs: preprocessed pixels, or token ids of a text tower.
        text: one direction of the joint space per text, as they are: not made unit here, so that differences can be given.
        selected: a weight per head; None for all heads.

    Returns:
        Shares, class token first.
    """
    with torch.no_grad():
        direction = pull_back(tower, text.to(tower.device), "centered")
        total: Tensor | None = None

        def add(reading: LayerReading) -> None:
            nonlocal total
            weights = None if selected is None else selected[reading.layer]
            if weights is not None and not weights.any():
                return
            directions = head_directions(tower, reading.layer, direction)
            if tower.rows > 1:
                shares = read_shares(tower, reading, directions)
                written = (shares if weights is None else shares * weights.to(shares).view(1, -1, 1, 1)).sum(1)
            else:
                seen = reading.shares()[:, :, 0]
                if weights is not None:
                    seen = seen * weights.to(seen)[:, None]
                # [image, head, token, d] → [image, token, head · d]: q, k and v lie so in memory already
                weighed = (reading.values().float() * seen[..., None]).transpose(1, 2).flatten(2)
                written = weighed.to(directions) @ directions.flatten(0, 1)
            total = written if total is None else total.add_(written)

        trace = tower.trace(inputs, add)
        if total is None:
            raise UnsupportedModel(
                f"this {tower.kind} tower is one part that its own library runs, not split: its tokens have no shares of their own. "
                "Type explain, which says what the other tower's parts do"
            )
        return total * (trace.scale / trace.embedding.norm(dim=-1)).view(-1, 1, 1)


def decomposition(
    clip: Clip,
    pixels: Float[Tensor, "image 3 row col"],
    text: Float[Tensor, "text embed"],
    options: DecompositionOptions,
) -> Float[Tensor, "image token text"]:
    """Split each cosine by patch, summed over the selected layers and heads."""
    unit = F.normalize(text.float(), dim=-1)
    unit = contrast_of(clip, options.against).subtracted_from(unit)  # linear in the text: before, not after
    everything = options.layers is None and options.heads is None
    selected = None if everything else options.selected(clip.vision)
    return token_map(clip.vision, pixels, unit, selected)[:, clip.vision.own :]
