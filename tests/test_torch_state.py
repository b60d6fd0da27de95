"""Whatever the program around has set in torch, our functions return what they return without it, and leave it as it was."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clip_anatomy as ca
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.demo import examples
from clip_anatomy.naming.pool import Pool
from clip_anatomy.torch_state import plain_torch

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a bird", "a fish"]
PICTURES = examples()[:2]


@contextmanager
def switched(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Any:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def dtype(value: torch.dtype) -> AbstractContextManager[None]:
    return switched(torch.get_default_dtype, torch.set_default_dtype, value)


def products(value: str) -> AbstractContextManager[None]:
    return switched(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, value)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "double by default": lambda: dtype(torch.float64),
    "half by default": lambda: dtype(torch.bfloat16),
    "the meta device by default": lambda: torch.device("meta"),
    "coarse products": lambda: products("medium"),
    "numpy that raises": lambda: np.errstate(all="raise"),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
}


def test_a_transform_of_torch_func_around_is_named() -> None:
    clip = ca.load("demo", parity=False)
    for transform in (torch.func.vmap, torch.func.grad):
        with pytest.raises(BadInput, match=r"torch.func .* runs around this call.* Call it outside"):
            transform(lambda x: clip.encode_image(x[None]).sum())(torch.randn(3, 64, 64))


def test_tensors_without_numbers_are_named() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(BadInput, match="FakeTensorMode is on, where tensors have no numbers"):
        ca.load("demo", parity=False)


def maps(method: str, **options: Any) -> Callable[[ca.Clip], Any]:
    return lambda clip: ca.heatmap(clip, PICTURES, TEXTS, method, **options).values


def moments(clip: ca.Clip) -> Any:
    return ca.Moments.of(ca.decompose(clip, examples()[:6]).heads)


def edited(clip: ca.Clip) -> Any:
    return ca.Edit.of(clip, "3.0,3.1", by="zero").apply(ca.decompose(clip, PICTURES))


def tiled(clip: ca.Clip) -> ca.TiledMaps:
    slide = np.zeros((64, 72, 3), np.uint8)
    slide[20:40, 30:50] = 200
    return ca.tiled_maps(clip, slide, TEXTS, Path(tempfile.mkdtemp()) / "m.npy", "raw")


WORDS = Pool(("a bird", "a fish", "a red circle", "a tree at night"))
GIVEN = np.random.default_rng(0).normal(size=(24, 5))
CALLS: dict[str, Callable[[ca.Clip], Any]] = {
    "load": lambda _: ca.load("demo").encode_text(TEXTS),
    "encode_image": lambda clip: clip.encode_image(PICTURES),
    "encode_text": lambda clip: clip.encode_text(TEXTS, templates=["a picture of {}", "{}"]),
    "decompose": lambda clip: ca.decompose(clip, PICTURES).toward(clip.encode_text(TEXTS)).heads,
    "tokens": lambda clip: ca.decompose(clip, PICTURES, "official").tokens(clip.encode_text(TEXTS)),
    "decompose_text": lambda clip: ca.decompose_text(clip, TEXTS).mlps,
    "explain": lambda clip: ca.explain(clip, PICTURES, TEXTS).to_dict(),
    "decomposition": maps("decomposition"),
    "whole": maps("decomposition", size="whole"),
    "surgery": maps("surgery"),
    "gradcam": maps("gradcam"),
    "chefer": maps("chefer", layers=3),
    "legrad": maps("legrad", layers=2),
    "segment": lambda clip: ca.segment(clip, PICTURES, TEXTS).mask(0),
    "word_maps": lambda clip: ca.word_maps(clip, PICTURES[:1], "a red bird").words.values,
    "textspan": lambda clip: ca.textspan(moments(clip), clip.encode_text(["a", "b", "c d"]), 2).cumulative,
    "replace_parts": lambda clip: ca.replace_parts(clip, PICTURES, "3.0", "zero"),
    "edit": edited,
    "rerun": lambda clip: ca.replace_parts(clip, PICTURES, "3.0+mlp=4", "zero", effect="rerun"),
    "layer_maps": lambda clip: ca.layer_maps(clip, PICTURES[:1], TEXTS)[0].values,
    "scclip": maps("scclip"),
    "rfclip": maps("rfclip"),
    "sinks": lambda clip: ca.sinks(clip, PICTURES).mask,
    "pairs": lambda clip: ca.pairs(clip, PICTURES[0], "a red bird").values,
    "removal": lambda clip: ca.pairs(clip, "a blue fish", "a red bird", how="removal").values,
    "second_order": lambda clip: ca.second_order(clip, PICTURES, 6).effects(3),
    "principal": lambda clip: ca.second_order(clip, PICTURES, 6, convention="official").principal(3)[0],
    "concepts": lambda clip: ca.concepts(clip, texts=TEXTS, pool=WORDS, count=2).weights,
    "align": lambda _: ca.align(GIVEN, GIVEN[:, :2] ** 2, permutations=3, folds=2).weight,
    "registered": lambda clip: ca.registered(clip, neurons=[(5, 0)]).encode_image(PICTURES),
    "tiled_maps": lambda clip: np.array(tiled(clip).values),
}


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load("demo")


@pytest.fixture(scope="module")
def plain(clip: ca.Clip) -> dict[str, Any]:
    return {name: call(clip) for name, call in CALLS.items()}


def same(found: Any, wanted: Any) -> bool:
    """Equal to the last bit, of one type and precision, and no inference tensor."""
    if isinstance(wanted, torch.Tensor):
        return found.dtype == wanted.dtype and not found.is_inference() and torch.equal(found, wanted)
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(np.array_equal(found, wanted)) if isinstance(wanted, np.ndarray) else found == wanted


@pytest.mark.parametrize("state", STATES)
def test_results_are_the_same_under_any_state(state: str, clip: ca.Clip, plain: dict[str, Any]) -> None:
    with STATES[state]():
        found = {name: call(clip) for name, call in CALLS.items()}
    assert [name for name in CALLS if not same(found[name], plain[name])] == []


def test_a_store_is_the_same_whatever_the_state(clip: ca.Clip, tmp_path: Path) -> None:
    folder = Path(PICTURES[0]).parent
    ca.index(clip, folder, tmp_path / "plain")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), dtype(torch.float64):
        ca.index(clip, folder, tmp_path / "state")
        hits = [hit.row.id for hit in ca.search(tmp_path / "state", PICTURES[0], k=4, clip=clip).hits]
    stores = [ca.Store.open(tmp_path / name) for name in ("plain", "state")]
    assert torch.equal(*(store.heads(3, 1) for store in stores))
    assert torch.equal(*(store.embeddings() for store in stores))
    assert hits == [hit.row.id for hit in ca.search(tmp_path / "plain", PICTURES[0], k=4, clip=clip).hits]


def test_the_state_is_as_it_was_afterwards_also_after_an_error(clip: ca.Clip) -> None:
    with torch.autocast("cpu", dtype=torch.float16), torch.inference_mode(), dtype(torch.float64), torch.device("meta"):
        with pytest.raises(ca.errors.BadInput):
            ca.heatmap(clip, PICTURES, ["a"], "nonsense")
        clip.encode_image(PICTURES)
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
        assert (torch.get_default_dtype(), torch.empty(1).device.type) == (torch.float64, "meta")
        assert not torch.is_grad_enabled()


def test_texts_that_carry_gradients_are_taken_as_numbers(clip: ca.Clip) -> None:
    carried = clip.encode_text(TEXTS).requires_grad_()
    for method in ("decomposition", "gradcam"):
        assert torch.equal(
            ca.heatmap(clip, PICTURES, carried, method).values,
            ca.heatmap(clip, PICTURES, carried.detach(), method).values,
        )
    assert not ca.decompose(clip, PICTURES, texts=carried).tokens(carried).requires_grad
    assert carried.grad is None


def test_two_threads_under_another_default_do_not_see_each_other(clip: ca.Clip, plain: dict[str, Any]) -> None:
    found: list[Any] = []

    def work() -> None:
        found.extend((name, CALLS[name](clip)) for _ in range(3) for name in ("encode_image", "decompose", "gradcam"))

    with dtype(torch.float64):
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_default_dtype() == torch.float64
    assert len(found) == 18
    assert all(same(value, plain[name]) for name, value in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_goes_on_with_an_opened_model(clip: ca.Clip, plain: dict[str, Any]) -> None:
    child = os.fork()
    if not child:
        try:  # whatever happens: leave without any clearing up of the parent's, and without its other tests
            os._exit(0 if as_in_the_parent(clip, plain) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def as_in_the_parent(clip: ca.Clip, plain: dict[str, Any]) -> bool:
    if not all(same(CALLS[name](clip), plain[name]) for name in ("encode_image", "decompose", "surgery")):
        return False
    try:
        return same(CALLS["gradcam"](clip), plain["gradcam"])
    except BadInput as error:  # torch's own limit, where its threads of other devices had been started
        return "spawn" in str(error)


def test_gradients_in_a_forked_process_say_what_to_do(clip: ca.Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Unable to handle autograd's threading in combination with fork-based multiprocessing")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    with pytest.raises(BadInput, match="spawn"):
        ca.heatmap(clip, PICTURES, TEXTS, "gradcam")


COMPILED = """
import torch
import clip_anatomy as ca
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.demo import examples

clip = ca.load("demo")
text = clip.encode_text(["a bird"])

def shares(text):
    return 2 * ca.decompose(clip, examples()[:2]).toward(text).heads

wanted = shares(text)
assert torch.equal(torch.compile(shares, backend="eager")(text), wanted)
torch.use_deterministic_algorithms(True)
assert torch.equal(shares(text), wanted)
print(ca.heatmap(clip, examples()[:1], text, "gradcam", size="whole").values.shape)
"""


@pytest.mark.slow  # the compiler alone takes half a minute to import
def test_compiled_around_it_and_deterministic_it_is_the_same() -> None:
    """In a process of its own: the shape checks of the tests are nothing that the compiler can pass."""
    run = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_without_anything_set_nothing_is_touched() -> None:
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    with plain_torch(), plain_torch():
        assert not torch.is_grad_enabled()
    assert before == (torch.get_default_dtype(), torch.get_float32_matmul_precision())
    assert torch.is_grad_enabled()
