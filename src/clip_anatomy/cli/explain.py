"""`clip-anatomy explain`: why does this picture match this text?"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

DEFAULT_OUT = Path("clip-anatomy-report")


def explain(
    *images: str,
    text: Annotated[list[str] | None, Parameter(alias="-t")] = None,
    model: Annotated[str, Parameter(alias="-m")] = "demo",
    weights: str | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    strict: bool = False,
    device: str = "auto",
    allow_urls: bool = False,
) -> int:
    """Say why pictures match texts: which layers, heads, MLPs and patches said yes and no.

    Writes index.html (one page that holds everything), a PNG for each picture and text, and explain.json into a folder.
    All shares add up to the cosine exactly. Give two texts or more: what speaks for one more than for the others is the
    clearest answer.

    Args:
        images: pictures (JPEG, PNG, WebP, ...).
        text: what to look for; repeat it for several texts.
        model: demo | open_clip:NAME/TAG | open_clip:NAME with --weights | hf:ORG/NAME | a folder or file with a saved model.
        weights: a checkpoint file for open_clip:NAME.
        out: folder for the report; by default clip-anatomy-report, and none with --json.
        as_json: print all numbers as JSON on stdout; without --out nothing is drawn or written.
        strict: exit with 1 if any picture could not be read (the others are done all the same).
        device: auto, cpu, cuda, cuda:1, mps.
        allow_urls: fetch pictures given as http(s) addresses.

    Returns:
        Exit code: 0 done, 1 a picture could not be read under --strict.
    """
    from clip_anatomy.errors import BadImage
    from clip_anatomy.progress import progress

    if not images:
        raise BadImage('no picture was given. Type: clip-anatomy explain photo.jpg --text "a dog" --text "a cat"')
    with progress(f"opening {model}"):
        from clip_anatomy.loading.load import load
        from clip_anatomy.report import explain_run as run
        from clip_anatomy.report.typed_texts import ask
    folder = out if out is not None or as_json else DEFAULT_OUT
    with run.report_in(folder) as staging:
        with progress(f"opening {model}"):
            clip = load(model, weights=weights, device=device)
        questions = ask(text or [], clip.tokenizer)
        notes = [DEMO_NOTE] if model == "demo" else []
        found = run.look(clip, [run.Source(path) for path in images], questions, allow_urls=allow_urls, notes=notes)
        if staging is not None:
            one = len(found.answered) == 1
            run.write(found, staging, f"Why {'this picture matches' if one else 'these pictures match'} a text")
    run.tell(found, folder, json=as_json)
    return 1 if strict and found.failed else 0


DEMO_NOTE = (
    "The bundled demo model knows only a small drawn world of shapes, colours, textures and backgrounds. What it says about a "
    "photograph shows how the method works, not what is in the photograph. For that, type: --model open_clip:ViT-B-32/laion2b_s34b_b79k"
)
