"""`clip-anatomy check`: is this model opened and split exactly?"""

from typing import Annotated

from cyclopts import Parameter


def check(
    model: str = "demo",
    *,
    weights: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    device: str = "auto",
    dtype: str = "float32",
) -> int:
    """Prove that a model is opened exactly, and that its parts sum to what its own library returns.

    Runs two random pictures and two random texts through the model's own library and through ours, and adds the parts up
    again: both towers, both conventions, by part, by token, and toward the cosine.

    Args:
        model: demo | open_clip:NAME/TAG | open_clip:NAME with --weights | hf:ORG/NAME | a folder or file with a saved model.
        weights: a checkpoint file for open_clip:NAME.
        as_json: print the table as JSON.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: float32, float16, bfloat16 or float64.

    Returns:
        Exit code: 0 everything holds, 1 something does not.
    """
    from math import isfinite

    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.errors import ParityError
    from clip_anatomy.progress import note, progress

    with progress(f"checking {model}") as step:
        from clip_anatomy.loading.load import load
        from clip_anatomy.split.check import checks

        why = ""
        try:
            clip = load(model, weights=weights, device=device, dtype=dtype)
        except ParityError as e:  # measured again below, beside everything else
            why = str(e)
            clip = load(model, weights=weights, device=device, dtype=dtype, parity=False)
        found = []
        for each in checks(clip):
            found.append(each)
            step()
    holds = not why and all(each.holds for each in found)
    if as_json:
        rows = [
            {**vars(each), "error": each.error if isfinite(each.error) else None, "holds": each.holds} for each in found
        ]
        print(
            json_text({"schema": "clip-anatomy/check/1", "model": model, "holds": holds, "why": why, "checks": rows}),
            end="",
        )
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(highlight=False)
        view = Table(
            title=Text(f"{model}: {clip.vision.layers} layers × {clip.vision.heads} heads"),
            title_justify="left",
        )
        for name in ("claim", "tower", "convention", "error", "allowed", "holds"):
            view.add_column(name, justify="right" if name in ("error", "allowed") else "left")
        for each in found:
            verdict = Text("yes", style="green") if each.holds else Text("NO", style="bold red")
            view.add_row(
                Text(each.claim), each.tower, each.convention, f"{each.error:.1e}", f"{each.allowed:.0e}", verdict
            )
        console.print(view)
    if not holds:
        note(f"clip-anatomy: {model} does not hold. {why}")
    return 0 if holds else 1
