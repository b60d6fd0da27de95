"""Class texts that say where a thing lies, on pictures of things that lie elsewhere: `python bench/text_tower.py [--pictures 120]`.

Classes are "a bird in the sky", "a fish in the water", "a star at night", "a flower on the grass"; half of the pictures of each (demo world,
balanced draw) have another background. `repair --tower text` finds the heads of the text tower that carry the background into the class texts, on
one half, and is measured on the other: whole heads, along the cue only, and for comparison the plain class texts. `--out` writes the figure of
docs/repair.md. Prints a table and one line of JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.studies.text_repair import TextRepair

NAMES = {
    "bird": "a bird in the sky",
    "fish": "a fish in the water",
    "star": "a star at night",
    "flower": "a flower on the grass",
}
CUE = "a thing in the sky, a thing in the water, a thing at night, a thing on the grass"


def plant(clip: ca.Clip, place: Path, source: str, pictures: int) -> dict[str, int]:
    """Make a store of pictures whose class text names a context that is wrong for half of them; how many there are of each class."""
    counts, table = dict.fromkeys(NAMES, 0), ["file,label,group"]
    (place / "photos").mkdir()
    for at, one in enumerate(open_dataset(source)):
        name = one.label
        if not one.group or name not in NAMES or counts[name] == pictures:
            continue
        counts[name] += 1
        Image.fromarray(one.data).save(place / "photos" / f"{at}.png")
        table.append(f"{at}.png,{NAMES[name]},{one.group}")
        if min(counts.values()) == pictures:
            break
    (place / "photos" / "labels.csv").write_text("\n".join(table) + "\n")
    ca.index(clip, place / "photos", place / "store")
    return counts


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", type=int, default=120, help="of each class")
    parser.add_argument("--cost", type=float, default=2.0)
    parser.add_argument("--out", type=Path, help="file of the figure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clip = ca.load("demo")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        counts = plant(clip, place, f"world:{40 * args.pictures}:val:balanced", args.pictures)
        store = ca.Store.open(place / "store", clip)
        found = ca.repair(store, classes=list(NAMES.values()), cue=CUE, tower="text", cost=args.cost)
        assert isinstance(found, TextRepair)
        print(found.summary())
        spec = found.effect.ablation.selection.spec
        other = "" if found.effect.ablation.along_cue else " along cue"
        second = ca.repair(store, classes=list(NAMES.values()), cue=CUE, tower="text", select=spec + other)
        assert isinstance(second, TextRepair)
        print(second.summary())
        told = {
            one.effect.ablation.spec: {
                row.name: [round(100 * row.before, 1), round(100 * row.after, 1)] for row in one.rows
            }
            for one in (found, second)
        }
        if args.out:
            args.out.write_bytes((found.save(place / "out") / "repair.png").read_bytes())
    print(json.dumps({"bench": "text_tower", "pictures": counts, "cost": args.cost, "rows": told}))


if __name__ == "__main__":
    main()
