"""How a cosine becomes a probability: the factor and the bias that a model was trained with."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["ScoreRule"]


@dataclass(frozen=True)
class ScoreRule:
    """The model's own parameters, borrowed: what is read of them follows a model that is trained on.

    Attributes:
        scale: logarithm of the factor; None where a tower alone came without it.
        bias: added after it by models that were trained text by text; None where there is none.
        temperature: instead of the logarithm, what a cosine is divided by.
    """

    scale: Tensor | None = None
    bias: Tensor | None = None
    temperature: Tensor | None = None

    @property
    def factor(self) -> float:
        """What a cosine is multiplied with."""
        if self.temperature is not None:
            return 1 / float(self.temperature.detach())
        return 1.0 if self.scale is None else float(self.scale.detach().float().exp())

    @property
    def offset(self) -> float | None:
        """What is added then; None for a softmax."""
        return None if self.bias is None else float(self.bias.detach())
