"""Selections: sets of parts, in words, as people type them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_anatomy.edits.selection import Selection
from clip_anatomy.edits.selection_parser import POOL
from clip_anatomy.errors import BadSpec
from clip_anatomy.naming.atlas import Atlas, AtlasHead, AtlasText
from clip_anatomy.naming.roles import Role

LAYERS, HEADS = 6, 3
numbers = st.sets(st.integers(0, LAYERS - 1)).map(tuple)
pairs = st.sets(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, HEADS - 1))).map(tuple)
# Built inside the tests: the shape checks draw random numbers, which hypothesis does not want in a strategy.
selections = st.tuples(pairs, numbers, numbers, st.booleans(), st.sets(st.integers(0, 50)).map(tuple))
Drawn = tuple[tuple[tuple[int, int], ...], tuple[int, ...], tuple[int, ...], bool, tuple[int, ...]]


def bits(selection: Selection) -> set[tuple[object, ...]]:
    return {
        *(("head", *pair) for pair in selection.heads),
        *(("mlp", layer) for layer in selection.mlps),
        *(("class", layer) for layer in selection.class_to_class),
        *([("input-embedding",)] if selection.input_embedding else []),
        *(("token", token) for token in selection.tokens),
    }


@given(selections, selections)
def test_it_is_a_set(one: Drawn, other: Drawn) -> None:
    a, b = Selection(*one), Selection(*other)
    assert bits(a | b) == bits(a) | bits(b)
    assert bits(a - b) == bits(a) - bits(b)
    assert len(a) == len(bits(a))
    assert bool(a) == bool(bits(a))
    assert (a == b) == (bits(a) == bits(b))


@given(selections)
def test_written_down_in_json_and_as_typed_it_comes_back(one: Drawn) -> None:
    a = Selection(*one)
    assert Selection.of_dict(json.loads(json.dumps(a.to_dict()))) == a
    assert Selection.parse(a.spec, LAYERS, HEADS) == a
    assert a.checked(LAYERS, HEADS, tokens=51) is a


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("2.1, 0.2", Selection(((0, 2), (2, 1)))),
        ("2.1+2.1", Selection(((2, 1),))),
        ("layer=0-1", Selection(tuple((layer, head) for layer in (0, 1) for head in range(3)))),
        ("last=1", Selection(((5, 0), (5, 1), (5, 2)))),
        ("all", Selection(tuple((layer, head) for layer in range(6) for head in range(3)))),
        ("mlp=all", Selection(mlps=tuple(range(6)))),
        ("MLPs=0-2,5", Selection(mlps=(0, 1, 2, 5))),
        ("class-to-class=all + input-embedding", Selection(class_to_class=tuple(range(6)), input_embedding=True)),
        ("tokens=0,7-9", Selection(tokens=(0, 7, 8, 9))),
        ("none", Selection()),
        ("role=background+mlp=1", Selection(((4, 1), (5, 0)), (1,))),
        ("words=striped fabric", Selection(((5, 2),))),
    ],
)
def test_what_people_type(spec: str, expected: Selection) -> None:
    assert Selection.parse(spec, LAYERS, HEADS, atlas()) == expected


@pytest.mark.parametrize(
    ("spec", "says", "type_instead"),
    [
        ("9.3", "heads that do not exist: 9.3", "a layer of 0-5 and a head of 0-2"),
        ("0.3,1.1", "heads that do not exist: 0.3", "0-2"),
        ("layer=4-6", "there is no layer 6", "layer=0-5"),
        ("mlp=12", "there is no layer 12", "mlp=0-5"),
        ("mlp=one", "numbers were expected", "mlp=all"),
        ("class-to-class=0-", "numbers were expected", "class-to-class=all"),
        ("last=7", "there are 6 layers", "last=1 to last=6"),
        ("last=0", "there are 6 layers", "last=1 to last=6"),
        ("last=²", "there are 6 layers", "last=1 to last=6"),
        ("mlp=" + "9" * 5000, "numbers were expected", "mlp=all"),
        ("9" * 5000 + ".1", "LAYER.HEAD was expected", "9.3,10.1"),
        ("token=9-7", "runs backwards", "token=7-9"),
        ("token=0-99999999999999", "no image has so many", "token=0-9"),
        ("layer=0-99999999999999", "there is no layer", "layer=0-5"),
        ("3.", "LAYER.HEAD was expected", "9.3,10.1"),
        ("", "names no part", "role=background"),
        ("2.1++mlp=1", "names no part", "role=background"),
        ("heads of colour", "names no part", "layer=0-5"),
        ("role=colour", "no head of this atlas has the role 'colour'", "background"),
        ("words=zebra", "no text of any head holds", "other words"),
    ],
)
def test_a_wrong_name_is_named_with_what_to_type(spec: str, says: str, type_instead: str) -> None:
    with pytest.raises(BadSpec) as caught:
        Selection.parse(spec, LAYERS, HEADS, atlas())
    assert says in str(caught.value)
    assert type_instead in str(caught.value).split("Type", 1)[1]


def test_names_need_an_atlas_and_layers_that_are_there() -> None:
    with pytest.raises(BadSpec, match=r"Make one: clip-anatomy atlas STORE"):
        Selection.parse("role=background", LAYERS, HEADS)
    assert Selection.parse("role=background", [5], HEADS, atlas()) == Selection(((5, 0),))
    with pytest.raises(BadSpec, match="layers that are not here"):
        Selection.parse("role=background", [2, 3], HEADS, atlas())
    with pytest.raises(BadSpec, match=r"a layer of 4-5"):
        Selection.parse("3.0", [4, 5], HEADS)
    assert Selection.parse("last=1", [4, 5], HEADS) == Selection.every([5], HEADS)


def test_described_in_few_words() -> None:
    assert Selection().description == "nothing"
    assert Selection(((9, 3),)).description == "head 9.3"
    assert Selection.every(range(8), 12).description == "96 heads of layers 0-7"
    assert Selection(mlps=(3,), class_to_class=(0, 1), input_embedding=True, tokens=(0, 5)).description == (
        "MLP 3; class-to-class attention 0-1; input embedding; tokens 0, 5"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": [[1, 2, 3]]},
        {"heads": 3},
        {"heads": [[1, "x"]]},
        {"mlps": ["four"]},
        {"mlp": [4]},
        {"mlps": [-1]},
        {"mlps": ["pools"]},
    ],
)
def test_what_is_no_selection_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadSpec, match="Type"):
        Selection.of_dict(wrong)


def test_tokens_are_checked_where_their_number_is_known() -> None:
    with pytest.raises(BadSpec, match=r"token=0-9 \(0 is the class token\)"):
        Selection(tokens=(10,)).checked(LAYERS, HEADS, tokens=10)


def atlas() -> Atlas:
    def head(layer: int, number: int, role: str, text: str) -> AtlasHead:
        told = AtlasText(text, "", 0.5, 0.5, 0.5, "", 0.1)
        return AtlasHead(layer, number, Role(role, 0.6), 1.0, 4, 0.5, 0.6, (told,))

    heads = (
        head(4, 1, "background", "a photo of a beach"),
        head(5, 0, "background", "a photo of a forest"),
        head(5, 2, "texture", "a striped piece of fabric"),
    )
    return Atlas("tiny", "0", "store", 10, (4, 5), HEADS, "pool", 3, 10, 0.1, heads)


def test_the_mlp_behind_a_pool_is_typed_written_and_read_back() -> None:
    found = Selection.parse("mlp=1,pool+0.1", 2, 2, pool=True)
    assert found == Selection(heads=((0, 1),), mlps=(POOL, 1))
    assert found.spec == "0.1+mlp=1,pool"
    assert Selection.parse("mlp=all", 2, 2, pool=True).spec == "mlp=0-1,pool"
    assert Selection.parse("mlp=all", 2, 2).mlps == (0, 1)
    assert found.to_dict()["mlps"] == ["pool", 1]
    assert Selection.of_dict(found.to_dict()) == found
    with pytest.raises(BadSpec, match="no MLP behind an attention pool is here. Type mlp=0-1"):
        Selection.parse("mlp=pool", 2, 2)
    with pytest.raises(BadSpec, match="mlp=pool: no such layer"):
        found.checked(2, 2)
