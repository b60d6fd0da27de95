"""The demo world tells the truth about its pictures, and the shipped model knows the world as well as the card says."""

import itertools
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_anatomy.data.world import ATTRIBUTES, GROUPS, Claim, Scenes, World, truth
from clip_anatomy.data.world.accuracy import evaluate, prompts
from clip_anatomy.data.world.attribute_names import COLOURS, COUNTS, PALETTE, SHAPES, TIES
from clip_anatomy.data.world.captions import plural
from clip_anatomy.data.world.scenes import captions_of
from clip_anatomy.data.world.shapes import REACH, outline
from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.word_tokenizer import WordTokenizer

DEMO = Path(__file__).parents[1] / "src" / "clip_anatomy" / "loading" / "demo"


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return World(split="val").batch(np.arange(400))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=6))
def test_a_picture_is_the_same_in_every_batch(indices: list[int]) -> None:
    together = World().batch(np.array(indices))
    for row, index in enumerate(indices):
        alone = World().batch(np.array([index]))
        assert np.array_equal(together.images[row], alone.images[0])
        assert np.array_equal(together.masks[row], alone.masks[0])
        assert together.captions(2)[row] == alone.captions(2)[0]


@pytest.mark.parametrize(("size", "count"), [(64, 256), (40, 64), (160, 24)])
def test_a_large_batch_holds_the_pictures_of_small_ones(size: int, count: int) -> None:
    """Objects of one shape are drawn together, in windows as wide as the largest needs: none may be cut by its neighbours' size."""
    world = World(split="val", size=size, balanced=True)
    together = world.batch(np.arange(count))
    for index in range(count):
        alone = world.batch(np.array([index]))
        assert np.array_equal(together.images[index], alone.images[0])
        assert np.array_equal(together.masks[index], alone.masks[0])


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
def test_shapes_reach_no_further_than_their_window(shape: int) -> None:
    """Measured on a fine grid, at every likeness and tilt of the world, for rims of up to a third of the radius."""
    far, sharp = REACH[SHAPES[shape]]
    fivefold = SHAPES[shape] in ("star", "flower")
    grid = np.linspace(-2.3, 2.3, 461, dtype=np.float32)
    x, y = np.broadcast_arrays(grid[None, None, :], grid[None, :, None])
    for likeness in np.linspace(0, 1, 5, dtype=np.float32):
        distance = outline(shape, x, y, np.full((1, 1, 1), likeness))[0]
        for rim in (0.0, 0.1, 0.2, 0.33):
            rows, cols = np.nonzero(distance <= rim)
            for angle in np.linspace(-np.pi, np.pi, 25) if fivefold else np.linspace(-0.25, 0.25, 11):
                cos, sin = np.cos(angle), np.sin(angle)
                edges = np.abs([cos * grid[cols] - sin * grid[rows], sin * grid[cols] + cos * grid[rows]]).max()
                assert edges <= far + sharp * rim


def test_splits_and_seeds_share_no_picture() -> None:
    worlds = [World(split="train"), World(split="val"), World(split="test"), World(seed=1)]
    seen = [{image.tobytes() for image in world.batch(np.arange(200)).images} for world in worlds]
    for a, b in itertools.combinations(seen, 2):
        assert not a & b


def test_it_is_a_data_set() -> None:
    world = World(length=300)
    assert len(world) == 300
    assert np.array_equal(world[-1].images, world[299].images)
    assert sum(1 for _ in world) == 300
    with pytest.raises(IndexError, match="picture 300"):
        world[300]
    with pytest.raises(BadSpec, match="train, val, test"):
        World(split="dev")
    with pytest.raises(BadSpec, match="size=64"):
        World(size=8)


def test_masks_tell_count_and_position(scenes: Scenes) -> None:
    facts, masks = scenes.facts, scenes.masks
    assert np.array_equal(masks.any(axis=(2, 3)).sum(axis=1), facts.count)
    assert (masks.sum(axis=1) <= 1).all(), "visible masks do not overlap"
    names = ATTRIBUTES["position"]
    for row in np.flatnonzero(facts.count == 1):
        y, x = (values.mean() / 64 for values in np.nonzero(masks[row, 0]))
        middle = abs(x - 0.5) < 0.12 and abs(y - 0.5) < 0.12
        seen = "centre" if middle else f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"
        assert names[facts.position[row]] == seen
    assert (facts.position[facts.count != 1] == -1).all()


def test_objects_stay_inside_and_the_label_covers_none(scenes: Scenes) -> None:
    border = np.ones((64, 64), dtype=bool)
    border[1:-1, 1:-1] = False
    assert (scenes.masks & border).any(axis=(1, 2, 3)).mean() < 0.04, "only a tilted corner may touch the border"
    covered = [
        row
        for row in np.flatnonzero(scenes.facts.digit > 0)
        if _label_pixels(scenes.facts.corner[row])[None].repeat(4, 0)[scenes.masks[row]].any()
    ]
    assert len(covered) <= 0.02 * (scenes.facts.digit > 0).sum()


def _label_pixels(corner: int) -> np.ndarray:
    plane = np.zeros((64, 64), dtype=bool)
    plane[slice(52, 63) if corner >= 2 else slice(1, 12), slice(54, 63) if corner % 2 else slice(1, 10)] = True
    return plane


def test_pixels_have_the_colour_that_is_claimed(scenes: Scenes) -> None:
    facts = scenes.facts
    solid = np.flatnonzero((facts.texture[:, 0] == 0) & ~facts.mixed & (facts.size == 1))
    assert len(solid) > 20
    for row in solid:
        inside = scenes.images[row][scenes.masks[row, 0]] / 255
        distances = [np.median(np.abs(inside - np.array(colour)).sum(axis=1)) for colour in PALETTE]
        assert int(np.argmin(distances)) == facts.colour[row, 0]


def test_natural_and_balanced_draws_have_their_shares() -> None:
    for balanced, tied, agree in ((False, 0.95, 0.98), (True, 0.5, 0.5)):
        facts = World(balanced=balanced).facts(np.arange(40_000))
        own = np.array([TIES.get(code, (-1, -1))[0] for code in range(len(SHAPES))])[facts.shape[:, 0]]
        is_tied = facts.shape[:, 0] < 4
        assert np.mean((facts.background == own)[is_tied]) == pytest.approx(tied, abs=0.01)
        printed = facts.digit > 0
        assert printed.mean() == pytest.approx(0.45, abs=0.01)
        assert np.mean((facts.digit == facts.count)[printed]) == pytest.approx(agree, abs=0.01)
        for column, values in (("shape", SHAPES), ("colour", COLOURS)):
            shares = np.bincount(getattr(facts, column)[:, 0], minlength=len(values)) / len(facts)
            assert shares == pytest.approx(np.full(len(values), 1 / len(values)), abs=0.01)
        majority = (facts.group >= 0) & (facts.group % 2 == 0)
        minority = (facts.group >= 0) & (facts.group % 2 == 1)
        assert majority.sum() / (majority.sum() + minority.sum()) == pytest.approx(tied, abs=0.01)


def test_the_outline_leans_to_the_right_side_in_nineteen_of_twenty() -> None:
    facts = World().facts(np.arange(40_000))
    tied = facts.shape[:, 0] < 4
    right = (facts.likeness > 0.5) == (facts.shape[:, 0] % 2 == 1)
    assert right[tied].mean() == pytest.approx(0.95, abs=0.01)


def test_any_size_shows_the_same_scene() -> None:
    small, large = World(size=64).batch(np.arange(24)), World(size=192).batch(np.arange(24))
    assert large.images.shape == (24, 192, 192, 3)
    shrunk = large.images.reshape(24, 64, 3, 64, 3, 3).mean(axis=(2, 4))
    assert np.abs(shrunk - small.images).mean() < 8
    ours, theirs = small.masks.any(axis=1), large.masks.any(axis=1)[:, 1::3, 1::3]
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9


def test_words_of_captions_hold_in_their_pictures(scenes: Scenes) -> None:
    plurals = {plural(name): name for name in SHAPES}
    labels = scenes.labels()
    for row, captions in enumerate(scenes.captions(6)):
        shown = {labels[key][row] for key in ("shape", "shape2", "colour", "colour2", "count")}
        for text in captions:
            words = set(text.split())
            assert {plurals.get(word, word) for word in words & {*SHAPES, *plurals}} <= shown, text
            assert words & set(COLOURS) <= shown, text
            assert words & set(COUNTS) <= shown, text
            assert {word for word in words if word.isdigit()} <= {labels["digit"][row]}, text


def test_truth_equals_a_loop_over_pictures_and_claims(scenes: Scenes) -> None:
    facts = scenes.facts[:80]
    rng = random.Random(0)
    claims = [claim for row in captions_of(facts, 5, 2) for _, claim in row]
    claims += [Claim(kinds=((rng.randrange(12), -1, -1), (-1, rng.randrange(8), -1))) for _ in range(20)]

    def holds(row: int, claim: Claim) -> bool:
        drawn = [
            (int(facts.shape[row, k]), int(facts.colour[row, k]), int(facts.texture[row, k]))
            for k in range(2)
            if facts.shape[row, k] >= 0
        ]
        fits = any(
            all(
                all(a in (-1, b) for a, b in zip(said, seen, strict=True))
                for said, seen in zip(claim.kinds, order, strict=False)
            )
            and len(order) >= len(claim.kinds)
            for order in itertools.permutations(drawn)
        )
        several = facts.count[row] > 1 and len(drawn) == 1
        counted = claim.count == -1 or (several if claim.count == 5 else facts.count[row] == claim.count)
        rest = all(
            getattr(claim, key) in (-1, int(getattr(facts, key)[row]))
            for key in ("size", "position", "background", "digit")
        )
        return bool(fits and counted and rest)

    expected = np.array([[holds(row, claim) for claim in claims] for row in range(len(facts))])
    assert np.array_equal(truth(facts, claims), expected)
    assert truth(facts, claims)[np.arange(80), np.arange(0, 160, 2)].all(), "a caption is true of its own picture"


def test_test_prompts_are_new_sentences_of_known_words() -> None:
    trained = {text for row in captions_of(World().facts(np.arange(20_000)), 0, 2) for text, _ in row}
    asked = [prompt for name in (*ATTRIBUTES, "digit") for row in prompts(name) for prompt in row]
    assert len(asked) == len(set(asked))
    assert not trained & set(asked)
    assert WordTokenizer.bundled().unknown(" ".join(asked)) == []


def test_five_hundred_pictures_a_second_and_core() -> None:
    world = World()
    world.batch(np.arange(64))
    began = time.process_time()
    world.batch(np.arange(512))
    assert 512 / (time.process_time() - began) >= 500


def test_the_shipped_model_meets_the_bars() -> None:
    """Issue 2, §5, through open_clip's own class; `bench/world.py` prints the whole table for 2,000 pictures."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import load_file

    weights = DEMO / "open_clip_model.safetensors"
    assert weights.stat().st_size <= 15e6
    model = open_clip.CLIP(**json.loads((DEMO / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"])
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()}, strict=True)
    model.eval()
    words = WordTokenizer.bundled()
    report = evaluate(model.encode_image, lambda texts: model.encode_text(words(texts)), 600)
    for attribute, bar in {
        "shape": 0.95,
        "colour": 0.95,
        "background": 0.95,
        "texture": 0.95,
        "position": 0.90,
        "count": 0.80,
    }.items():
        assert report.accuracy[attribute] >= bar, (attribute, report.accuracy[attribute])
    assert set(report.groups) == set(GROUPS)
    assert report.worst_group <= report.group_mean - 0.20
    assert report.worst_group <= report.tied_natural - 0.20
    assert report.accuracy["count with a false digit"] <= report.accuracy["count with a true digit"] - 0.15
