"""Every public function and every method of a result, with one argument among good ones replaced by odd values: a result, or an error of the project."""

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jaxtyping
import miniatures
import numpy as np
import pytest
import tiny_resnet
import torch
from pictures import noise
from test_integrations import llava
from test_public_functions import FUNCTIONS, Foreign
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.registry import METHODS as METHODS_OF_MAPS
from clip_anatomy.studies.waterbirds_table import PAPER

ODD = [
    None, -1, 0, 10**30, float("nan"), -0.5, "", "a\0b", [], ["x"], {}, (1, 2, 3), Foreign(), Foreign, np.zeros((2, 3)), np.array(["a"]),
    torch.zeros(2, 3), Path("nowhere"), b"bytes", True, [None], [[]], [(99, 99)], range(3), {1, 2},
]  # fmt: skip


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One good call of each."""
    clip, store = ca.load("demo"), tmp_path_factory.mktemp("swapped") / "store"
    ca.index(clip, "world:40:test", store, keep="heads,mlps")
    opened, picture, texts = ca.Store.open(store, clip), examples()[:1], ["a bird", "a fish"]
    maps = ca.heatmap(clip, picture, texts[:1])
    assert maps.geometries is not None
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
        "imagenet_templates": {},
        "open_engine": {},
        "to_captum": {"clip": clip, "texts": texts},
        "to_grad_cam": {"clip": clip, "texts": texts},
        "to_fiftyone": {"explanation": ca.explain(clip, picture, texts[:1]), "file": store.with_name("dataset.json")},
        "to_parquet": {"store": opened, "file": store.with_name("store.parquet"), "clip": clip},
        "with_edited_tower": edited_llava(),
        "film_maps": {"clip": clip, "frames": [noise(40, 32)] * 2, "texts": texts[:1], "file": store.with_name("f.npy"), "method": "raw"},
        "refer": {"clip": clip, "image": picture[0], "phrase": "the red bird", "masks": np.stack([np.eye(64) > 0, np.eye(64) < 1])},
        "word_weights": {"clip": clip, "images": picture, "sentence": "a red bird"},
        "paths": {"clip": clip, "images": examples()[:2], "layers": "6", "pool": pool, "top": 1, "count": 1},
        "explain_text": {"clip": clip, "sentence": "a red bird", "texts": texts, "pool": pool},
        "paper_protocol": waterbirds(tmp_path_factory.mktemp("birds")),
    }  # fmt: skip


def edited_llava() -> dict[str, Any]:
    """A tiny LLaVA and an edit of its vision tower."""
    model = llava("clip")
    clip = ca.load(model.model.vision_tower, parity=False)
    return {"model": model, "edit": ca.Edit.of(clip, "1.0", by="zero")}


def waterbirds(place: Path) -> dict[str, Any]:
    """A store of a tiny Waterbirds, and a list of heads for its tiny model."""
    import open_clip

    model = open_clip_model(layers=5, heads=2, d=8, text={"context_length": 77, "vocab_size": 49408})
    clip = ca.load(model, parity=False, tokenizer=open_clip.SimpleTokenizer(context_length=77))
    miniatures.waterbirds(place / "w", each=2)
    ca.index(clip, f"waterbirds:{place / 'w'}:test:partial", place / "s", layers="last:4", convention="official")
    known = PAPER["ViT-B-16"]
    published = replace(known, layers=5, heads=2, d=8, patch=8, location=((4, 1),), setting=((3, 0),))
    return {"store": ca.Store.open(place / "s", clip), "clip": clip, "published": published}


def test_seeds_and_counts_below_their_least_are_named(valid: dict[str, dict[str, Any]]) -> None:
    seeded = [name for name, one in FUNCTIONS.items() if "seed" in inspect.signature(inspect.unwrap(one)).parameters]
    assert {"probe", "align", "repair", "pairs", "sanity", "faithfulness"} <= {*seeded}
    for name, argument in ((name, "seed") for name in seeded if name in valid):
        with pytest.raises(ca.errors.BadInput, match=f"{argument}=-1: a whole number from . to .* Type {argument}="):
            FUNCTIONS[name](**{**valid[name], argument: -1})
    with pytest.raises(ca.errors.BadInput, match="picks=-1: type .* picks=6"):
        FUNCTIONS["atlas"](**{**valid["atlas"], "picks": -1})


SOON = {
    "textspan", "decompose", "decompose_text", "sinks", "word_maps", "prompts", "verify", "registered", "replace_parts", "imagenet_templates",
}  # fmt: skip


def test_every_public_function_has_a_call(valid: dict[str, dict[str, Any]]) -> None:
    assert {*valid} == {*FUNCTIONS}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SOON else pytest.mark.slow) for name in sorted(FUNCTIONS)]
)
@pytest.mark.filterwarnings("ignore")
def test_one_odd_argument_among_good_ones_is_read_or_named(
    name: str, valid: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # some of the odd values are names of new folders
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # as people run it: the checks of conftest.py are not there
    assert "\n".join(swept(FUNCTIONS[name], valid[name])) == ""


def swept(function: Callable[..., Any], good: dict[str, Any]) -> list[str]:
    """Call it well, then with each argument odd; return what came out that is no error of the project."""
    used(function(**good))
    found: list[str] = []
    for one in inspect.signature(inspect.unwrap(function)).parameters.values():
        varies = one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) or one.name in ("self", "cls", "progress")
        for odd in () if varies else ODD:
            try:
                used(function(**{**good, one.name: odd}))
            except ca.errors.ClipAnatomyError:
                pass
            except Exception as error:
                found.append(f"{one.name}={odd!r:.40}: {error!r:.120}")
    return found


def used(result: Any) -> None:
    """Take the first item of a generator, enter a context: they run no sooner."""
    if inspect.isgenerator(result):
        next(result, None)
    elif type(result).__name__ == "_GeneratorContextManager":
        with result:
            pass


def test_methods_name_what_they_cannot_take(valid: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(ca.errors.BadInput, match=r"rows are \[2, 3\]; \[stimulus, 128\] were expected"):
        ca.align(**valid["align"]).predict(torch.zeros(2, 3))
    with pytest.raises(ca.errors.BadInput, match="no maps to join"):
        ca.Maps.joined([])


def test_a_dense_attention_of_ones_own_is_held_to_its_kinds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for name in vars(ca.DenseAttention()):
        for odd in (Foreign(), [[]], "x", {}, float("nan"), 1e300):
            given: dict[str, Any] = {name: odd}
            with pytest.raises(ca.errors.BadSpec):
                ca.DenseAttention(**given)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS_OF_MAPS)
def test_odd_options_of_a_method_are_read_or_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read gives numbers; where patches are whole, each of them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    clip, picture, texts = ca.load("demo"), examples()[:1], ["a bird", "a fish"]
    good = {"affinity": torch.rand(1, 64, 64)} if "affinity" in METHODS_OF_MAPS[name].needs else {}
    heatmap = FUNCTIONS["heatmap"]
    heatmap(clip, picture, texts, name, **good)
    found: list[str] = []
    for one in fields(METHODS_OF_MAPS[name].options):
        for odd in (*ODD, 1e300, 1e-300, float("inf"), -(10**9), 1, 1e-5, 3000.0, "v", ("vv",)):
            try:
                maps = heatmap(clip, picture, texts, name, **{**good, one.name: odd})
                if not bool(maps.values.isfinite().all()):
                    found.append(f"{one.name}={odd!r:.40}: not finite")
            except ca.errors.ClipAnatomyError:
                pass
            except Exception as error:
                found.append(f"{one.name}={odd!r:.40}: {error!r:.120}")
    assert "\n".join(found) == ""
