"""Maps per word: they sum to the sentence's, they are the pair table of both towers, and on the demo world they point right."""

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.data.world.attribute_names import COLOURS, SHAPES
from clip_anatomy.data.world.scenes import World
from clip_anatomy.errors import BadSpec, BadText
from clip_anatomy.loading.tokenizer import open_clip_tokenizer
from clip_anatomy.loading.word_pieces import align
from clip_anatomy.maps.word_maps import word_directions, word_maps

pytestmark = pytest.mark.usefixtures("one_thread")


class Letters:
    """One token per letter, so that words have several."""

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.tensor([[1, *(2 + ord(c) % 90 for c in t.replace(" ", "")), 99] for t in texts])

    def pieces(self, text: str) -> list[str]:
        return ["<s>", *text.replace(" ", ""), "<e>"]


def test_words_and_rest_sum_to_the_sentence_and_are_the_two_towers_pair_table() -> None:
    clip = ca.load(tiny.open_clip_model(layers=2), tokenizer=Letters())
    pixels = torch.randn(2, 3, 32, 32)
    found = word_maps(clip, pixels, "ab c ab")
    assert found.words.texts == ("ab", "c", "ab (2)")
    total = found.words.values.sum(1, keepdim=True) + found.rest.values
    torch.testing.assert_close(total, found.sentence.values, atol=1e-6, rtol=1e-4)
    plain = ca.heatmap(clip, pixels, ["ab c ab"], against="nothing")
    torch.testing.assert_close(found.sentence.values, plain.values, atol=1e-6, rtol=1e-4)
    # longhand: what each token of the text wrote, and what each patch wrote, as vectors of the joint space
    eye = torch.eye(12)
    text, image = ca.decompose_text(clip, ["ab c ab"]), ca.decompose(clip, pixels)
    wrote = text.tokens(eye).sum((1, 2))[0]  # [token, embed], over ‖text‖
    seen = image.tokens(eye).sum((1, 2))[:, 1:]  # [image, patch, embed], over ‖image‖
    for at, tokens in enumerate(([1, 2], [3], [4, 5])):
        expected = (seen @ wrote[tokens].sum(0)).unflatten(1, (4, 4))
        torch.testing.assert_close(found.words.values[:, at], expected, atol=1e-6, rtol=1e-4)


def test_options_of_the_decomposition_pass_through() -> None:
    clip = ca.load(tiny.open_clip_model(layers=2), tokenizer=Letters())
    pixels = torch.randn(1, 3, 32, 48)
    parts = [word_maps(clip, pixels, "ab c", layers=[i]).words.values for i in (0, 1)]
    torch.testing.assert_close(sum(parts), word_maps(clip, pixels, "ab c").words.values, atol=1e-6, rtol=1e-4)
    assert word_maps(clip, pixels, "ab c", window=32).words.values.shape == (1, 2, 4, 6)
    for name in ("method", "against"):
        with pytest.raises(BadSpec, match=f"without {name}="):
            word_maps(clip, pixels, "ab c", **{name: False})
    for wrong in ("", "  "):
        with pytest.raises(BadText, match="holds no word"):
            word_maps(clip, pixels, wrong)


@pytest.mark.parametrize(
    "sentence",
    ["A photo of a hippopotamus, sleeping.", "naïve café 🦜 birds", "rock'n'roll  on\tgrass", "I don't; you do"],
)
def test_clips_own_tokenizer_is_aligned_with_words(sentence: str) -> None:
    from open_clip import SimpleTokenizer

    pieces = open_clip_tokenizer(SimpleTokenizer()).pieces(sentence)
    found = align(sentence, pieces)
    assert [word for word, _ in found] == sentence.split()
    assert sorted(n for _, tokens in found for n in tokens) == list(range(1, len(pieces) - 1))
    for word, tokens in found:
        assert tokens == list(range(tokens[0], tokens[-1] + 1))
        if word.isascii():
            assert "".join(pieces[n] for n in tokens) == word.lower()


def test_words_beyond_the_context_are_named() -> None:
    clip = ca.load("demo")
    names, parts, unit, cut = word_directions(clip, " ".join(["bird"] * 29 + ["fish", "star", "moon"]))
    assert names[-1] == "fish"
    assert cut == ("star", "moon")
    assert len(parts) == len(names)
    assert float(unit.norm()) == pytest.approx(1, abs=1e-5)


def test_on_the_demo_world_colour_words_point_at_their_own_object() -> None:
    clip = ca.load("demo")
    world = World(split="test", length=600)
    facts = world.facts(np.arange(600))
    chosen = np.flatnonzero(facts.mixed & (facts.count == 2))[:25]
    scenes = world.batch(chosen)
    hits, asked = {"colour": 0, "shape": 0}, 0
    for i in range(len(scenes)):
        names = [(COLOURS[scenes.facts.colour[i, j]], SHAPES[scenes.facts.shape[i, j]]) for j in (0, 1)]
        found = word_maps(clip, scenes.images[i], "a {} {} and a {} {}".format(*names[0], *names[1])).words
        mask = F.avg_pool2d(torch.tensor(scenes.masks[i, :2]).float(), 8)
        for j in (0, 1):
            asked += 1
            for kind, word in (("colour", 1 + 4 * j), ("shape", 2 + 4 * j)):
                hits[kind] += bool(mask[j].flatten()[found.values[0, word].argmax()] > 0.2)
    assert hits["colour"] / asked >= 0.9
    assert hits["shape"] / asked >= 0.45
