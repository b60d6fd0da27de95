"""Does the demo model read what is printed over its pictures, and what does an edit do about it? `python bench/typo.py [--pictures 4000]`.

For digits over counts, and for words over shapes, colours and backgrounds (fewer pictures: the demo model does not read words): accuracy with a wrong label printed, with a print of the same
kind that says nothing, and without a print; before and after the heads that `repair --cue typo` finds are held at their mean. Heads are
found on one half of `world:PICTURES:val:balanced`, figures are of the other. The edit for digits is then put into the model, and what
`bench/world.py` measures is measured again on the `test` split, where the world itself prints the digits. Prints a table and one line of JSON.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

import clip_anatomy as ca
from clip_anatomy.data.world.accuracy import evaluate
from clip_anatomy.edits.edited_clip import EditedClip

ASKED = ("count", "shape", "colour", "background")
OF_WORLD = (
    "count with a false digit",
    "count with a true digit",
    "count with no digit",
    "digit",
    "count",
    "shape",
    "colour",
)


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", type=int, default=800, help="of the store")
    parser.add_argument("--words", type=int, default=60, help="pictures of each half that words are printed over")
    parser.add_argument("--test", type=int, default=500, help="pictures to report on, as in bench/world.py")
    parser.add_argument(
        "--cost", type=float, default=1.0, help="points that clean pictures may lose on the half to choose on"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clip = ca.load("demo")
    told: dict[str, object] = {}
    digits = ca.Edit.empty(clip)
    with tempfile.TemporaryDirectory() as folder:
        ca.index(clip, f"world:{args.pictures}:val:balanced", Path(folder) / "store", keep="heads,mlps")
        store = ca.Store.open(Path(folder) / "store", clip)
        for label in ASKED:
            began = time.perf_counter()
            found = ca.repair(
                store, cue="typo", label=label, cost=args.cost, images=args.pictures if label == "count" else args.words
            )
            assert isinstance(found, ca.TypoRepair)
            print(f"\nwhich {label}? {time.perf_counter() - began:.0f} s\n{found.summary()}", flush=True)
            told[label] = {
                "heads": [f"{layer}.{head}" for layer, head in found.search.heads],
                **{
                    one.name: {row.name: [round(100 * row.before, 1), round(100 * row.after, 1)] for row in one.rows}
                    for one in found.effects
                },
            }
            if label == "count":
                digits = found.edit
    model = EditedClip(clip, digits)
    with torch.inference_mode():
        before, after = (
            evaluate(one.encode_image, clip.encode_text, args.test).accuracy
            for one in (EditedClip(clip, ca.Edit.empty(clip)), model)
        )
    print("\nthe edit for digits, on the test split, where the world prints the digits")
    for name in OF_WORLD:
        print(f"{name:<28}{100 * before[name]:>7.1f}{100 * after[name]:>7.1f}")
    told["world"] = {name: [round(100 * before[name], 1), round(100 * after[name], 1)] for name in OF_WORLD}
    print(json.dumps({"bench": "typo", "pictures": args.pictures, "test": args.test, "cost": args.cost, "rows": told}))


if __name__ == "__main__":
    main()
