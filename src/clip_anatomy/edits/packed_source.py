"""The exported encoder's one file: the modules of the forward themselves, one after another, so that it cannot drift from them."""

import ast
from pathlib import Path

from clip_anatomy.edits import standalone_encoder
from clip_anatomy.towers import forward, layers

__all__ = ["packed_source"]

LEFT_OUT = ("clip_anatomy", "jaxtyping")  # what the modules import of each other, and the shapes in their annotations


def packed_source() -> str:
    """Write the layers, the forward and the encoder as one Python source that needs torch and safetensors only.

    Annotations are never evaluated there (PEP 563), so that the names of shapes in them need no library.

    Returns:
        The source; its docstring is the encoder's.
    """
    imports: set[str] = set()
    bodies: list[str] = []
    for module in (layers, forward, standalone_encoder):
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
    title = f'"""{standalone_encoder.__doc__}"""\n\nfrom __future__ import annotations'
    return "\n\n\n".join(["\n".join([title, "", *sorted(imports)]), *bodies]) + "\n"
