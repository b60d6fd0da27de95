"""Studies of a store answer what a direct computation answers, agree with the official code, and cost no image."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.edits.replace_parts import replace_parts
from clip_anatomy.edits.replacement import Replacement
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store
from clip_anatomy.studies import ablated_predictions
from clip_anatomy.studies.ablated_predictions import predictions
from clip_anatomy.studies.ablation_study import STUDIES, study
from clip_anatomy.studies.baseline import Baseline, baseline_of
from clip_anatomy.studies.study_result import Study, effects_of
from clip_anatomy.studies.token_parts import TokenParts, tokens_of
from clip_anatomy.studies.zero_shot_task import ZeroShotTask, ablation_task

IMAGES = 120


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip() -> Any:
    return ca.load("demo", parity=False)


@pytest.fixture(scope="module")
def folder(clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("studies") / "store"
    ca.index(clip, f"world:{IMAGES}:test", place, keep="heads,mlps")
    return place


@pytest.fixture
def store(folder: Path) -> Store:
    return Store.open(folder)


@pytest.fixture(scope="module")
def task(clip: Any, folder: Path) -> ZeroShotTask:
    return ablation_task(Store.open(folder), lambda: clip)


def contribution(store: Store, name: tuple[Any, ...], extra: dict[Any, TokenParts]) -> torch.Tensor:
    """One part of all images in the joint space, in float64."""
    rows = np.arange(len(store))
    if name[0] == "head":
        return store.heads(*name[1:]).double() @ store.basis.rows[store.layer_at(name[1]), name[2]]
    if name[0] == "mlp":
        return store.mlps(name[1]).double()
    if name[0] == "class-to-class":
        return extra[(0,)].layer(name[1], rows).double()
    if name[0] == "tokens":
        return next(x for tokens, x in extra.items() if tokens != (0,)).all(rows).double()
    rest = store.embeddings(unit=True).double()
    for layer in store.manifest.layers:
        rest = rest - store.mlps(layer).double()
        for head in range(store.manifest.heads):
            rest = rest - contribution(store, ("head", layer, head), {})
    return rest


def names(one: Selection) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = [("head", *pair) for pair in one.heads] + [("mlp", layer) for layer in one.mlps]
    found += [("class-to-class", layer) for layer in one.class_to_class] + ([("tokens",)] if one.tokens else [])
    return found + ([("rest",)] if one.input_embedding else [])


SETS = [
    Selection(),
    Selection(((7, 3),)),
    Selection.every(5, 6),
    Selection.every(6, 6),  # comes from the one before
    Selection.every(5, 6) | Selection(mlps=(7,)),  # a layer is put back
    Selection(((7, 3), (2, 0), (5, 5))),  # not in a row
    Selection(mlps=(0, 6), input_embedding=True),
    Selection(class_to_class=(6, 7)),
    Selection(tokens=(3, 9, 20), mlps=(2,)),
    Selection.every(8, 6) | Selection(mlps=tuple(range(8)), input_embedding=True),
]


@pytest.mark.parametrize("by", ["mean", "zero", "swap", "over"])
@pytest.mark.parametrize("small", [False, True])
def test_logits_are_those_of_a_direct_computation(
    clip: Any, store: Store, task: ZeroShotTask, *, by: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:  # several walks over the classes, pieces and tiles
        monkeypatch.setattr(ablated_predictions, "READER_BYTES", 48 * 4 * store.manifest.d * 5)
        monkeypatch.setattr(ablated_predictions, "PIECE", 70)
        monkeypatch.setattr(ablated_predictions, "CELLS", 200)
    union = Selection()
    for one in SETS:
        union |= one
    extra = tokens_of(store, lambda: clip, union)
    sets, over = SETS, None
    if by == "over":  # moments hold heads only
        over, sets = Moments.of(store.heads(7, 3)[:50].double()[:, None, None]), [SETS[0], SETS[1]]
        over = Moments.of(
            torch.stack(
                [torch.stack([store.heads(layer, head)[:50].double() for head in range(6)], 1) for layer in range(8)], 1
            ),
            basis=store.basis,
        )
        union = SETS[1]
    put = baseline_of(
        store, union, "mean" if by == "over" else by, over=over, other=11 if by == "swap" else None, tokens=extra
    )
    found = predictions(store, task.texts, sets, put, tokens=extra)
    for one, given in zip(sets, found, strict=True):
        x = store.embeddings(unit=True).double()
        for name in names(one):
            part = contribution(store, name, extra)
            x = x - part + {"mean": part.mean(0), "zero": 0.0, "swap": part[11], "over": part[:50].mean(0)}[by]
        logits = x @ task.texts.double().T
        two = logits.topk(2).values
        sure = (two[:, 0] - two[:, 1]) > 1e-4  # float16 sums may settle closer ones either way
        assert int(sure.sum()) > 0.9 * len(store) or one == SETS[-1]
        assert torch.equal(given[sure].long(), logits.argmax(1)[sure]), one.description


def test_only_the_images_that_are_asked_are_answered(store: Store, task: ZeroShotTask) -> None:
    sets = [Selection(), Selection.every(6, 6)]
    put = baseline_of(store, sets[1])
    every = predictions(store, task.texts, sets, put)
    some = predictions(store, task.texts, sets, put, rows=task.rows)
    assert torch.equal(some, every[:, torch.from_numpy(task.rows)])


def test_studies_count_what_the_live_model_answers(clip: Any, store: Store, task: ZeroShotTask) -> None:
    source = open_dataset(f"world:{IMAGES}:test")
    pixels = clip.pixels([picture.data for picture in source])
    for spec in ("none", "layer=0-5", "7.3", "mlp=all", "class-to-class=all"):
        found = study(store, select=[spec], clip=clip, task=task)
        x = replace_parts(clip, pixels, spec)[torch.from_numpy(task.rows)]
        right = (x @ task.texts.T).argmax(1) == task.labels
        assert found.effects[0].accuracy == pytest.approx(float(right.double().mean()), abs=1.5 / len(task.rows))


def test_the_numbers_of_a_study(clip: Any, store: Store) -> None:
    found = study(store, "layers", clip=clip, label="count", group="digit")
    told = [row.meta for row in store.rows()]
    asked = [at for at, one in enumerate(told) if not one.get("shape2")]
    assert found.images == len(asked)
    assert found.classes == ("one", "two", "three", "four")
    task = ablation_task(store, lambda: clip, label="count", group="digit")
    put = baseline_of(store, Selection.every(8, 6))
    picks = predictions(store, task.texts, [Selection(), Selection.every(6, 6)], put, rows=task.rows).numpy()
    words = ("one", "two", "three", "four")
    labels = np.array([words.index(told[at]["count"]) for at in asked])
    right = picks == labels
    effect = found.effects[5]
    assert effect.selection == Selection.every(6, 6)
    assert effect.accuracy == pytest.approx(right[1].mean())
    assert found.whole.accuracy == pytest.approx(right[0].mean())
    assert effect.change == pytest.approx(right[1].mean() - right[0].mean())
    assert (effect.lost, effect.won) == ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())
    assert effect.class_mean == pytest.approx(np.mean([right[1][labels == c].mean() for c in range(4)]))
    digits = np.array([str(told[at].get("digit", "")) for at in asked])
    for (name, images), accuracy in zip(found.groups, effect.groups, strict=True):
        assert images == (digits == name).sum()
        assert accuracy == pytest.approx(right[1][digits == name].mean())
    large = [(accuracy, group) for accuracy, group in zip(effect.groups, found.groups, strict=True) if group[1] >= 10]
    worst, (name, images) = min(large)
    assert found.worst(effect) == {"name": name, "accuracy": worst, "images": images}
    kept = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert kept["effects"][5]["accuracy"] == effect.accuracy
    assert (
        found.summary().splitlines()[0].endswith(f"percent of {len(asked)} images, 4 classes (count, 25.00 by chance).")
    )


def test_every_named_study_has_its_sets(clip: Any, store: Store, task: ZeroShotTask) -> None:
    asked = {name: study(store, name, clip=clip, task=task) for name in STUDIES}
    assert [one.selection for one in asked["layers"].effects] == [Selection.every(k, 6) for k in range(1, 9)]
    assert [one.selection for one in asked["last"].effects] == [Selection.every(8 - k, 6) for k in range(7, -1, -1)]
    assert len(asked["heads"].effects) == 48
    assert asked["heads"].ranked[0].change == min(one.change for one in asked["heads"].effects)
    assert asked["mlps"].effects[0].selection == Selection(mlps=tuple(range(8)))
    assert asked["class-to-class"].effects[0].selection == Selection(class_to_class=tuple(range(8)))
    for found in asked.values():
        assert found.whole.accuracy == asked["layers"].whole.accuracy
        assert all(0 <= one.accuracy <= 1 for one in found.effects)
        assert "worst group" in found.summary()


def test_the_next_study_reads_no_image(
    clip: Any, folder: Path, task: ZeroShotTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(folder, "class-to-class", clip=clip, task=task)

    def never() -> Any:
        raise AssertionError("the model was opened")

    for name in STUDIES:
        study(folder, name, clip=never, task=task)


def test_heads_by_their_texts(clip: Any, store: Store, task: ZeroShotTask) -> None:
    pool = torch.nn.functional.normalize(
        torch.randn(80, store.manifest.embed, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    span = textspan(store.moments(), pool, 5)
    found = predictions(
        store,
        task.texts,
        [Selection(((7, 0), (7, 3)))],
        baseline_of(store, Selection(((7, 0), (7, 3))), "texts", span=span),
    )
    x = store.embeddings(unit=True).double()
    for head in (0, 3):
        u = store.heads(7, head).double()
        again = span.mean[7, head] + (u - span.mean[7, head]) @ span.directions[7, head].T @ span.directions[7, head]
        x = x + (again - u) @ store.basis.rows[7, head]
    logits = x @ task.texts.double().T
    sure = logits.topk(2).values.diff(dim=1)[:, 0].abs() > 1e-4
    assert torch.equal(found[0][sure].long(), logits.argmax(1)[sure])
    few = study(store, select=["7.0,7.3"], clip=clip, task=task, by="texts", texts_per_head=3)
    assert few.baseline == "their first 3 texts"


def joint(baseline: Baseline, kind: Any, layer: int = -1, head: int = -1) -> torch.Tensor:
    found = baseline.of(Replacement(kind, layer, head, "zero")).baseline
    assert found is not None
    return found[0]


def coordinates(store: Store, baseline: Baseline, layer: int, head: int) -> torch.Tensor:
    return store.basis.rows[store.layer_at(layer), head] @ joint(baseline, "head", layer, head).double()


def test_means_of_another_set_and_another_image(clip: Any, store: Store, task: ZeroShotTask, tmp_path: Path) -> None:
    ca.index(clip, "world:40:val", tmp_path / "other", keep="heads,mlps")
    other = Store.open(tmp_path / "other")
    chosen = Selection(((7, 1), (6, 2)), mlps=(5,), input_embedding=True)
    put = baseline_of(store, chosen, over=other)
    torch.testing.assert_close(
        coordinates(other, put, 7, 1), other.moments().mean[7, 1], atol=1e-7, rtol=1e-5
    )  # float32
    torch.testing.assert_close(joint(put, "mlp", 5).double(), other.mlps(5).double().mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        joint(put, "input-embedding").double(), contribution(other, ("rest",), {}).mean(0), atol=2e-4, rtol=1e-3
    )
    swapped = study(store, select=["7.1"], clip=clip, task=task, by="swap", other=store.column("id")[3])
    assert store.column("id")[3] in swapped.baseline
    means = Means.of(clip, [picture.data for picture in open_dataset("world:40:val")])
    again = baseline_of(store, Selection(((7, 1),), mlps=(5,)), over=means)
    torch.testing.assert_close(coordinates(store, again, 7, 1), coordinates(store, put, 7, 1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(joint(again, "mlp", 5), joint(put, "mlp", 5), atol=1e-3, rtol=1e-2)


# ---- what cannot be


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        (
            {"select": ["9.0"]},
            BadSpec,
            "heads that do not exist: 9.0. Type LAYER.HEAD with a layer of 0-7 and a head of 0-5",
        ),
        ({"name": "layer"}, BadSpec, "Type one of: layers, last, heads, mlps, class-to-class"),
        ({"name": "heads", "select": ["7.0"]}, BadSpec, "not both"),
        ({"select": ["role=nonsense"]}, BadSpec, "no head of this atlas has the role 'nonsense'. Type one of"),
        ({"select": ["token=65"]}, BadSpec, "images have 65. Type token=0-64"),
        ({"select": ["7.0+class-to-class=7"]}, BadSpec, "replaced twice"),
        ({"by": "median"}, BadSpec, "Type one of: mean, zero, texts, swap"),
        ({"by": "swap"}, BadSpec, "Type other=ID"),
        ({"by": "swap", "other": "nobody"}, BadInput, "there is no image 'nobody'"),
        ({"by": "zero", "other": 3}, BadSpec, "type by='swap'"),
        ({"by": "texts", "name": "mlps"}, BadSpec, "only heads have texts"),
        (
            {"label": "nothing"},
            BadInput,
            "column 'nothing' is empty for these images. Type label=COLUMN with one of: label, group",
        ),
        ({"classes": "bird"}, BadInput, "two or more are needed"),
        ({"classes": ["bird", "bird"]}, BadInput, "two or more are needed"),
        ({"classes": ["bird", "dog"]}, BadInput, "match no class name: .*arrow.*Type classes="),
        ({"group": "nothing"}, BadInput, "the groups are empty: column 'nothing'.* Type group=COLUMN with one of"),
        ({"group": "id"}, BadInput, "these name images"),
        ({"texts": torch.full((12, 48), torch.nan), "classes": None}, BadInput, "not finite"),
    ],
)
def test_what_cannot_be_asked_is_named(
    clip: Any, store: Store, more: dict[str, Any], error: type[Exception], says: str
) -> None:
    if "texts" in more:
        more = {**more, "texts": torch.full((12, store.manifest.embed), torch.nan)}
    call = {"name": "layers", **more}
    with pytest.raises(error, match=says):
        study(store, call.pop("name"), clip=clip, **call)


def test_one_class_only_is_named(clip: Any, tmp_path: Path) -> None:
    from PIL import Image

    for at in range(4):
        (tmp_path / "photos" / "bird").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(at).integers(0, 255, (64, 64, 3), np.uint8)).save(
            tmp_path / "photos" / "bird" / f"{at}.png"
        )
    ca.index(clip, tmp_path / "photos", tmp_path / "store", layers="last:2")
    with pytest.raises(BadInput, match="names one class only .bird.*Type classes="):
        study(tmp_path / "store", "heads", clip=clip)
    found = study(tmp_path / "store", "heads", clip=clip, classes="bird, fish")
    assert "all images are of one class, bird" in found.notes[0]
    assert len(found.effects) == 2 * clip.image_tower.heads
    with pytest.raises(
        StoreError, match=r"holds layers 6, 7 of 8; 0, 1, 2, 3, 4, 5 are needed.*--layers all.*Or type study='heads'"
    ):
        study(tmp_path / "store", "layers", clip=clip, classes="bird, fish")
    with pytest.raises(StoreError, match=r"holds no MLPs.*--keep heads,mlps"):
        study(tmp_path / "store", select=["mlp=7"], clip=clip, classes="bird, fish")
    (tmp_path / "photos" / "bird" / "2.png").write_bytes((tmp_path / "photos" / "bird" / "3.png").read_bytes())
    with pytest.raises(StoreError, match=r"2.png is another picture now"):
        study(tmp_path / "store", "class-to-class", clip=clip, classes="bird, fish")
    (tmp_path / "photos" / "bird" / "1.png").unlink()
    with pytest.raises(StoreError, match=r"the pictures are read again, but: .*1.png.* Put the pictures back"):
        study(tmp_path / "store", "class-to-class", clip=clip, classes="bird, fish")
    assert not list((tmp_path / "store" / "tokens").glob("*"))  # nothing half-written


def test_scores_that_are_no_numbers_are_named(clip: Any, tmp_path: Path) -> None:
    ca.index(clip, "world:30:test", tmp_path / "store", keep="heads,mlps")
    store = Store.open(tmp_path / "store")
    task = ablation_task(store, lambda: clip)
    path = (
        store.blocks[0].folder / "heads" / "c" / "0" / "0" / "0" / "0"
    )  # of layer 0; an embedding in fixed point cannot be NaN
    values = np.memmap(path, np.float16, "r+", shape=(store.manifest.heads, 30, store.manifest.d))
    values[2, 7, 0] = np.nan
    values.flush()
    with pytest.raises(BadInput, match=r"the scores of 1 images are NaN or infinite \(first: world-0-test-7\).*verify"):
        study(Store.open(tmp_path / "store"), select=["0.2"], task=task)


def test_one_image_is_not_the_worst_group() -> None:
    task = ZeroShotTask(
        texts=torch.eye(2), classes=("a", "b"), column="label", rows=np.arange(22), labels=torch.zeros(22, dtype=torch.long),
        group_column="place", group_names=("land", "mars", "sea"), groups=torch.tensor([0] * 11 + [1] + [2] * 10),
    )  # fmt: skip
    picks = torch.zeros(2, 22, dtype=torch.long)
    picks[:, 11] = 1  # the one image of mars is wrong before and after
    picks[1, [12, 13]] = 1
    whole, effect = effects_of(picks, task, [("nothing", Selection()), ("some", Selection())])
    told = Study("selected", "T", "mean", "m", "x", "0", "s", 22, "label", ("a", "b"), "place", (("land", 11), ("mars", 1), ("sea", 10)), whole, (effect,))  # fmt: skip
    assert effect.groups == (1.0, 0.0, 0.8)
    assert told.worst(effect) == {"name": "sea", "accuracy": 0.8, "images": 10}
    assert told.worst(whole) == {"name": "land", "accuracy": 1.0, "images": 11}
    assert told.to_dict()["effects"][0]["worst_group"] == told.worst(effect)
    assert told.summary().splitlines()[3].endswith("80.0 sea (10)")
    alone = replace(told, groups=(("land", 3), ("mars", 1), ("sea", 2)))  # none is large: all count, and n says so
    assert alone.worst(effect) == {"name": "mars", "accuracy": 0.0, "images": 1}
