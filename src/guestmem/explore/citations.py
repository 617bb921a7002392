"""Which of the kernel's functions a function stands for: only what its docstring, or its file's, says, in its words."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from .strand import Where

__all__ = ["citation"]

_PACKAGE = Path(__file__).parents[1]
_KERNEL = re.compile(r"\b(?:virt|arch|kernel|mm|fs|include|Documentation)/[\w/.-]+\.(?:c|h|S|rst)\b|\basm/\w+\.h\b")


@cache
def _docstrings(file: str) -> tuple[str, dict[str, str]]:
    path = _PACKAGE / file
    if not path.is_file():
        return "", {}
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return ast.get_docstring(tree) or "", {node.name: ast.get_docstring(node) or "" for node in functions}


def citation(where: Where) -> str:
    """The sentence that names the kernel's source, of a function's docstring or else its file's; empty if none does.

    >>> citation(Where("stage2/unmap.py", 1, "unmap"))[:63]
    'Exclusive only, as merged in Linux (kvm_pgtable_stage2_unmap(),'
    """
    if where.file.startswith("explore/"):
        return ""
    module, functions = _docstrings(where.file)
    for text in (functions.get(where.function, ""), module):
        plain = " ".join(text.replace("``", "").split())
        for sentence in re.split(r"(?<=[.;:])\s+(?=[A-Z])", plain):
            if _KERNEL.search(sentence):
                return sentence
    return ""
