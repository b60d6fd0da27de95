"""`clip-anatomy explain`: why does this picture match this text?"""

from clip_anatomy.cli.options import (
    AllowUrls,
    AsJson,
    Device,
    Model,
    Out,
    Strict,
    Texts,
    Weights,
    output_folder,
    print_json,
    print_notes,
)


def explain(
    *images: str,
    texts: Texts = None,
    model: Model = "demo",
    weights: Weights = None,
    out: Out = None,
    as_json: AsJson = False,
    strict: Strict = False,
    device: Device = "auto",
    allow_urls: AllowUrls = False,
    demo: bool = False,
) -> int:
    """Say why pictures match texts: which layers, heads, MLPs and patches raise and lower the cosine (direct logit attribution).

    Writes index.html (one page that holds everything), a PNG for each picture and text, and explain.json into a folder.
    All shares add up to the cosine exactly. Give two texts or more: what counts for one more than for the others is the
    clearest answer.

    Args:
        images: pictures, folders (with all folders in them), lists, tables, tars; - for paths on standard input.
        out: folder for the report; by default clip-anatomy-report, and none with --json.
        demo: explain the bundled pictures, with their own descriptions if no text is given.

    Returns:
        Exit code: 0 done, 1 a picture could not be read under --strict.
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from clip_anatomy.cli.pictures import asked_pictures, demo_notes, named_failures, staged_beside
    from clip_anatomy.progress import note, say, shown

    folder = output_folder(out, "clip-anatomy-report", as_json=as_json)
    pictures, descriptions = asked_pictures(images, "explain", demo=demo)
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {model}"))
        from clip_anatomy.loading.load import load
        from clip_anatomy.report import explain_folder, figures
        from clip_anatomy.split.explanation import explain as run

        if folder is not None:
            figures.need_matplotlib()
        staging = stack.enter_context(staged_beside(folder, explain_folder.KIND, images))
        clip = load(model, weights=weights, device=device)
        found = run(clip, pictures, texts or descriptions, allow_urls=allow_urls, skip_bad=True, progress=progress)
        notes = (*demo_notes(model, images), *found.notes)
        found = replace(found, notes=notes, failed=named_failures(found.failed))
        if staging is not None:
            explain_folder.write(found, staging, progress)
    print_notes(found.all_notes, found.failed)
    if as_json:
        print_json(found.to_dict())
    else:
        say(found.summary())
    if folder is not None:
        note(f"report: {folder / 'index.html'}")
    return 1 if strict and found.failed else 0
