"""`clip-anatomy apply`: use an edited model on pictures."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import (
    Device,
    EditModel,
    OutFile,
    Strict,
    Templates,
    Texts,
    Weights,
    Workers,
    print_notes,
    print_result,
)


def apply(
    edit: str,
    source: str,
    *,
    out: OutFile = Path("embeddings.npz"),
    texts: Texts = None,
    templates: Templates = None,
    model: EditModel = None,
    weights: Weights = None,
    batch: int = 32,
    workers: Workers = None,
    strict: Strict = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    device: Device = "auto",
) -> int:
    """Embed pictures with an edited model, and say what the edit changes about them.

    Args:
        edit: an edit's .json file, as `clip-anatomy repair` and `Edit.save` write it; several joined by + are all applied.
        source: a folder (with all folders in it) | - for paths on standard input | a .txt list | a table .csv, .json or .jsonl | tar files | Parquet | s3://, gs:// or az:// with any of these | hf-dataset:NAME[:SPLIT] or hf-stream: | world:COUNT[:SPLIT] | one picture | a published data set such as waterbirds:FOLDER[:SPLIT].
        out: file to write: .npz, .safetensors or .jsonl. It holds ids and embeddings, and with texts the probabilities without and with the edit.
        texts: what to choose between; repeat it for several texts.
        batch: images at once.
        as_json: print the summary as JSON on stdout.

    Returns:
        Exit code: 0 done, 1 a picture could not be used under --strict.
    """
    from clip_anatomy.progress import shown

    with shown("opening the model") as progress:
        from clip_anatomy.edits.apply import apply as run

        result = run(
            edit, source, out=out, texts=texts, templates=templates, model=model, weights=weights, batch=batch, workers=workers,
            device=device, progress=progress,
        )  # fmt: skip
    print_notes(result.notes, result.failed)
    print_result(result, as_json=as_json)
    return 1 if strict and result.failed else 0
