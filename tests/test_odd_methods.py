"""Every method of a result, of a model and of a store, with one argument among good ones replaced by odd values: a result, or an error of the project."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from test_odd_arguments import swept, valid
from test_public_functions import FUNCTIONS

import clip_anatomy as ca
from clip_anatomy.results import Result
from clip_anatomy.store.blocks import StoreBlock

__all__ = ["valid"]
Values = dict[str, dict[str, Any]]
RESULTS = {
    "Ablation": "ablate", "Alignment": "align", "Check": "check", "Concepts": "concepts", "Explanation": "explain", "Faithfulness": "faithfulness", "Sanity": "sanity",
    "FilmMaps": "film_maps", "Maps": "heatmap", "Masks": "segment", "Mutual": "mutual", "NeuronHeads": "neuron_heads", "Pairs": "pairs", "Parts": "decompose",
    "Paths": "paths", "ProbeTable": "probe", "Ranking": "search", "Referred": "refer", "RepairResult": "repair", "SecondOrder": "second_order", "Study": "study",
    "TextExplanation": "explain_text", "TiledMaps": "tiled_maps", "WordMaps": "word_maps", "WordWeights": "word_weights",
}  # fmt: skip
"""Which function returns it."""
MADE: dict[str, Callable[[Values], Any]] = {
    "Atlas": lambda valid: valid["repair"]["atlas"],
    "Clip": lambda valid: valid["explain"]["clip"],
    "Contributions": lambda valid: ca.decompose(**valid["decompose"]).toward(torch.randn(2, 128)),
    "DenseAttention": lambda _: ca.DenseAttention(),
    "Edit": lambda valid: valid["export"]["edit"],
    "EditedClip": lambda valid: ca.EditedClip(valid["explain"]["clip"], valid["export"]["edit"]),
    "Means": lambda valid: ca.Means.of(**valid["decompose"]),
    "Moments": lambda valid: valid["search"]["store"].moments(),
    "Selection": lambda _: ca.Selection(heads=((7, 0),)),
    "Store": lambda valid: valid["search"]["store"],
    "TextRepair": lambda valid: FUNCTIONS["repair"](
        **{**valid["repair"], "tower": "text", "select": None, "atlas": None}
    ),
    "Texts": lambda valid: ca.Texts.of(valid["explain"]["clip"], ["a bird"]),
    "TypoRepair": lambda valid: FUNCTIONS["repair"](
        **{**valid["repair"], "cue": "typo", "label": "count", "select": "7.1", "images": 20}
    ),
}
CALLS: dict[str, Callable[[Any, Values], dict[str, Any]]] = {
    "Alignment.load": lambda one, _: {"folder": one.save(Path("alignment").absolute())},
    "Alignment.read": lambda _, valid: {"model": valid["explain"]["clip"]},
    "Alignment.predict": lambda one, _: {"x": torch.randn(2, one.weight.shape[1])},
    "Atlas.head": lambda *_: {"layer": 7, "head": 0},
    "Atlas.with_role": lambda one, _: {"name": next(iter(one.roles))},
    "Atlas.with_words": lambda *_: {"words": "red"},
    "Atlas.select": lambda *_: {"spec": "7.0"},
    "Atlas.of_dict": lambda one, _: {"given": one.to_dict()},
    "Atlas.load": lambda one, _: {"path": one.save(Path("atlas").absolute())},
    "Clip.probabilities": lambda *_: {"cosine": torch.zeros(1, 2)},
    "Clip.read_through": lambda one, _: {"through": SimpleNamespace(weight=torch.zeros(3, 128), intercept=torch.zeros(3))},
    "Clip.remembered": lambda *_: {"name": "one", "compute": lambda: 1},
    "Clip.pixels": lambda _, valid: {"images": valid["explain"]["images"]},
    "Clip.ids": lambda *_: {"texts": ["a bird"]},
    "Clip.encode_image": lambda _, valid: {"images": valid["explain"]["images"]},
    "Clip.encode_text": lambda *_: {"texts": ["a bird"]},
    "Concepts.of": lambda *_: {"row": 0},
    "Edit.of": lambda _, valid: {"clip": valid["explain"]["clip"], "selection": "7.0", "moments": valid["search"]["store"].moments()},
    "Edit.empty": lambda _, valid: {"clip": valid["explain"]["clip"]},
    "Edit.load": lambda one, _: {"path": one.save(Path("edit.json").absolute())},
    "Edit.save": lambda *_: {"path": Path("saved.json")},
    "Edit.check": lambda _, valid: {"clip": valid["explain"]["clip"]},
    "Edit.apply": lambda _, valid: {"parts": ca.decompose(**valid["decompose"])},
    "Edit.shift": lambda _, valid: {"coordinates": {(7, 0): torch.zeros(1, 32)}, "basis": valid["search"]["store"].basis},
    "EditedClip.encode_image": lambda *_: {"image": torch.randn(1, 3, 64, 64)},
    "EditedClip.encode_both": lambda *_: {"image": torch.randn(1, 3, 64, 64)},
    "EditedClip.refuse_odd": lambda *_: {"image": torch.randn(1, 3, 64, 64)},
    "EditedClip.embed_texts": lambda *_: {"texts": ["a bird"]},
    "EditedClip.embed_prompts": lambda *_: {"prompts": [["a bird", "a photo of a bird"]]},
    "EditedClip.encode_text": lambda one, _: {"text": one.clip.ids(["a bird"])},
    "EditedClip.get_image_features": lambda *_: {"pixel_values": torch.randn(1, 3, 64, 64)},
    "EditedClip.get_text_features": lambda one, _: {"input_ids": one.clip.ids(["a bird"])},
    "EditedClip.get_logits": lambda one, _: {"image": torch.randn(1, 3, 64, 64), "text": one.clip.ids(["a bird"])},
    "EditedClip.forward": lambda one, _: {"image": torch.randn(1, 3, 64, 64), "text": one.clip.ids(["a bird"])},
    "Maps.cells": lambda *_: {"image": 0},
    "Maps.resized": lambda *_: {"size": (8, 8)},
    "Maps.joined": lambda one, _: {"several": [one, one]},
    "Maps.in_order": lambda *_: {"places": [0]},
    "Maps.with_failed": lambda *_: {"failed": [("a.png", "no picture")]},
    "Maps.peak": lambda *_: {"image": 0, "text": 0},
    "Masks.mask": lambda *_: {"image": 0},
    "Masks.shares": lambda *_: {"image": 0},
    "Masks.prompts": lambda *_: {"image": 0},
    "Masks.entry": lambda *_: {"image": 0},
    "Means.of": lambda _, valid: valid["decompose"],
    "Moments.of": lambda _, valid: {"x": ca.decompose(**valid["decompose"])},
    "Moments.merged": lambda one, _: {"parts": [one]},
    "Moments.merge": lambda one, _: {"other": one},
    "Moments.without": lambda one, _: {"other": one},
    "Moments.group": lambda *_: {"label": 0},
    "Moments.select": lambda one, _: {"layers": [one.layers[-1]]},
    "Moments.save": lambda *_: {"path": Path("m.safetensors")},
    "Moments.load": lambda one, _: {"path": one.save(Path("n.safetensors").absolute())},
    "NeuronHeads.directions": lambda *_: {"pairs": [(0, 0)]},
    "NeuronHeads.effects": lambda *_: {"head": 0, "neuron": 0},
    "NeuronHeads.toward": lambda one, _: {"text": torch.randn(2, one.embedding.shape[-1])},
    "NeuronHeads.strongest": lambda *_: {"count": 2},
    "NeuronHeads.kept": lambda *_: {"share": 0.5},
    "Parts.toward": lambda *_: {"text": torch.randn(2, 128)},
    "Parts.tokens": lambda *_: {"text": torch.randn(2, 128)},
    "Paths.top_images": lambda *_: {"place": 0},
    "ProbeTable.save": lambda *_: {"folder": Path("probe")},
    "Ranking.strongest": lambda one, _: {"hit": one.hits[0]},
    "Ranking.reason": lambda one, _: {"hit": one.hits[0]},
    "RepairResult.selecting": lambda *_: {"select": "7.1"},
    "SecondOrder.directions": lambda *_: {"number": 0},
    "SecondOrder.effects": lambda *_: {"number": 0},
    "SecondOrder.toward": lambda *_: {"text": torch.randn(2, 128)},
    "SecondOrder.path_strengths": lambda *_: {"number": 0},
    "SecondOrder.principal": lambda *_: {"number": 0},
    "Selection.every": lambda *_: {"layers": 8, "heads": 6},
    "Selection.parse": lambda *_: {"spec": "7.0", "layers": 8, "heads": 6},
    "Selection.checked": lambda *_: {"layers": 8, "heads": 6},
    "Selection.of_dict": lambda one, _: {"fields": one.to_dict()},
    "Store.open": lambda one, _: {"path": one.path},
    "Store.beside": lambda *_: {"name": "atlas"},
    "Store.heads": lambda *_: {"layer": 7, "head": 0, "rows": [0, 1]},
    "Store.scan": lambda *_: {"pairs": [(7, 0)]},
    "Store.mlps": lambda *_: {"layer": 7},
    "Store.layer_at": lambda *_: {"layer": 7},
    "Store.column": lambda *_: {"name": "shape"},
    "Store.values": lambda *_: {"column": "shape"},
    "Store.codes": lambda *_: {"column": "shape"},
    "Store.gather": lambda one, _: {"read": StoreBlock.norm, "rows": [0], "shape": (), "dtype": np.dtype("float32")},
    "Study.worst": lambda one, _: {"one": one.whole},
    "TextExplanation.strongest_parts": lambda *_: {"target": 0},
    "TextExplanation.named": lambda *_: {"part": "0.0"},
    "Texts.of": lambda _, valid: {"clip": valid["explain"]["clip"], "texts": ["a bird"]},
    "Texts.contrast": lambda _, valid: {"clip": valid["explain"]["clip"], "against": "neutral"},
    "TiledMaps.level": lambda *_: {"number": 0},
    "TiledMaps.at": lambda *_: {"rows": slice(0, 8), "cols": slice(0, 8)},
}  # fmt: skip
PUBLIC: list[str] = vars(ca)["__all__"]
KINDS = sorted(
    name for name in PUBLIC if inspect.isclass(getattr(ca, name)) and not issubclass(getattr(ca, name), Exception)
)


def methods(kind: str) -> list[str]:
    """Every public method of a public class, its own and those of all results."""
    one = getattr(ca, kind)
    found = {
        name
        for base in one.__mro__
        if base.__module__.startswith("clip_anatomy")
        for name in vars(base)
        if not name.startswith("_") and (inspect.isfunction(getattr(one, name)) or inspect.ismethod(getattr(one, name)))
    }
    return sorted(found - {"show", "load_state_dict"})  # the second is torch's own, with its errors


def takes(method: Any) -> list[str]:
    """What a method cannot be called without."""
    named = inspect.signature(method).parameters.values()
    return [
        p.name
        for p in named
        if p.default is p.empty and p.name != "self" and p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL
    ]


def test_every_public_class_and_method_has_a_call() -> None:
    assert {*KINDS} == {*RESULTS} | {*MADE}
    assert {*RESULTS.values()} <= {*FUNCTIONS}
    taking = {f"{kind}.{name}" for kind in KINDS for name in methods(kind) if takes(getattr(getattr(ca, kind), name))}
    assert {name.partition(".")[2] for name in taking - {*CALLS}} == {"save"}, "write a call of it"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_one_odd_argument_of_a_method_is_read_or_named(
    kind: str, valid: Values, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    one = MADE[kind](valid) if kind in MADE else FUNCTIONS[RESULTS[kind]](**valid[RESULTS[kind]])
    found: list[str] = []
    for name in methods(kind):
        draws = {"figure": ("figure",), "save": ("write", "save")}.get(name, ())
        own = isinstance(one, Result) and getattr(type(one), name) is getattr(Result, name, None)
        if draws and own and not any(map(one._drawing, draws)):  # pyright: ignore[reportPrivateUsage]
            continue  # it says where its numbers are
        good = CALLS.get(f"{kind}.{name}", lambda *_: {})(one, valid)
        if name == "save" and not good:
            good = {"folder": tmp_path / "saved"}
        found += [f"{kind}.{name}: {each}" for each in swept(getattr(one, name), good)]
    assert "\n".join(found) == ""
