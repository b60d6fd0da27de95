"""The exported encoder's one file: the modules of the forward themselves, one after another, so that it cannot drift from them."""

import ast
from pathlib import Path

from clip_anatomy.edits import standalone_encoder
from clip_anatomy.towers import embedding, forward, layers, operations, positions, readout

__all__ = ["packed_source"]

LEFT_OUT = ("clip_anatomy", "jaxtyping")  # what the modules import of each other, and of the library that checks shapes
SHAPES = '''class Shape:
    """Names the axes of a tensor in an annotation, for the reader."""

    def __getitem__(self, of: tuple[type, str]) -> type:
        """Return the type without the axes."""
        return of[0]


Bool = Float = Int = Shape()'''


def packed_source() -> str:
    """Write the layers, the forward and the encoder as one Python source that needs torch and safetensors only.

    The shapes in annotations stay for the reader; `Float[Tensor, "…"]` is there just `Tensor`.

    Returns:
        The source; its docstring is the encoder's.
    """
    imports: set[str] = set()
    bodies: list[str] = []
    for module in (layers, operations, positions, embedding, readout, forward, standalone_encoder):
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        lines = source.splitlines()
        for node in reversed(ast.parse(source).body):
            if isinstance(node, ast.Import | ast.ImportFrom):
                name = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
                if name.split(".")[0] not in LEFT_OUT:
                    imports.add(ast.unparse(node))
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):  # the module's docstring
                continue
            del lines[node.lineno - 1 : node.end_lineno]
        bodies.append("\n".join(lines).strip())
    title = f'"""{standalone_encoder.__doc__}"""\n'
    return "\n\n\n".join(["\n".join([title, *sorted(imports)]), SHAPES, *bodies]) + "\n"
