"""Numbers are bounded where they come in; a large picture is cut a strip at a time."""

import numpy as np
import pytest
import torch

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.maps import segment as segmenting
from clip_anatomy.maps.segment import segment
from clip_anatomy.store.manifest import layers_of


@pytest.mark.parametrize("layers", ["0-99999999999", "last:99999999999", "5-2", "-1", "9" * 5000, [10**30], "0-"])
def test_layers_are_bounded_before_anything_is_made_of_their_number(layers: object) -> None:
    with pytest.raises(BadSpec, match="the model has 0 to 11"):
        layers_of(layers, 12)  # type: ignore[arg-type]


def test_worlds_and_workers_are_bounded(tmp_path) -> None:
    for count in ("9" * 20, "9" * 5000, "0" * 30):
        with pytest.raises(BadInput, match="is no world"):
            open_dataset(f"world:{count}")
    clip = ca.load("demo", parity=False)
    for bad in ({"workers": -1}, {"workers": 10**12}, {"batch": 0}, {"batch": 10**12}):
        with pytest.raises(BadInput, match=r"a whole number from \d.*Type (workers|batch)=\d+, or leave it away"):
            ca.index(clip, "world:2", tmp_path / "s", **bad)  # type: ignore[arg-type]
    for bad in ({"workers": 10**20}, {"batch": 10**20}):  # more than 64 bits: refused for every argument alike
        with pytest.raises(BadInput, match=r"(workers|batch) is an int \(10+\).*Type: a number of at most"):
            ca.index(clip, "world:2", tmp_path / "s", **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        ["index", "world:2", "S", "--workers", "99999999999999999999"],
        ["search", "S", "a", "-k", "99999999999999999999"],
        ["atlas", "S", "--texts", "99999999999999999999"],
        ["atlas", "S", "--resamples", "-99999999999999999999"],
        ["atlas", "S", "--llm-timeout", "inf"],
        ["atlas", "S", "--llm-price", "nan", "1"],
        ["repair", "S", "--cost", "1e300"],
    ],
)
def test_no_option_takes_a_number_beyond_use(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "is no number that can be used" in capsys.readouterr().err


def test_memory_that_runs_out_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):

        def run(_: list[str], error: Exception = error) -> int:
            raise error

        monkeypatch.setattr("clip_anatomy.cli.main._run", run)
        assert main(["segment"]) == 2
        assert "memory ran out" in capsys.readouterr().err


def test_a_large_picture_is_labelled_in_strips_as_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = ca.load("demo", parity=False)
    picture = np.kron(
        np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8), np.ones((30, 30, 1), np.uint8)
    )
    asked = {"texts": ["a star", "a bird"], "background": ["grass"]}
    whole, otsu = (segment(clip, [picture], threshold=rule, **asked) for rule in ("none", "otsu"))
    monkeypatch.setattr(segmenting, "MOST_PIXELS", 4_000)
    strips, rough = (segment(clip, [picture], threshold=rule, **asked) for rule in ("none", "otsu"))
    assert (whole.labels[0] == strips.labels[0]).all()
    assert len({*np.unique(whole.labels[0]).tolist()}) > 1
    # Otsu's cut is that of some of the pixels.
    scale = float(whole.maps.values.max() - whole.maps.values.min())
    assert abs(otsu.thresholds[0] - rough.thresholds[0]) < 0.02 * scale


def test_one_picture_that_does_not_fit_into_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = ca.load("demo", parity=False)
    cut = segmenting._cut
    pictures = [np.full((size, size, 3), 99, np.uint8) for size in (30, 31, 32)]

    def full(one: ca.Maps, *more: object) -> object:
        if one.geometries is not None and one.geometries[0].picture == (31, 31):
            raise MemoryError
        return cut(one, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(segmenting, "_cut", full)
    found = segment(clip, pictures, ["a star"], skip_bad=True)
    assert [labels.shape for labels in found.labels] == [(30, 30), (32, 32)]
    assert len(found.maps) == 2
    assert [why for _, why in found.failed] == ["it does not fit into memory. Scale it down, or leave refine= away"]
    with pytest.raises(MemoryError):
        segment(clip, pictures, ["a star"])
    assert torch.is_tensor(found.maps.values)
