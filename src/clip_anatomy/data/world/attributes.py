"""What is in each picture, drawn before a pixel is: the world's joint distribution of attributes, and its two flaws."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_anatomy.data.world.attribute_names import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, TIES
from clip_anatomy.data.world.random_numbers import PictureRandom

TIED = 0.95  # share of tied shapes on their own background
AGREE = 0.98  # share of printed digits that equal the count
PRINTED = 0.45  # share of pictures with a printed digit
MIXED = 0.15  # share of pictures with two different objects
SINGLE = 0.5  # share of one-object pictures among the rest
WEAK = 0.5  # share of tied objects whose outline lies between the two shapes of their pair
HYBRID = 0.10  # share of those whose outline leans to the partner's side
CROWDED, APART = 0.6, 2.2  # range of the distance between neighbours, in radii; drawn per picture
MARGIN = 0.02  # free border around objects, in picture widths
LABEL = (0.155, 0.185)  # width and height of the printed label, in picture widths


@dataclass(frozen=True)
class SceneAttributes:
    """Every attribute of a batch of pictures, as codes into the tuples of `names`; −1 where an attribute does not apply.

    The two columns of `shape`, `colour` and `texture` are the picture's kinds of object; the second is −1 unless the
    picture shows two different objects.

    Attributes:
        index: the picture's index in its split.
        shape, colour, texture: [image, 2] codes.
        background, size: codes.
        position: code, −1 unless there is exactly one object.
        count: number of objects, 1–4 (a number, not a code).
        digit: printed digit 1–4, 0 where none is printed.
        corner: corner of the printed digit (0–3 as the first four of POSITIONS).
        group: code into GROUPS for pictures of one tied kind, else −1.
        likeness: 0–1, where the outline of a tied shape lies between the first and the second shape of its pair.
        centre: [image, 4, 2] x and y of each object's centre in picture widths; radius, angle (radians), flip likewise.
    """

    index: Int[np.ndarray, " image"]
    shape: Int[np.ndarray, "image 2"]
    colour: Int[np.ndarray, "image 2"]
    texture: Int[np.ndarray, "image 2"]
    background: Int[np.ndarray, " image"]
    size: Int[np.ndarray, " image"]
    position: Int[np.ndarray, " image"]
    count: Int[np.ndarray, " image"]
    digit: Int[np.ndarray, " image"]
    corner: Int[np.ndarray, " image"]
    group: Int[np.ndarray, " image"]
    likeness: Float[np.ndarray, " image"]
    centre: Float[np.ndarray, "image 4 2"]
    radius: Float[np.ndarray, " image"]
    angle: Float[np.ndarray, "image 4"]
    flip: Bool[np.ndarray, "image 4"]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.index)

    def __getitem__(self, rows: "np.ndarray | slice") -> "SceneAttributes":
        """Return the facts of some pictures."""
        return SceneAttributes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def mixed(self) -> Bool[np.ndarray, " image"]:
        """Say which pictures show two different objects."""
        return self.shape[:, 1] >= 0


def draw_attributes(dice: PictureRandom, *, tied: float = TIED, agree: float = AGREE) -> SceneAttributes:
    """Draw the attributes of the dice's pictures.

    Args:
        dice: the pictures' random numbers.
        tied: probability that a tied shape stands on its own background (else it stands on its partner's).
        agree: probability that a printed digit equals the count (else it is one of the other three).

    Returns:
        The facts, [image].
    """
    n = len(dice.indices)
    mixed = dice() < MIXED
    shape = np.stack([dice.choice(len(SHAPES)), dice.choice(len(SHAPES) - 4) + 4], axis=1)
    # A second object is never of a tied shape and differs from the first in shape and colour.
    again = shape[:, 1] == shape[:, 0]
    shape[again, 1] = (shape[again, 1] - 4 + 1 + dice.choice(len(SHAPES) - 5)[again]) % (len(SHAPES) - 4) + 4
    first = dice.choice(len(COLOURS))
    colour = np.stack([first, (first + 1 + dice.choice(len(COLOURS) - 1)) % len(COLOURS)], axis=1)
    texture = np.stack([dice.choice(len(TEXTURES)), dice.choice(len(TEXTURES))], axis=1)
    for codes in (shape, colour, texture):
        codes[~mixed, 1] = -1

    count = np.where(mixed, 2, np.where(dice() < SINGLE, 1, 2 + dice.choice(3)))
    size = dice.choice(2)
    position = np.where(count == 1, dice.choice(5), -1)

    at_home = dice() < tied
    background = dice.choice(len(BACKGROUNDS))
    group = np.full(n, -1)
    for code, (own, partner) in TIES.items():
        here = shape[:, 0] == code
        background[here] = np.where(at_home, own, partner)[here]
        group[here & ~mixed] = (2 * code + np.where(at_home, 0, 1))[here & ~mixed]

    printed, agrees, other = dice() < PRINTED, dice() < agree, dice.choice(3)
    digit = np.where(printed, np.where(agrees, count, (count + other) % 4 + 1), 0)
    # The label avoids the corner where a single object lies; (p + 1 + k) % 4 with k < 3 never is p.
    free = dice.choice(4)
    corner = np.where((position >= 0) & (position < 4), (position + 1 + free % 3) % 4, free)

    radius = _radius(dice, count, size)
    return SceneAttributes(
        index=dice.indices.astype(np.int64),
        shape=shape,
        colour=colour,
        texture=texture,
        background=background,
        size=size,
        position=position,
        count=count,
        digit=digit,
        corner=corner,
        group=group,
        likeness=_likeness(dice, shape[:, 0]),
        centre=_place(dice, count, position, radius, np.where(printed, corner, -1)),
        radius=radius,
        angle=_angle(dice, shape),
        flip=np.repeat(dice(1) < 0.5, 4, axis=1),
    )


def _radius(dice: PictureRandom, count: np.ndarray, size: np.ndarray) -> Float[np.ndarray, " image"]:
    """Return objects' radii: small ones differ from large ones at every count."""
    base = np.select([size == 0, count == 1, count == 2], [0.162, 0.245, 0.212], 0.195)
    return (base * (0.96 + 0.08 * dice())).astype(np.float32)


def _likeness(dice: PictureRandom, shape: np.ndarray) -> Float[np.ndarray, " image"]:
    """Return where the outline lies in its pair: near 0 the pair's first shape, near 1 its second.

    Half of the tied objects have a clear outline; the outlines of the others lie between the pair's two shapes, and a
    tenth of those lean to the wrong side. Their outline says 9 : 1 where the background says 19 : 1, so a model that
    weighs its evidence rightly goes by the background: the flaw is no lack of training, and the outline still tells
    95 % of the tied objects apart without any background.
    """
    second = (shape % 2 == 1).astype(np.float32)
    distance = dice()
    hybrid = (distance < WEAK) & (dice() < HYBRID)
    lean = np.where(hybrid, 1 - second, second) * 2 - 1
    return (0.5 + lean * (0.03 + 0.47 * distance)).astype(np.float32)


def _angle(dice: PictureRandom, shape: np.ndarray) -> Float[np.ndarray, "image 4"]:
    """Return rotations: free for five-fold shapes, a slight tilt for the others."""
    fivefold = (shape[:, :1] == 2) | (shape[:, :1] == 3)
    return (np.where(fivefold, 2 * np.pi, 0.5) * (dice(4) - 0.5)).astype(np.float32)


def _place(
    dice: PictureRandom, count: np.ndarray, position: np.ndarray, radius: np.ndarray, corner: np.ndarray
) -> Float[np.ndarray, "image 4 2"]:
    """Return centres: a single object at its position, several ones apart from each other and from the label."""
    tries = 24
    throws = dice(4, tries, 2)
    # How close objects come to each other: from hiding most of a neighbour, which makes counting hard, to standing apart.
    spacing = (CROWDED + (APART - CROWDED) * dice())[:, None]
    low = (radius + MARGIN)[:, None, None]
    centre = np.full((len(count), 4, 2), 0.5, dtype=np.float32)
    # The label's centre and half-diagonal.
    label = np.stack([np.where(corner % 2 == 1, 0.89, 0.11), np.where(corner >= 2, 0.89, 0.11)], axis=1)
    for k in range(4):
        rows = np.flatnonzero(count > max(k, 1))
        if not len(rows):
            continue
        candidate = low[rows] + throws[rows, k] * (1 - 2 * low[rows])
        gap = np.full(candidate.shape[:2], np.inf, dtype=np.float32)
        for j in range(k):
            apart = np.linalg.norm(candidate - centre[rows, j][:, None], axis=-1) - spacing[rows] * radius[rows, None]
            gap = np.minimum(gap, apart)
        from_label = np.abs(candidate - label[rows][:, None]).max(axis=-1) - radius[rows, None] - 0.10
        room = np.where((corner[rows] >= 0)[:, None], np.minimum(gap, from_label), gap)
        # The closest candidate that keeps the distances; failing that, the roomiest.
        closest = np.where(room > 0, gap, np.inf).argmin(axis=1)
        best = np.where((room > 0).any(axis=1), closest, room.argmax(axis=1))
        centre[rows, k] = candidate[np.arange(len(rows)), best]
    one = np.flatnonzero(count == 1)
    side = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1], [0, 0]], dtype=np.float32)[position[one]]
    reach = 0.5 - low[one, 0]
    # Corner objects lie 70–100 % of the way out, central ones within 0.05 of the middle.
    shift = np.where(side == 0, (throws[one, 0, 0] - 0.5) * 0.10, side * reach * (0.7 + 0.3 * throws[one, 0, 0]))
    centre[one, 0] = 0.5 + shift
    return centre
