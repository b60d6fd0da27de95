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
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.contrast import NEUTRAL, NOTHING, Against, Contrast, contrast_of
from clip_anatomy.split.tokens import token_map
from clip_anatomy.towers.protocol import Tower


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
            selection = self.heads.checked(tower.layers, tower.heads)
        else:
            layers = self.layers
            if layers is not None and not isinstance(layers, str):
                layers = ",".join(map(str, [layers] if isinstance(layers, int) else layers))
            spec = self.heads if layers is None else f"layer={layers}"
            selection = Selection.parse(spec or "all", tower.layers, tower.heads)
        if not selection.heads or len(selection) > len(selection.heads):
            raise BadSpec(
                f"a map is written by heads alone; {selection.description} was selected. Type: heads='last=4', or heads='9.3,10.1'"
            )
        return selection


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
