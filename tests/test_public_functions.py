"""What people call refuses arguments of another kind at the door, whatever they are, in one sentence that says what was expected."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import jaxtyping
import numpy as np
import pytest
import tiny_resnet
import torch

import clip_anatomy as ca
from clip_anatomy.argument_kinds import fits
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.registry import METHODS as METHODS_OF_MAPS
from clip_anatomy.public_functions import _signature, public

FUNCTIONS = {
    name: getattr(ca, name) for name in ca.__all__ if inspect.isfunction(getattr(ca, name)) and name != "allow_network"
}
METHODS = {
    f"{kind}.{name}": getattr(getattr(ca, kind), name)
    for kind in ca.__all__
    if inspect.isclass(getattr(ca, kind)) and kind not in {"EditedClip"}
    for name in vars(getattr(ca, kind))
    if not name.startswith("_") and callable(getattr(getattr(ca, kind), name))
}
CALLED = FUNCTIONS | {name: one for name, one in METHODS.items() if hasattr(one, "__wrapped__")}
ANYTHING = {
    "index.source": "open_source tells kinds of collections apart, and lists them",
    "search.query": "a picture, a text, a row, or several: its own reader tells",
    "search.negative": "likewise",
    "search_captions.query": "likewise",
}


class Foreign:
    """Nothing of this package, of Python or of its libraries."""


def parameters(name: str) -> list[tuple[str, Any]]:
    function = CALLED[name]
    signature, hints = _signature(getattr(function, "__func__", function).__wrapped__)
    named = (p for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
    return [(p.name, hints.get(p.name)) for p in named if p.name not in ("self", "cls")]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_foreign_object_fits_no_argument(name: str) -> None:
    for argument, hint in parameters(name):
        if f"{name}.{argument}" not in ANYTHING and getattr(hint, "__metadata__", None) is None:
            assert hint is not None, f"{argument} has no annotation that can be resolved"
            assert not fits(Foreign(), hint), argument


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_calls_with_foreign_objects_end_in_one_of_our_errors(name: str) -> None:
    function, required = FUNCTIONS[name], inspect.signature(FUNCTIONS[name]).parameters.values()
    needed = [p for p in required if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if needed:
        for foreign in (Foreign(), Foreign, lambda: None, 3.5, {"a": object()}, [Foreign()]):
            with pytest.raises(ca.errors.ClipAnatomyError):
                function(*(foreign for _ in needed))
        with pytest.raises(ca.errors.BadInput, match=rf"{name}: missing .*{needed[0].name}"):
            function()


@public
def sample(
    texts: Sequence[str], at: int = 0, by: Literal["mean", "zero"] = "mean", kept: Mapping[str, float] | None = None
) -> int:
    """Count.

    Args:
        texts: what to look for.
        at: which one; from 0.
        by: how.
        kept: shares by name.
    """
    return len(texts) + at


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((3,), r"sample: texts is an int \(3\); a list of strings was expected \(what to look for\)"),
        (("a dog",), r"texts is one string; a list was expected. Type: \['a dog'\]"),
        ((["a", 3],), r"Look at item 1: an int \(3\)"),
        (([], "x"), r"at is a str \('x'\); a whole number was expected \(which one\)"),
        (([], 0, 1.5), r"by is a float \(1.5\); 'mean' or 'zero' was expected"),
        (([], 0, "mean", {"a": "b"}), "kept is a dict .* a mapping or None was expected"),
        ((), r"sample: missing a required argument: 'texts'. It is sample\(texts, at=…, by=…, kept=…\)"),
    ],
)
def test_the_sentence_names_argument_kind_and_way_out(args: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ca.errors.BadInput, match=says):
        sample(*args)


def test_a_tuple_of_a_factory_a_state_dict_and_a_class_say_what_to_pass() -> None:
    import tiny
    import transformers

    model: Any = tiny.open_clip_model()
    for given, says in (
        ((model, None, None), "Type: its item 0, the CLIP"),
        (model.state_dict(), "A state dict is only the weights. Type: model.load_state_dict"),
        (transformers.CLIPModel, r"the class CLIPModel; .*CLIPModel.from_pretrained"),
    ):
        with pytest.raises(ca.errors.BadInput, match=says):
            ca.load(given)
    with pytest.raises(ca.errors.BadInput, match=r"Type: clip_anatomy.load\(model\)"):
        ca.decompose(model, Path("a.jpg"))
    with pytest.raises(ca.errors.BadSpec, match="weights=.* goes with open_clip:NAME"):
        ca.load("demo", weights="some.pt")


ODD = [
    None, -1, 0, 10**30, float("nan"), -0.5, "", "a\0b", [], ["x"], {}, (1, 2, 3), Foreign(), Foreign, np.zeros((2, 3)), np.array(["a"]),
    torch.zeros(2, 3), Path("nowhere"), b"bytes", True, [None], [[]], [(99, 99)], range(3), {1, 2},
]  # fmt: skip


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One good call of each."""
    clip, store = ca.load("demo"), tmp_path_factory.mktemp("swapped") / "store"
    ca.index(clip, "world:40:test", store)
    opened, picture, texts = ca.Store.open(store, clip), examples()[:1], ["a bird", "a fish"]
    maps = ca.heatmap(clip, picture, texts[:1])
    pool = store.with_name("pool.txt")
    pool.write_text("a red circle\na blue star\na photo of the night\n")
    named = ca.atlas(opened, clip, pool, texts=1, images=1, resamples=0, picks=1, cache=False)
    return {
        "textspan": {"moments": opened.moments(), "pool_embeddings": clip.encode_text(texts), "texts_per_head": 1, "heads": [(0, 0)]},
        "decompose": {"clip": clip, "images": picture},
        "decompose_text": {"clip": clip, "texts": texts},
        "explain": {"clip": clip, "images": picture, "texts": texts},
        "heatmap": {"clip": clip, "images": picture, "texts": texts},
        "segment": {"clip": clip, "images": picture, "texts": texts},
        "sinks": {"clip": clip, "images": picture},
        "layer_maps": {"clip": clip, "images": picture, "texts": texts},
        "word_maps": {"clip": clip, "images": picture, "sentence": "a red bird"},
        "prompts": {"maps": maps.values[0], "texts": texts[:1], "geometry": maps.geometries[0]},
        "mutual": {"clip": clip, "image": picture[0], "classes": "bird, fish", "descriptors": ["red", "blue", "in the sky"], "expected": 1, "details": 1},
        "neuron_heads": {"clip": ca.load(tiny_resnet.resnet_model()), "images": torch.randn(1, 3, 96, 96)},
        "pairs": {"clip": clip, "a": picture[0], "b": "a bird"},
        "verify": {"store": store},
        "search_captions": {"store": opened, "query": opened.rows()[0].id, "clip": clip},
        "align": {"store": opened, "recordings": torch.randn(40, 2), "permutations": 5, "folds": 2},
        "study": {"store": opened, "clip": clip, "label": "shape", "select": ["0.1"]},
        "search": {"store": opened, "query": "a bird", "k": 2, "clip": clip},
        "replace_parts": {"clip": clip, "images": picture, "selection": "7.3", "over": opened.moments()},
        "probe": {"store": opened, "last": "1", "label": "shape", "epochs": 1},
        "check": {"model": clip},
        "registered": {"clip": clip, "neurons": [(5, 0)]},
        "ablate": {"store": opened, "study": "last", "label": "shape", "model": clip},
        "atlas": {"store": opened, "clip": clip, "pool": pool, "texts": 1, "images": 1, "resamples": 0, "picks": 1, "cache": False},
        "repair": {"source": opened, "label": "shape", "select": "7.3", "also": [], "model": clip, "atlas": named},
        "concepts": {"clip": clip, "texts": texts, "pool": pool, "count": 2},
        "second_order": {"clip": clip, "images": picture, "layer": 6},
        "tiled_maps": {"clip": clip, "source": np.zeros((64, 72, 3), np.uint8), "texts": texts[:1], "file": store.with_name("m.npy"), "method": "raw"},
        "apply": {"edit": ca.Edit.of(clip, "7.0", by="zero"), "source": "world:2", "out": store.with_name("e.npz"), "model": clip},
        "export": {"edit": ca.Edit.of(clip, "7.0", by="zero"), "out": store.with_name("x"), "model": clip},
        "bench": {"clip": clip, "name": "maps", "pictures": 1, "method": "raw"},
        "sanity": {"clip": clip, "images": picture, "texts": texts[:1], "method": "raw", "draws": 1},
        "faithfulness": {"clip": clip, "images": picture, "texts": texts[:1], "method": "raw", "draws": 1, "steps": 2},
        "index": {"clip": clip, "source": "world:3:test", "store": store.with_name("new"), "layers": "last:1"},
        "load": {"spec": "demo", "parity": False},
    }  # fmt: skip


def test_half_a_character_stands_on_no_page() -> None:
    clip, text = ca.load("demo", parity=False), "a \ud800bird"
    for call in (lambda t: ca.heatmap(clip, examples()[:1], t), lambda t: ca.explain(clip, examples()[:1], t)):  # fmt: skip
        with pytest.raises(ca.errors.BadText, match=r"holds half a character: 'a \\ud800bird'. Type it in UTF-8"):
            call([text])


def test_seeds_and_counts_below_their_least_are_named(valid: dict[str, dict[str, Any]]) -> None:
    seeded = [name for name, one in FUNCTIONS.items() if "seed" in inspect.signature(inspect.unwrap(one)).parameters]
    assert {"probe", "align", "repair", "pairs", "sanity", "faithfulness"} <= {*seeded}
    for name, argument in ((name, "seed") for name in seeded if name in valid):
        with pytest.raises(ca.errors.BadInput, match=f"{argument}=-1: a whole number from . to .* Type {argument}="):
            FUNCTIONS[name](**{**valid[name], argument: -1})
    with pytest.raises(ca.errors.BadInput, match="picks=-1: type .* picks=6"):
        ca.atlas(**{**valid["atlas"], "picks": -1})


SOON = [
    "textspan",
    "decompose",
    "decompose_text",
    "sinks",
    "word_maps",
    "prompts",
    "verify",
    "registered",
    "replace_parts",
]
LATER = [
    "explain",
    "heatmap",
    "segment",
    "layer_maps",
    "pairs",
    "mutual",
    "neuron_heads",
    "search_captions",
    "align",
    "study",
    "search",
    "probe",
    "check",
    "ablate",
    "atlas",
    "repair",
    "concepts",
    "second_order",
    "tiled_maps",
    "apply",
    "export",
    "bench",
    "sanity",
    "faithfulness",
    "index",
    "load",
]


@pytest.mark.parametrize("name", [*SOON, *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)])
@pytest.mark.filterwarnings("ignore")
def test_one_odd_argument_among_good_ones_is_read_or_named(
    name: str, valid: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # some of the odd values are names of new folders
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # as people run it: the checks of conftest.py are not there
    function, good = FUNCTIONS[name], valid[name]
    function(**good)
    found: list[str] = []
    for one in inspect.signature(inspect.unwrap(function)).parameters.values():
        for odd in ODD if one.kind is not one.VAR_KEYWORD and one.name != "progress" else ():
            try:
                function(**{**good, one.name: odd})
            except ca.errors.ClipAnatomyError:
                pass
            except Exception as error:
                found.append(f"{one.name}={odd!r:.40}: {error!r:.120}")
    assert "\n".join(found) == ""


def test_methods_name_what_they_cannot_take(valid: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(ca.errors.BadInput, match=r"rows are \[2, 3\]; \[stimulus, 128\] were expected"):
        ca.align(**valid["align"]).predict(torch.zeros(2, 3))
    with pytest.raises(ca.errors.BadInput, match="no maps to join"):
        ca.Maps.joined([])


def test_a_dense_attention_of_ones_own_is_held_to_its_kinds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for name in vars(ca.DenseAttention()):
        for odd in (Foreign(), [[]], "x", {}, float("nan"), 1e300):
            with pytest.raises(ca.errors.BadSpec):
                ca.DenseAttention(**{name: odd})


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS_OF_MAPS)
def test_odd_options_of_a_method_are_read_or_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read gives numbers; where patches are whole, each of them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    clip, picture, texts = ca.load("demo"), examples()[:1], ["a bird", "a fish"]
    good = {"affinity": torch.rand(1, 64, 64)} if "affinity" in METHODS_OF_MAPS[name].needs else {}
    ca.heatmap(clip, picture, texts, name, **good)
    found: list[str] = []
    for one in fields(METHODS_OF_MAPS[name].options):
        for odd in (*ODD, 1e300, 1e-300, float("inf"), -(10**9), 1, 1e-5, 3000.0, "v", ("vv",)):
            try:
                maps = ca.heatmap(clip, picture, texts, name, **{**good, one.name: odd})
                if not bool(maps.values.isfinite().all()):
                    found.append(f"{one.name}={odd!r:.40}: not finite")
            except ca.errors.ClipAnatomyError:
                pass
            except Exception as error:
                found.append(f"{one.name}={odd!r:.40}: {error!r:.120}")
    assert "\n".join(found) == ""
