"""`clip-anatomy demo`: the main job on the bundled model, nothing to download."""

from clip_anatomy.cli.options import OutputOptions, Pictures, ReadingOptions, Texts


def demo(*photos: str, texts: Texts = None, pictures: Pictures = None, output: OutputOptions = OutputOptions()) -> int:
    """Explain the bundled pictures, and photographs of yours, with the bundled model.

    The same as `explain --demo`, into clip-anatomy-demo. The bundled model knows only its small drawn world, and the report says so.

    Args:
        photos: pictures of yours, explained beside the bundled ones. Without --text all are compared with the true descriptions of the bundled ones.

    Returns:
        Exit code 0.
    """
    from clip_anatomy.cli.explain import explain

    folder = OutputOptions(output.folder("demo"), output.as_json)
    return explain(*photos, texts=texts, pictures=pictures, output=folder, reading=ReadingOptions(demo=True))
