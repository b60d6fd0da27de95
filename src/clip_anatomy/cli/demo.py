"""`clip-anatomy demo`: the main job on the bundled model, nothing to download."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.explain import DEMO_NOTE

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
    from clip_anatomy.progress import progress

    with progress("opening the bundled model"):
        from clip_anatomy.data.world.bundled_pictures import bundled
        from clip_anatomy.loading.load import load
        from clip_anatomy.report import explain_run as run
        from clip_anatomy.report.typed_texts import ask
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
