"""The words of the demo world: which values each attribute takes, in the order of their codes, and which classes are tied."""

SHAPES = (
    "bird",
    "fish",
    "star",
    "flower",
    "circle",
    "square",
    "triangle",
    "cross",
    "heart",
    "moon",
    "ring",
    "arrow",
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TEXTURES = ("solid", "striped", "dotted", "checkered")
BACKGROUNDS = ("sky", "water", "night", "grass", "sand", "brick", "snow", "wood")
SIZES = ("small", "large")
POSITIONS = ("top left", "top right", "bottom left", "bottom right", "centre")
COUNTS = ("one", "two", "three", "four")

# Code of a tied shape → (code of its own background, code of its partner's). Birds belong to the sky as fish to the
# water, stars to the night as flowers to the grass.
TIES = {0: (0, 1), 1: (1, 0), 2: (2, 3), 3: (3, 2)}

# Eight groups: a tied shape on its own background (even codes) or on its partner's (odd codes).
GROUPS = tuple(f"{SHAPES[shape]} on {BACKGROUNDS[background]}" for shape, pair in TIES.items() for background in pair)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "background": BACKGROUNDS,
    "size": SIZES,
    "position": POSITIONS,
    "count": COUNTS,
}

# sRGB of each colour code, 0–1: vivid, so that they stand out from the muted backgrounds.
PALETTE = (
    (0.90, 0.10, 0.12),
    (1.00, 0.52, 0.05),
    (1.00, 0.88, 0.10),
    (0.10, 0.72, 0.22),
    (0.12, 0.36, 1.00),
    (0.58, 0.16, 0.82),
    (1.00, 0.48, 0.76),
    (0.97, 0.97, 0.97),
)
