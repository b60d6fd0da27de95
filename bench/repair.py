"""How far a repair carries on the demo world, in the words of its model card: `python bench/repair.py [--pictures 4000]`.

The parts are chosen on pictures of the `val` split (half of them for the choice, so that nothing else is seen), the edit is saved,
loaded, and put into the model as `EditedClip`; then everything that `bench/world.py` measures is measured again on the `test` split.
Automatic choices stand beside choices by name. `--rerun` asks every question of three quarters as many pictures with the digit heads
ablated by direct effect, by re-run and by re-run along the counts, and says which route meets the bars. Prints a table, and one line of JSON.

Bars: worst tied group at least 20 points up while the average over all attributes loses 2 at most; counting with a false digit at
least 15 points up.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import clip_anatomy as ca
from clip_anatomy.data.world.accuracy import WorldAccuracy, classifier, evaluate, pixels, target
from clip_anatomy.data.world.attribute_names import ATTRIBUTES
from clip_anatomy.data.world.scenes import World
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.edits.selection import Selection
from clip_anatomy.studies.bootstrap import accuracy_changes
from clip_anatomy.studies.find_cue import CueSearch, find_cue
from clip_anatomy.studies.repair_ablations import PartAblation
from clip_anatomy.studies.repair_effect import repair_edit
from clip_anatomy.studies.repair_task import TaskSettings
from clip_anatomy.studies.zero_shot_task import class_texts, values_of

DIGIT_HEADS = "0.1,1.2,2.4"
ALONG, FALSE, TRUE = "  the same, along the counts", "count with a false digit", "count with a true digit"
MEASURED = 1000  # pictures that the means of a re-run are of
TIED_BAR, AVERAGE_BAR, DIGIT_BAR = 20.0, -2.0, 15.0


def average(report: WorldAccuracy) -> float:
    """Mean accuracy over all attributes of the natural draw, the digit included."""
    names = (*ATTRIBUTES, "digit")
    return sum(report.accuracy[name] for name in names) / len(names)


def tried(found: CueSearch, every: bool) -> dict[str, PartAblation]:
    """The choices to measure: the suggestion, by name, the best of whole parts, and (if asked) every other strategy."""
    chosen = {f"suggested ({found.best.strategy})": found.best.ablation}
    for one in found.candidates:
        asked = every or one.strategy.startswith("role=") or one.strategy == "by group accuracy"
        if asked and one.parts and one.ablation not in chosen.values():
            chosen[one.strategy] = one.ablation
    return chosen


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", type=int, default=4000, help="of the store to choose on")
    parser.add_argument("--test", type=int, default=2000, help="pictures to report on, as in bench/world.py")
    parser.add_argument("--every", action="store_true", help="measure every strategy, not only these two")
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="only the heads named digit, by direct effect and by re-run, on the same pictures",
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clip = ca.load("demo")
    if args.rerun:
        by_rerun(clip, args.test)
        return
    told: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ca.index(clip, f"world:{args.pictures}:val:balanced", place / "store", keep="heads,mlps")
        store = ca.Store.open(place / "store", clip)

        def measured(ablation: PartAblation, found: CueSearch | None) -> WorldAccuracy:
            edit = Edit.empty(clip) if found is None else repair_edit(store, clip, found, ablation)
            edit = Edit.load(edit.save(place / "edit.json"))  # as a person would use it
            model = EditedClip(clip, edit)
            with torch.inference_mode():
                return evaluate(model.encode_image, clip.encode_text, args.test)

        before = measured(PartAblation(Selection()), None)
        print(
            f"{'':<46}{'worst group':>12}{'false digit':>12}{'all attributes':>15}{'shape':>8}{'count':>8}{'background':>11}{'digit':>8}"
        )
        told["before"] = row("nothing ablated", before, before)
        for question, heads_only in (("shape", False), ("count", False), ("count, heads only", True)):
            began = time.perf_counter()
            found = find_cue(store, clip, TaskSettings(question.split(",")[0]), heads_only=heads_only)
            spent = time.perf_counter() - began
            print(f"\nwhich {question}? {spent:.1f} s to find; groups: {', '.join(found.task.group_names)}")
            for strategy, ablation in tried(found, args.every).items():
                report = measured(ablation, found)
                print(f"  {ablation.spec}")
                told[f"{question}: {strategy}"] = {"ablated": ablation.spec, **row(f"  {strategy}", report, before)}
            if question == "count, heads only":
                report = measured(replace(found.best.ablation, effect="rerun"), found)
                told["count: the same heads, re-run"] = row("  the same, felt by later blocks", report, before)
    best = {name: rest for name, rest in told.items() if "suggested" in name}
    tied = next(rest for name, rest in best.items() if name.startswith("shape"))
    digit = next(rest for name, rest in best.items() if name.startswith("count: "))
    bars = {
        "worst tied group": (tied["worst_group_change"], TIED_BAR),
        "average while that": (tied["average_change"], AVERAGE_BAR),
        "count with a false digit": (digit["false_digit_change"], DIGIT_BAR),
        "average while that, of the count edit": (digit["average_change"], AVERAGE_BAR),
    }
    print()
    for name, (value, bar) in bars.items():
        print(f"{name:<40}{value:>+8.1f} points, bar {bar:+.0f}: {'met' if float(str(value)) >= bar else 'MISSED'}")
    print(json.dumps({"bench": "repair", "pictures": args.pictures, "test": args.test, "rows": told}))


def by_rerun(clip: ca.Clip, test: int) -> None:
    """Ablate what carries the digit into the count, by every route, and ask every question of the same unseen pictures before and after."""
    known = World(seed=0, split="val", balanced=True, length=MEASURED)
    means = ca.Means.of(clip, (pixels(known.batch(np.arange(at, at + 200)).images) for at in range(0, MEASURED, 200)))
    counts = class_texts(clip, values_of("count"), attribute="count")
    routes = {
        "direct: heads 0.1, 1.2, 2.4": Edit.of(clip, DIGIT_HEADS, means),
        "  and MLPs 2, 4": Edit.of(clip, f"{DIGIT_HEADS}+mlp=2,4", means),
        "re-run: head 0.1": Edit.of(clip, "0.1", means, effect="rerun"),
        "  0.1, 1.2": Edit.of(clip, "0.1,1.2", means, effect="rerun"),
        f"  {DIGIT_HEADS.replace(',', ', ')}": Edit.of(clip, DIGIT_HEADS, means, effect="rerun"),
        ALONG: Edit.of(clip, DIGIT_HEADS, means, effect="rerun", along=counts - counts.mean(0)),
    }
    world = World(seed=0, split="test", balanced=True, length=20 * test)
    facts = world.facts(np.arange(20 * test))
    told = (facts.digit > 0) & (facts.group < 0)  # where the background does not tell the shape
    chosen = np.concatenate([np.flatnonzero(~facts.mixed & told)[: test // 2], np.flatnonzero(~facts.mixed & ~told)[: test // 4]])  # fmt: skip
    some, told = facts[chosen], told[chosen]
    asked = {name: (name, target(some, name) >= 0) for name in (*ATTRIBUTES, "digit")}
    asked |= {FALSE: ("count", told & (some.digit != some.count)), TRUE: ("count", told & (some.digit == some.count))}
    texts = {name: classifier(clip.encode_text, name) for name in (*ATTRIBUTES, "digit")}
    batches = [pixels(world.batch(chosen[at : at + 100]).images) for at in range(0, len(chosen), 100)]

    def right(model: EditedClip) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            embedded = torch.cat([model.encode_image(one) for one in batches])
        found = {name: (embedded @ rows.T).argmax(1).numpy() == target(some, name) for name, rows in texts.items()}
        return {name: found[attribute][where] for name, (attribute, where) in asked.items()}

    before = right(EditedClip(clip, Edit.empty(clip)))
    print(
        f"{len(chosen):,} pictures, {int(told.sum()):,} of them with a digit; percent right, below it the change with its 95 % interval"
    )
    print(f"{'':<30}" + "".join(f"{name.removeprefix('count with '):>14}" for name in asked))
    print(f"{'pictures':<30}" + "".join(f"{len(one):>14,}" for one in before.values()))
    print(f"{'nothing ablated':<30}" + "".join(f"{100 * one.mean():>14.1f}" for one in before.values()), flush=True)
    rows: dict[str, dict[str, list[float]]] = {}
    for route, edit in routes.items():
        after = right(EditedClip(clip, edit))
        changes, *_ = accuracy_changes({name: (before[name], after[name]) for name in asked})
        rows[route] = {
            one.name: [round(100 * x, 1) for x in (one.before, one.after, *one.change_interval)] for one in changes
        }
        print(f"{route:<30}" + "".join(f"{100 * one.after:>14.1f}" for one in changes))
        print(f"{'':<30}" + "".join(f"{f'{100 * one.change_interval[0]:+.1f} {100 * one.change_interval[1]:+.1f}':>14}" for one in changes), flush=True)  # fmt: skip
        held = {name: x for name, x in rows[route].items() if name not in (FALSE, TRUE, "digit")}
        worst = min(held, key=lambda name: held[name][1] - held[name][0])
        rows[route]["worst other"] = [round(held[worst][1] - held[worst][0], 1)]
        read = rows[route]["digit"]
        bars = (rows[route][FALSE][1] >= 90, rows[route]["worst other"][0] >= -1, read[0] - read[1] < 32)
        print(f"{'':<30}false digit ≥ 90: {said(bars[0])}; others −1 at most: {said(bars[1])} ({worst} {held[worst][1] - held[worst][0]:+.1f}); "
              f"digit read loses less than 32: {said(bars[2])} ({read[1] - read[0]:+.1f})", flush=True)  # fmt: skip
    print(json.dumps({"bench": "repair", "by": "rerun", "pictures": len(chosen), "rows": rows}))


def said(met: bool) -> str:
    return "met" if met else "MISSED"


def row(name: str, report: WorldAccuracy, before: WorldAccuracy) -> dict[str, object]:
    """Print one line and return its figures, in percent and points."""
    false = "count with a false digit"
    values = [report.worst_group, report.accuracy[false], average(report)]
    old = [before.worst_group, before.accuracy[false], average(before)]
    more = [report.accuracy[key] for key in ("shape", "count", "background", "digit")]
    cells = "".join(
        f"{100 * value:>{width}.1f}" for value, width in zip((*values, *more), (12, 12, 15, 8, 8, 11, 8), strict=True)
    )
    print(f"{name:<46}{cells}", flush=True)
    names = ("worst_group", "false_digit", "average")
    found: dict[str, object] = {key: round(100 * value, 2) for key, value in zip(names, values, strict=True)}
    found |= {
        f"{key}_change": round(100 * (value - was), 2) for key, value, was in zip(names, values, old, strict=True)
    }
    return {**found, "groups": {key: round(100 * value, 1) for key, value in report.groups.items()},
            "attributes": {key: round(100 * value, 1) for key, value in report.accuracy.items()}}  # fmt: skip


if __name__ == "__main__":
    main()
