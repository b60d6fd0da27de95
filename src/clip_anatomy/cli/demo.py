"""`clip-anatomy demo`: the main job on the bundled model, nothing to download."""

from pathlib import Path

from clip_anatomy.cli.options import AsJson, Out, Pictures, Texts


def demo(*photos: str, texts: Texts = None, pictures: Pictures = None, out: Out = None, as_json: AsJson = False) -> int:
    """Explain the bundled pictures, and photographs of yours, with the bundled model.

    The same as `explain --demo`, into clip-anatomy-demo. The bundled model knows only its small drawn world, and the report says so.

    Args:
        photos: pictures of yours, explained beside the bundled ones. Without --text all are compared with the true descriptions of the bundled ones.
        out: folder for the report; by default clip-anatomy-demo, and none with --json.

    Returns:
        Exit code 0.
    """
    from clip_anatomy.cli.explain import explain

    folder = out if out is not None or as_json else Path("clip-anatomy-demo")
    return explain(*photos, texts=texts, pictures=pictures, out=folder, as_json=as_json, demo=True)
