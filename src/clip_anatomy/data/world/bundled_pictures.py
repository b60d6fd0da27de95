"""The pictures that ship with the bundled model, each with what is on it."""

from pathlib import Path

__all__ = ["bundled", "describe"]

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
    """List the paths of the bundled pictures, each with a description in the world's words, and the whole truth."""
    import json

    from clip_anatomy.loading.demo import examples

    paths = examples()
    known = json.loads((paths[0].parent / "captions.json").read_text(encoding="utf-8")) if paths else {}
    pictures: dict[Path, tuple[str, str]] = {}
    for path in paths:
        if path.name in known:
            text = describe(known[path.name])
            digit = known[path.name].get("digit")
            pictures[path] = text, f"In truth: {text}{f', and a printed {digit}' if digit else ''}."
    return pictures


def describe(labels: dict[str, str]) -> str:
    """Describe a picture of the demo world in one English sentence, from its attributes.

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
