"""Class names of data sets whose files do not carry them: facts of their public label definitions, in plain words.

No list here is tuned: the class lists of papers (with extra words per class) change figures by several points and are not copied.
"""

VOC = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, motorbike, person, "
    "potted plant, sheep, sofa, train, television"
)
VOC_CLASSES = tuple(VOC.split(", "))

# Numbers 1..59 of the masks that mmsegmentation's users have: the 59 classes in alphabetical order of their dictionary names.
CONTEXT = (
    "aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat, ceiling, "
    "chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse, keyboard, light, "
    "motorbike, mountain, mouse, person, plate, platform, potted plant, road, rock, sheep, shelves, sidewalk, sign, sky, snow, "
    "sofa, table, track, train, tree, truck, television, wall, water, window, wood"
)
CONTEXT_CLASSES = tuple(CONTEXT.split(", "))

# Cityscapes' `labels.py`: id → the nineteen classes that are evaluated.
CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}

# ISPRS Potsdam: colour of the label picture → class.
POTSDAM = {
    (255, 255, 255): "road or paved ground",
    (0, 0, 255): "building",
    (0, 255, 255): "low vegetation",
    (0, 255, 0): "tree",
    (255, 255, 0): "car",
    (255, 0, 0): "clutter",
}

# COCO's eighty things and ninety-one stuff classes by category id; commas separate, a number sets the next id.
_THINGS = (
    "1 person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, 13 stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, 27 backpack, umbrella, "
    "31 handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, 46 wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, 67 dining table, 70 toilet, 72 tv, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, 84 book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
)
_STUFF = (
    "92 banner, blanket, branch, bridge, building, bush, cabinet, cage, cardboard, carpet, ceiling, tiled ceiling, cloth, "
    "clothes, clouds, counter, cupboard, curtain, desk, dirt, door, fence, marble floor, floor, stone floor, tiled floor, "
    "wood floor, flower, fog, food, fruit, furniture, grass, gravel, ground, hill, house, leaves, light, mat, metal, mirror, "
    "moss, mountain, mud, napkin, net, paper, pavement, pillow, plant, plastic, platform, playing field, railing, railroad, "
    "river, road, rock, roof, rug, salad, sand, sea, shelf, sky, skyscraper, snow, solid, stairs, stone, straw, structure, "
    "table, tent, textile, towel, tree, vegetable, brick wall, concrete wall, wall, wall panel, stone wall, tiled wall, "
    "wood wall, water, water drops, window blind, window, wood"
)


def _numbered(text: str) -> dict[int, str]:
    names: dict[int, str] = {}
    at = 1
    for word in text.split(", "):
        number, _, rest = word.partition(" ")
        if number.isdigit():
            at, word = int(number), rest  # noqa: PLW2901
        names[at] = word
        at += 1
    return names


COCO_THINGS = _numbered(_THINGS)
COCO_STUFF = _numbered(_STUFF)
