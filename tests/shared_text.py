"""Keeps the text that the four scripts share byte-identical: `python tests/shared_text.py` copies it from the trunk.

Only four places may differ: the module's docstring, the marked part of `Args`, `annotate` and `policy_loss`.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRUNK = "gbrl_d4pg.py"
VARIANTS = ("gbrl_bc_reg.py", "gbrl_teacher_action.py", "gbrl_teacher_grad.py")
OWN_BEGINS, OWN_ENDS = "    # ---- this script's own", "    # ---- shared by the four scripts"
OWN_FUNCTIONS = ("annotate", "policy_loss")


def own_ranges(source: str) -> list[tuple[int, int]]:
    """Line ranges [start, end) of the four places, from top to bottom. Raises ValueError if one is missing."""
    lines, tree = source.splitlines(), ast.parse(source)
    marks = [i for i, line in enumerate(lines) if line.startswith((OWN_BEGINS, OWN_ENDS))]
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in OWN_FUNCTIONS]
    if ast.get_docstring(tree) is None or len(marks) != 2 or len(functions) != 2:
        raise ValueError("need a docstring, both marks in Args, annotate and policy_loss, each once")
    return [(0, tree.body[0].end_lineno), (marks[0], marks[1]), *((n.lineno - 1, n.end_lineno) for n in functions)]


def parts(source: str) -> tuple[list[str], list[str]]:
    """The script's shared stretches and its own, in order: shared[0] follows own[0], and so on."""
    lines, ranges = source.splitlines(keepends=True), own_ranges(source)
    own = ["".join(lines[start:end]) for start, end in ranges]
    ends = [start for start, _ in ranges[1:]] + [len(lines)]
    shared = ["".join(lines[end:next_start]) for (_, end), next_start in zip(ranges, ends, strict=True)]
    return shared, own


def repaired(trunk: str, variant: str) -> str:
    """The variant with its own four places and the trunk's shared text."""
    return "".join(own + shared for own, shared in zip(parts(variant)[1], parts(trunk)[0], strict=True))


if __name__ == "__main__":
    text = (ROOT / TRUNK).read_text()
    for name in VARIANTS:
        before = (ROOT / name).read_text()
        after = repaired(text, before)
        (ROOT / name).write_text(after)
        print(f"{name}: {'as it was' if after == before else 'repaired'}", file=sys.stderr)
