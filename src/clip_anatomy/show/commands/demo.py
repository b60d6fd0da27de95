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
        text: what to look for; by default the true captions of the bundled pictures.
        out: folder for the report; by default clip-anatomy-demo, and none with --json.
        as_json: print all numbers as JSON on stdout; without --out nothing is drawn or written.

    Returns:
        Exit code 0.
    """
    from contextlib import ExitStack

    from clip_anatomy.show.progress import note, progress
    from clip_anatomy.show.staging import REPORT, staged
    from clip_anatomy.show.staging import as_json as json_text

    folder = out if out is not None or as_json else DEFAULT_OUT
    with ExitStack() as stack:
        staging = None
        if folder is not None:
            from clip_anatomy.show.figures import need_matplotlib

            need_matplotlib()
            staging = stack.enter_context(staged(folder))
        with progress("opening the bundled model"):
            from clip_anatomy.model.load import load
            from clip_anatomy.show import run
            from clip_anatomy.show.texts import ask

            clip = load("demo")
            captions = bundled()
        questions = ask(text or list(captions.values()), clip.tokenizer)
        sources = [
            *(run.Source(str(path), path.name, f"In truth: {caption}.") for path, caption in captions.items()),
            *(run.Source(photo) for photo in photos),
        ]
        found = run.look(clip, sources, questions, notes=[DEMO_NOTE] if photos else [])
        if staging is not None:
            run.write(
                found, staging, "What the bundled model says about its pictures" + (" and yours" if photos else "")
            )
    run.tell_notes(found)
    if as_json:
        print(json_text(run.as_dict(found)), end="")
    else:
        run.table(found)
    if folder is not None:
        note(f"report: {folder / REPORT}")
    return 0


def bundled() -> dict[Path, str]:
    """Paths of the bundled pictures, with a true caption each."""
    import json

    from clip_anatomy.model.demo import examples

    paths = examples()
    known = json.loads((paths[0].parent / "captions.json").read_text(encoding="utf-8")) if paths else {}
    return {path: str(known[path.name]["captions"][0]) for path in paths if path.name in known}
