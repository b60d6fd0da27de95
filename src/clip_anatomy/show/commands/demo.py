"""`clip-anatomy demo`: the main job on the bundled model, nothing to download."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.show.commands.explain import DEMO_NOTE

DEFAULT_OUT = Path("clip-anatomy-demo")


def demo(
    *photos: str,
    text: Annotated[list[str] | None, Parameter(alias="-t")] = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Explain the bundled pictures, and photographs of yours, with the bundled model.

    Writes the same report as `explain`. The bundled model knows only its small drawn world, and the report says so.

    Args:
        photos: pictures of yours, looked at beside the bundled ones.
        text: what to look for; by default the true descriptions of the bundled pictures.
        out: folder for the report; by default clip-anatomy-demo, and none with --json.
        as_json: print all numbers as JSON on stdout; without --out nothing is drawn or written.

    Returns:
        Exit code 0.
    """
    from clip_anatomy.show.progress import progress

    with progress("opening the bundled model"):
        from clip_anatomy.model.load import load
        from clip_anatomy.show import run
        from clip_anatomy.show.texts import ask
    folder = out if out is not None or as_json else DEFAULT_OUT
    with run.report_in(folder) as staging:
        with progress("opening the bundled model"):
            clip = load("demo")
            pictures = bundled()
        questions = ask(text or [described for described, _ in pictures.values()], clip.tokenizer)
        sources = [
            *(run.Source(str(path), path.name, truth) for path, (_, truth) in pictures.items()),
            *(run.Source(photo) for photo in photos),
        ]
        found = run.look(clip, sources, questions, notes=[DEMO_NOTE] if photos else [])
        if staging is not None:
            yours = " and yours" if photos else ""
            run.write(found, staging, f"What the bundled model says about its pictures{yours}")
    run.tell(found, folder, json=as_json)
    return 0


_PLACES = {
    "sky": "in the sky",
    "water": "in the water",
    "night": "at night",
    "grass": "on the grass",
    "sand": "on the sand",
    "brick": "on a brick wall",
    "snow": "in the snow",
    "wood": "on wood",
}


def bundled() -> dict[Path, tuple[str, str]]:
    """Paths of the bundled pictures, each with a description in the world's words, and the whole truth."""
    import json

    from clip_anatomy.model.demo import examples

    paths = examples()
    known = json.loads((paths[0].parent / "captions.json").read_text(encoding="utf-8")) if paths else {}
    found: dict[Path, tuple[str, str]] = {}
    for path in paths:
        if path.name in known:
            text = describe(known[path.name])
            digit = known[path.name].get("digit")
            found[path] = text, f"In truth: {text}{f', and a printed {digit}' if digit else ''}."
    return found


def describe(labels: dict[str, str]) -> str:
    """One English description of a picture of the demo world from its attributes.

    Example:
        >>> describe({"count": "two", "texture": "solid", "colour": "red", "shape": "fish", "background": "water"})
        'two solid red fish in the water'
    """
    things = f"{labels['texture']} {labels['colour']} {labels['shape']}"
    place = _PLACES.get(labels["background"], f"on {labels['background']}")
    if "shape2" in labels:
        return f"a {things} and a {labels['texture2']} {labels['colour2']} {labels['shape2']} {place}"
    if labels["count"] == "one":
        return f"a {things} {place}"
    plural = {"fish": "", "cross": "es"}.get(labels["shape"], "s")
    return f"{labels['count']} {things}{plural} {place}"
