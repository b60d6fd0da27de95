"""Models with 8-bit layers: split with the numbers that their weights stand for, and said so."""

from typing import Any

import pytest
import torch
from tiny_transformers import tiny_transformers
from torch import nn

import clip_anatomy as ca
from clip_anatomy.errors import ParityError
from clip_anatomy.loading.quantised import dequantised

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*quantiz.*")]


class Int8Params(nn.Parameter):
    """Laid out as bitsandbytes' (0.50.2): integers of ±127, and the largest value of each row beside them."""

    SCB: torch.Tensor | None = None


class EightBit(nn.Linear):
    """A layer that computes with what its integers stand for; `off` rows are scaled wrongly."""

    off = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: Any = self.weight
        return nn.functional.linear(x, (weight.data.float() * weight.SCB[:, None] / 127) * (1 + self.off), self.bias)


def eight_bit(model: Any, off: float = 0.0) -> Any:
    for layer in model.modules():
        if type(layer) is nn.Linear:
            largest = layer.weight.detach().abs().amax(1)
            integers = (layer.weight.detach() / largest[:, None] * 127).round().to(torch.int8)
            held = Int8Params(integers, requires_grad=False)
            held.SCB = largest
            layer.weight, layer.__class__, layer.off = held, EightBit, off
    return model


def test_eight_bit_layers_are_split_with_what_their_integers_stand_for() -> None:
    model = eight_bit(tiny_transformers("CLIPVisionModelWithProjection"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clip = ca.load(model)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(pixels).image_embeds
    torch.testing.assert_close(ca.decompose(clip, pixels).total(), expected, atol=1e-5, rtol=1e-5)
    found = ca.check(clip)
    assert found.holds
    assert found.claims[0].claim.endswith("(weights in Int8Params, dequantised for the split)")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.vision_model.encoder.layers[0].mlp.fc1.weight.dtype == torch.int8


def test_a_layer_that_computes_something_else_than_its_integers_is_refused() -> None:
    with pytest.raises(ParityError, match=r"otherwise than their dequantised weights say.* Type: the same model"):
        ca.load(eight_bit(tiny_transformers("CLIPVisionModelWithProjection"), off=0.5))


def test_torchs_own_dynamic_quantisation_is_dequantised() -> None:
    plain = tiny_transformers("CLIPVisionModelWithProjection")
    model: Any = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    numbers = dequantised(model)["vision_model.encoder.layers.0.mlp.fc1.weight"]
    exact = plain.vision_model.encoder.layers[0].mlp.fc1.weight.detach()
    assert 0 < float((numbers - exact).abs().max()) <= float(exact.abs().max()) / 127
    clip = ca.load(model)
    assert clip.proof is not None
    assert 0 < clip.proof.largest < 0.05
    assert ca.check(clip).holds
