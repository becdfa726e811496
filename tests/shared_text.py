"""Keeps the text that the four scripts share byte-identical: `python tests/shared_text.py` copies it from the trunk.

Only three places may differ: the module's docstring, the script's first flags, and the part that is the script's own.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRUNK = "gbrl_d4pg.py"
VARIANTS = ("gbrl_bc_reg.py", "gbrl_teacher_action.py", "gbrl_teacher_grad.py")
# Own text reaches from the first line of each pair to the second; that of the docstring is found by itself.
MARKS = (
    ("    # ---- this script's own", "    # ---- shared by the four scripts"),
    ("# ======== what is this script's own", "# ======== learning"),
)


def parts(source: str) -> tuple[list[str], list[str]]:
    """The script's shared stretches and its own, in order: shared[0] follows own[0], and so on.

    Raises:
        ValueError: the docstring or a mark is missing, or is there twice.
    """
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    if ast.get_docstring(tree) is None:
        raise ValueError("need a docstring")
    ranges = [(0, tree.body[0].end_lineno)]
    for marks in MARKS:
        found = [[i for i, line in enumerate(lines) if line.startswith(mark)] for mark in marks]
        if [len(places) for places in found] != [1, 1]:
            raise ValueError(f"need each of the lines {marks} once")
        ranges.append((found[0][0], found[1][0]))
    own = ["".join(lines[start:end]) for start, end in ranges]
    ends = [start for start, _ in ranges[1:]] + [len(lines)]
    shared = ["".join(lines[end:next_start]) for (_, end), next_start in zip(ranges, ends, strict=True)]
    return shared, own


def repaired(trunk: str, variant: str) -> str:
    """The variant with its own three places and the trunk's shared text."""
    return "".join(own + shared for own, shared in zip(parts(variant)[1], parts(trunk)[0], strict=True))


if __name__ == "__main__":
    text = (ROOT / TRUNK).read_text()
    for name in VARIANTS:
        before = (ROOT / name).read_text()
        after = repaired(text, before)
        (ROOT / name).write_text(after)
        print(f"{name}: {'as it was' if after == before else 'repaired'}", file=sys.stderr)
