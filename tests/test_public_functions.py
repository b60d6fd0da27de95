"""What people call refuses arguments of another kind at the door, whatever they are, in one sentence that says what was expected."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

import clip_anatomy as ca
from clip_anatomy.argument_kinds import fits
from clip_anatomy.loading.demo import examples
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
    with pytest.raises(
        ca.errors.BadInput,
        match=r"preprocess is a function .*Type: preprocess=\{'size': .* or leave it away and hand over pixels",
    ):
        ca.load("demo", preprocess=lambda image: image)  # type: ignore[arg-type]
    with pytest.raises(ca.errors.BadInput, match=r"Leave it away, or type its default: device='auto'"):
        ca.load("demo", device=3)  # type: ignore[arg-type]
    with pytest.raises(ca.errors.BadSpec, match="weights=.* goes with open_clip:NAME"):
        ca.load("demo", weights="some.pt")


def test_half_a_character_stands_on_no_page() -> None:
    clip, text = ca.load("demo", parity=False), "a \ud800bird"
    for call in (lambda t: ca.heatmap(clip, examples()[:1], t), lambda t: ca.explain(clip, examples()[:1], t)):  # fmt: skip
        with pytest.raises(ca.errors.BadText, match=r"holds half a character: 'a \\ud800bird'. Type it in UTF-8"):
            call([text])
