"""`clip-anatomy export`: use an edited model anywhere else."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import EditModel, OutFile, Weights, print_json


def export(
    edit: str,
    *,
    out: OutFile = Path("clip-anatomy-export"),
    onnx: bool = False,
    model: EditModel = None,
    weights: Weights = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Write an edited model so that it runs without clip-anatomy: one Python file over torch with its weights, or ONNX.

    Args:
        edit: an edit's .json file, as `clip-anatomy repair` and `Edit.save` write it; several joined by + are all in it.
        out: folder to write; an older export there is replaced.
        onnx: also image.onnx and text.onnx, run with onnxruntime and compared before they are kept.
        as_json: print what was written as JSON on stdout.

    Returns:
        Exit code 0.
    """
    from clip_anatomy.progress import note, say, shown

    with shown(f"writing {out}") as progress:
        from clip_anatomy.edits.export import MODULE
        from clip_anatomy.edits.export import export as run

        result = run(edit, out=out, onnx=onnx, model=model, weights=weights, progress=progress)
    if as_json:
        print_json(result.to_dict())
        return 0
    say(result.summary())
    module = MODULE.removesuffix(".py")
    note(
        f"in Python: sys.path.append({str(result.folder)!r}); from {module} import load; model = load({str(result.folder)!r})"
    )
    return 0
