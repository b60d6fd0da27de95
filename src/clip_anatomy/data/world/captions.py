"""English about pictures, with its meaning kept: each caption comes with the claim it makes, so its truth can be computed."""

import random
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from clip_anatomy.data.world.attribute_names import BACKGROUNDS, COLOURS, COUNTS, POSITIONS, SHAPES
from clip_anatomy.data.world.attributes import SceneAttributes

PLURAL = 5  # a claim's count when the caption speaks of several objects without saying how many

FRAMES = (
    "{}",
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "this is {}",
    "there is {}",
    "we see {}",
    "i see {}",
    "you can see {}",
    "a scene with {}",
    "a picture with {}",
    "a photo showing {}",
    "look at {}",
    "here is {}",
    "an image that contains {}",
    "it shows {}",
    "the picture shows {}",
    "the photo has {} in it",
    "a simple drawing of {}",
    "a nice photo of {}",
    "a good picture of {}",
    "an illustration of {}",
    "a painting of {}",
    "a close up of {}",
    "can you see {}",
    "show me {}",
    "find {}",
    "my picture of {}",
    "some picture of {}",
    "a view of {}",
)
# Held out for evaluation: made of the same words, never used in training captions.
TEST_FRAMES = (
    "a photo with {}",
    "an image showing {}",
    "this picture contains {}",
    "here we see {}",
    "the image has {} in it",
)

_PLURALS = {"fish": "fish", "cross": "crosses"}
_THINGS = ("object", "object", "thing", "shape", "figure")
_TEXTURE_WORDS = (("solid", "plain"), ("striped",), ("dotted", "spotted"), ("checkered", "checked"))
_TEXTURE_PHRASES = ("without any pattern", "with stripes", "with dots", "with checks")
_SIZE_WORDS = (("small", "small", "little"), ("large", "large", "big"))
_PLACES = (
    ("top left", "upper left"),
    ("top right", "upper right"),
    ("bottom left", "lower left"),
    ("bottom right", "lower right"),
    ("centre", "center", "middle"),
)
_SETTINGS = (
    ("in the sky", "against the sky"),
    ("in the water", "in water"),
    ("at night", "in the night"),
    ("on the grass", "on grass"),
    ("on the sand", "on sand"),
    ("on a brick wall", "on brick"),
    ("in the snow", "on snow"),
    ("on wood", "on a wood floor"),
)

Kind = tuple[int, int, int]  # shape, colour, texture; −1 for "any"


@dataclass(frozen=True)
class Claim:
    """What a caption asserts; −1 and empty mean that it says nothing about it.

    Attributes:
        kinds: up to two kinds of object that must be present, each (shape, colour, texture).
        count: exact number of objects, or PLURAL for "more than one".
        size, position, background: codes.
        digit: printed digit, 0 for "no number".
    """

    kinds: tuple[Kind, ...] = ()
    count: int = -1
    size: int = -1
    position: int = -1
    background: int = -1
    digit: int = -1


def truth(facts: SceneAttributes, claims: list[Claim]) -> Bool[np.ndarray, "image text"]:
    """Say which claims hold of which pictures.

    Example:
        >>> from clip_anatomy.data.world import World
        >>> facts = World(split="test").facts(np.arange(4))
        >>> bool(truth(facts, [Claim(), Claim(count=9)]).all(axis=0)[0])
        True
    """
    true = np.ones((len(facts), len(claims)), dtype=bool)
    for name in ("size", "position", "background", "digit"):
        claimed = np.array([getattr(claim, name) for claim in claims])
        true &= (claimed == -1) | (getattr(facts, name)[:, None] == claimed)
    claimed = np.array([claim.count for claim in claims])
    count = facts.count[:, None]
    true &= (claimed == -1) | (count == claimed) | ((claimed == PLURAL) & (count > 1) & ~facts.mixed[:, None])
    blank: Kind = (-1, -1, -1)
    pairs = np.array([(*claim.kinds, blank, blank)[:2] for claim in claims])  # [text, 2, 3]
    drawn = np.stack([facts.shape, facts.colour, facts.texture], axis=-1)[:, :, None, None]  # [image, 2, 1, 1, 3]
    match = ((pairs == -1) | (drawn == pairs)).all(axis=-1)  # [image, kind drawn, text, kind said]
    both = np.array([len(claim.kinds) == 2 for claim in claims])
    either = match[:, 0, :, 0] | (match[:, 1, :, 0] & facts.mixed[:, None])
    crossed = (match[:, 0, :, 0] & match[:, 1, :, 1]) | (match[:, 0, :, 1] & match[:, 1, :, 0])
    return true & np.where(both, crossed & facts.mixed[:, None], either)


def article(phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def plural(noun: str) -> str:
    """Return a noun's plural."""
    return _PLURALS.get(noun, noun + "s")


def setting(background: int) -> str:
    """Return the usual phrase for a background, such as "on the grass"."""
    return _SETTINGS[background][0]


def describe(facts: SceneAttributes, row: int, rng: random.Random) -> tuple[str, Claim]:
    """Write one caption of a picture: all it shows, two facts, or one.

    Args:
        facts: a batch.
        row: which picture of the batch.
        rng: decides what is said and how.

    Returns:
        The caption (lower case) and its claim, which is true of the picture.
    """
    mixed = bool(facts.shape[row, 1] >= 0)
    topics = ["shape", "colour", "texture", "background"]
    if not mixed:
        topics += ["size", "count"] + (["position"] if facts.position[row] >= 0 else [])
    if facts.digit[row] > 0 or rng.random() < 0.1:
        topics.append("digit")
    chance = rng.random()
    if chance < 0.45:
        chosen = {rng.choice(topics)}
    elif chance < 0.70:
        chosen = set(rng.sample(topics, 2))
    else:
        chosen = {topic for topic in topics if rng.random() < 0.6} or {"shape"}
    if len(chosen) == 1 and rng.random() < 0.35:
        special = _plain_statement(facts, row, next(iter(chosen)), mixed, rng)
        if special is not None:
            return special
    return _sentence(facts, row, chosen, mixed, rng)


def _kind(facts: SceneAttributes, row: int, column: int, topics: set[str]) -> Kind:
    shape, colour, texture = facts.shape[row, column], facts.colour[row, column], facts.texture[row, column]
    return (
        int(shape) if "shape" in topics else -1,
        int(colour) if "colour" in topics else -1,
        int(texture) if "texture" in topics else -1,
    )


def _noun_phrase(kind: Kind, size: int, number: str | None, rng: random.Random) -> str:
    """Return "a small red striped circle" or, with a number word, "three red circles"; number "" is a bare plural."""
    shape, colour, texture = kind
    words, after = [], ""
    if size >= 0:
        words.append(rng.choice(_SIZE_WORDS[size]))
    if colour >= 0:
        words.append(COLOURS[colour])
    if texture >= 0:
        if rng.random() < 0.2:
            after = " " + _TEXTURE_PHRASES[texture]
        else:
            words.insert(len(words) if rng.random() < 0.8 else 0, rng.choice(_TEXTURE_WORDS[texture]))
    noun = SHAPES[shape] if shape >= 0 else rng.choice(_THINGS)
    if number is None:
        return article(" ".join([*words, noun])) + after
    if number in ("one", "a single"):
        return " ".join([number, *words, noun]) + after
    return " ".join([number, *words, plural(noun)]).strip() + after


def _sentence(facts: SceneAttributes, row: int, topics: set[str], mixed: bool, rng: random.Random) -> tuple[str, Claim]:
    """Write a noun phrase with what goes around it, in a frame."""
    count, size = -1, int(facts.size[row]) if "size" in topics else -1
    if mixed:
        first = rng.randrange(2)
        columns = (first, 1 - first) if rng.random() < 0.75 else (first,)
        kinds = tuple(_kind(facts, row, column, topics) for column in columns)
        kinds = tuple(kind for kind in kinds if kind != (-1, -1, -1)) or ((-1, -1, -1),)
        joint = rng.choice((" and ", " and ", " next to ", " beside "))
        phrase = joint.join(_noun_phrase(kind, size, None, rng) for kind in kinds)
    else:
        kinds = (_kind(facts, row, 0, topics),)
        number: str | None = None
        if "count" in topics:
            count = int(facts.count[row])
            number = "a single" if count == 1 and rng.random() < 0.3 else COUNTS[count - 1]
        elif facts.count[row] > 1 and rng.random() < 0.6:
            count, number = PLURAL, ""
        phrase = _noun_phrase(kinds[0], size, number, rng)
    position, background, digit = -1, -1, -1
    around = []
    if "position" in topics:
        position = int(facts.position[row])
        place = rng.choice(_PLACES[position])
        around.append(rng.choice((f"in the {place}", f"at the {place}", f"in the {place} of the picture")))
        if position < 4 and rng.random() < 0.3:
            around[-1] = f"in the {place} corner"
    if "background" in topics:
        background = int(facts.background[row])
        around.insert(rng.randrange(len(around) + 1), rng.choice(_SETTINGS[background]))
    if "digit" in topics:
        digit = int(facts.digit[row])
        around.append(
            rng.choice((f"with the number {digit}", f"and the number {digit}", f"labelled {digit}"))
            if digit
            else rng.choice(("without a number", "with no number"))
        )
    frame = rng.choice(FRAMES)
    if count > 1:
        frame = frame.replace("this is", "these are").replace("there is", "there are").replace("here is", "here are")
    text = frame.format(" ".join([phrase, *around]))
    if (kinds == ((-1, -1, -1),)) and count == -1 and size == -1:
        kinds = ()
    return text, Claim(kinds, count, size, position, background, digit)


def _plain_statement(
    facts: SceneAttributes, row: int, topic: str, mixed: bool, rng: random.Random
) -> tuple[str, Claim] | None:
    """Write a sentence about one attribute alone, without naming an object where English allows it."""
    column = rng.randrange(2) if mixed else 0
    kind = _kind(facts, row, column, {topic})
    shape, colour, texture = kind
    if topic == "shape":
        name = SHAPES[shape]
        options = (f"the shape of {article(name)}", name, f"the object is {article(name)}", plural(name))
        pick = rng.choice(options[:3] if facts.count[row] == 1 or mixed or name == "fish" else options)
        return pick, Claim((kind,), count=PLURAL if pick == options[3] and pick != name else -1)
    if topic == "colour":
        name = COLOURS[colour]
        return rng.choice(
            (f"something {name}", f"the colour {name}", f"the color {name}", name, f"the object is {name}")
        ), Claim((kind,))
    if topic == "texture":
        word = rng.choice(_TEXTURE_WORDS[texture])
        options = (f"something {word}", f"a {word} pattern", f"a {word} texture", word, f"the object is {word}")
        return rng.choice(options), Claim((kind,))
    if topic == "background":
        code = int(facts.background[row])
        name = BACKGROUNDS[code]
        options = (
            f"the background is {name}",
            f"a {name} background",
            f"something {setting(code)}",
            name,
            setting(code),
        )
        return rng.choice(options), Claim(background=code)
    if topic == "size":
        code = int(facts.size[row])
        word = rng.choice(_SIZE_WORDS[code])
        return rng.choice((f"something {word}", word, f"the object is {word}")), Claim(size=code)
    if topic == "count":
        count = int(facts.count[row])
        name = COUNTS[count - 1]
        few = "object" if count == 1 else "objects"
        verb = "is" if count == 1 else "are"
        options = (f"there {verb} {name} {few}", f"the number of objects is {name}", f"{name} of them", name)
        return rng.choice(options), Claim(count=count)
    if topic == "position":
        code = int(facts.position[row])
        place = POSITIONS[code]
        return rng.choice((f"in the {place}", f"something at the {place}", place)), Claim(position=code)
    digit = int(facts.digit[row])
    if not digit:
        return rng.choice(("no number", "there is no number")), Claim(digit=0)
    return rng.choice((f"the number {digit}", f"a label with the number {digit}", f"it says {digit}")), Claim(
        digit=digit
    )
