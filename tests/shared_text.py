"""Keeps the text that the four scripts share byte-identical: `python tests/shared_text.py` copies it from the trunk.

Only three places may differ: the module's docstring, the script's first flags, and the part that is the script's own.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRUNK = "gbrl_d4pg.py"
VARIANTS = ("gbrl_bc_reg.py", "gbrl_teacher_action.py", "gbrl_teacher_grad.py")
OWN = re.compile(
    r'\A""".*?"""\n'
    r"|^    # ---- this script's own.*?(?=^    # ---- shared by the four scripts)"
    r"|^# ======== what is this script's own.*?(?=^# ======== learning)",
    re.MULTILINE | re.DOTALL,
)


def parts(source: str) -> tuple[list[str], list[str]]:
    """The script's shared stretches and its own, in order: shared[0] follows own[0], and so on."""
    (before, *shared), own = OWN.split(source), OWN.findall(source)
    if before or len(own) != 3:
        raise ValueError("need a docstring and each mark of the script's own text once")
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
