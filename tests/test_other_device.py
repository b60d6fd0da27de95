"""Every function that works on a model's device, on one that is not the processor: nothing is mixed, and the numbers are the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from other_device import OTHER, OtherDevice, tensors, there
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.registry import methods_of
from clip_anatomy.split.basis import coordinates_of

pytestmark = pytest.mark.usefixtures("one_thread")
BATCHED = {
    "gradcam",
    "legrad",
    "chefer",
    "grad_eclip",
}  # torch's vmap forgets on which device its tensors are said to be
PICTURES, TEXTS = examples()[:2], ["a bird", "a red circle"]


def on_both(work: Callable[[ca.Clip], Any], make: Callable[[str], ca.Clip]) -> None:
    """Compare what a function gives on the processor and on the other device."""
    expected = work(make("cpu"))
    with OtherDevice():
        found = work(make(str(OTHER)))
        mine, theirs = list(tensors(found)), list(tensors(expected))
        assert len(mine) == len(theirs) > 0
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-6)


def demo(device: str) -> ca.Clip:
    return ca.load("demo", device=device, parity=False)


def numbers(value: Any) -> Tensor:
    """All numbers of plain values, in their order."""
    if isinstance(value, dict | list):
        held = [numbers(one) for one in (value.values() if isinstance(value, dict) else value)]
        return torch.cat([torch.empty(0), *held])
    return torch.tensor([value] if isinstance(value, float) else [])


def parts_of(clip: ca.Clip, convention: Any = "centered") -> list[Tensor]:
    texts = clip.encode_text(TEXTS)
    parts = ca.decompose(clip, PICTURES, convention, texts=texts)
    toward = parts.toward(texts)
    assert there(parts.heads) == (clip.device == OTHER)
    return [
        parts.embedding,
        parts.heads,
        parts.mlps,
        parts.bias,
        parts.residue,
        parts.tokens(texts),
        toward.heads,
        toward.total(),
    ]


def moments_of(clip: ca.Clip) -> list[Tensor]:
    parts = ca.decompose(clip, PICTURES)
    assert parts.basis is not None
    own = ca.Moments.of(coordinates_of(parts.basis, clip.vision, parts.trace), basis=parts.basis)
    span = ca.textspan(ca.Moments.of(parts), clip.encode_text([*TEXTS, "the sky"]), 1, heads=[(7, 0)])
    return [own.means, own.scatters, ca.Moments.of(parts, basis=parts.basis).means, span.cumulative]


def store_of(clip: ca.Clip, folder: Path) -> list[Tensor]:
    """What is indexed, found, ablated and named on a device."""
    place = folder / str(clip.device)
    ca.index(clip, "world:24:test", place, batch=8)
    store = ca.Store.open(place)
    found = [
        ca.search(store, query, heads=heads, k=5, mode=mode, clip=clip, device=str(clip.device))
        for query, heads, mode in (
            ("a red circle", "7.0,7.1", "heads"),
            (PICTURES[0], "7.0", "heads"),
            (PICTURES[0], "7.0", "without"),
            ("a circle", None, "whole"),
        )
    ]
    ablated = ca.ablate(store, study="heads", model=clip).to_dict()["studies"]
    named = ca.textspan(store.moments(), clip.encode_text([*TEXTS, "the sky"]), 2, heads=[(7, 0), (6, 1)])
    return [
        torch.stack([store.heads(layer, 0).float() for layer in store.manifest.layers]),
        store.moments().scatters,
        *(torch.tensor([hit.score for hit in one.hits], dtype=torch.float64) for one in found),
        numbers([{**one, "seconds": 0} for one in ablated]),
        named.cumulative,
    ]


WORK: dict[str, Callable[[ca.Clip], Any]] = {
    "decompose": parts_of,
    "decompose, official": lambda clip: parts_of(clip, "official"),
    "decompose_text": lambda clip: [(parts := ca.decompose_text(clip, TEXTS)).heads, parts.tokens(clip.encode_image(PICTURES))],
    "encode": lambda clip: [clip.encode_image(PICTURES), clip.encode_text(TEXTS, templates=["a picture of {}"])],
    "moments and textspan": moments_of,
    "means": lambda clip: [(means := ca.Means.of(clip, PICTURES, class_to_class=True)).heads, means.mlps],
}  # fmt: skip


@pytest.mark.slow
def test_a_store_is_made_and_read_on_another_device(tmp_path: Path) -> None:
    on_both(lambda clip: store_of(clip, tmp_path), demo)


@pytest.mark.slow
def test_maps_of_every_method_are_drawn_on_another_device() -> None:
    def work(clip: ca.Clip) -> list[Tensor]:
        found: list[Tensor] = []
        for name, method in methods_of(clip).items():
            if not method.needs and name not in BATCHED:
                how: dict[str, Any] = {"against": None} if method.contrasts else {}
                found.append(ca.heatmap(clip, PICTURES, TEXTS, name, **how).values)
        assert len(found) > 15
        return found

    on_both(work, demo)


def test_masks_are_made_on_another_device() -> None:
    on_both(lambda clip: [ca.segment(clip, PICTURES, TEXTS).maps.values], demo)


@pytest.mark.parametrize("name", WORK)
def test_it_runs_on_another_device(name: str) -> None:
    on_both(WORK[name], demo)


def test_what_fails_on_a_gpu_fails_here() -> None:
    with OtherDevice():
        mine, theirs = torch.ones(2, device=OTHER), torch.ones(2)
        for wrong in (
            lambda: mine + theirs,
            lambda: torch.stack([mine, theirs]),
            lambda: theirs.mul_(mine),
            lambda: torch.einsum("i,i->", mine, theirs),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            mine.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, generator=torch.Generator(), device=OTHER)
        assert there(mine * 2.0 + torch.tensor(1.0))
        assert not there(mine.cpu())
        assert [there(one) for one in (theirs.to(mine.device), torch.zeros_like(mine), mine[:1], *mine[None])] == [
            True
        ] * 4
        assert not there(theirs)
        assert there(torch.nn.Linear(2, 2).to(OTHER)(mine))
