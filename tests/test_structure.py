"""The four scripts share their text byte for byte, and drift is found and repaired."""

import ast
from pathlib import Path

import pytest
import shared_text
from shared_text import ROOT, TRUNK, VARIANTS, parts, repaired

SOURCES = {name: (ROOT / name).read_text() for name in (TRUNK, *VARIANTS)}


def defined(source: str) -> dict[str, str]:
    return {n.name: ast.get_source_segment(source, n) for n in ast.parse(source).body if hasattr(n, "name")}


@pytest.mark.parametrize("name", VARIANTS)
def test_shared_text_is_byte_identical(name):
    assert parts(SOURCES[name])[0] == parts(SOURCES[TRUNK])[0]
    own, trunk = defined(SOURCES[name]), defined(SOURCES[TRUNK])
    assert list(own) == list(trunk)  # independent of the tool: the same definitions, in the same order
    assert {n for n in trunk if own[n] != trunk[n]} <= {"Args", "annotate", "policy_loss"}


@pytest.mark.parametrize("name", VARIANTS)
def test_one_changed_character_is_found_and_repaired_wherever_it_is(name):
    shared, own = parts(SOURCES[name])
    tried = 0
    for which, text in enumerate(shared):
        for at in range(0, len(text), max(1, len(text) // 8)):
            if not text[at].isalpha():
                continue
            drifted_part = text[:at] + ("q" if text[at] != "q" else "z") + text[at + 1 :]
            drifted_shared = [*shared[:which], drifted_part, *shared[which + 1 :]]
            drifted = "".join(o + s for o, s in zip(own, drifted_shared, strict=True))
            try:
                found = parts(drifted)[0] != parts(SOURCES[TRUNK])[0]
            except (SyntaxError, ValueError):  # not even Python, or a mark is gone: louder than a difference
                continue
            tried += 1
            assert found
            assert repaired(SOURCES[TRUNK], drifted) == SOURCES[name]
    assert tried >= 5


def test_the_tool_changes_nothing_but_drift(tmp_path, monkeypatch):
    for name, source in SOURCES.items():
        (tmp_path / name).write_text(source.replace("target_period", "target_perjod") if "grad" in name else source)
    monkeypatch.setattr(shared_text, "ROOT", tmp_path)
    code = compile(Path(shared_text.__file__).read_text().replace("ROOT = Path(__file__).resolve().parent.parent",
                   f"ROOT = Path({str(tmp_path)!r})"), "shared_text", "exec")  # fmt: skip
    exec(code, {"__name__": "__main__"})
    assert {name: (tmp_path / name).read_text() for name in SOURCES} == SOURCES


def test_missing_marks_are_refused():
    with pytest.raises(ValueError, match="annotate"):
        parts(SOURCES[TRUNK].replace("def annotate(", "def annotated("))


def test_common_never_imports_a_script():
    for path in (ROOT / "common").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = getattr(node, "module", None) or ""
            assert not any(n.startswith("gbrl") for n in [*names, module]), path


def test_sizes_stay_readable():
    assert len(SOURCES[TRUNK].splitlines()) <= 450
    for name in VARIANTS:
        own = sum(len(p.splitlines()) for p in parts(SOURCES[name])[1])
        trunk_own = sum(len(p.splitlines()) for p in parts(SOURCES[TRUNK])[1])
        assert own - trunk_own <= 80
