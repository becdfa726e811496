"""The four scripts share their text byte for byte, and the table of rows, the scripts and what is written agree."""

import ast
import dataclasses
import re
import typing

import pytest
import rows
import sweep
from pieces import parse
from shared_text import ROOT, TRUNK, VARIANTS, parts, repaired

from common import UserError

SOURCES = {name: (ROOT / name).read_text() for name in (TRUNK, *VARIANTS)}
CODE = [path for folder in ("", "common", "benchmark", "examples", "tests") for path in (ROOT / folder).glob("*.py")]


@pytest.mark.parametrize("name", VARIANTS)
def test_shared_text_is_byte_identical(name):
    assert parts(SOURCES[name])[0] == parts(SOURCES[TRUNK])[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_one_changed_character_is_found_and_repaired_wherever_it_is(name):
    shared, own = parts(SOURCES[name])
    tried = 0
    for which, text in enumerate(shared):
        for at in range(0, len(text), len(text) // 8):
            drifted_part = text[:at] + ("q" if text[at] != "q" else "z") + text[at + 1 :]
            drifted_shared = [*shared[:which], drifted_part, *shared[which + 1 :]]
            drifted = "".join(o + s for o, s in zip(own, drifted_shared, strict=True))
            try:
                found = parts(drifted)[0] != parts(SOURCES[TRUNK])[0]
            except (SyntaxError, ValueError):  # not even Python, or a mark is gone: louder than a difference
                continue
            tried += 1
            assert found and repaired(SOURCES[TRUNK], drifted) == SOURCES[name]
    assert tried >= 10


def test_common_never_imports_a_script():
    for path in (ROOT / "common").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not any(name.startswith("gbrl") for name in [*names, getattr(node, "module", None) or ""]), path


def test_nothing_refers_to_a_page_that_is_not_here():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("benchmark/**/*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert len(links) > 5 and [link for page, link in links if not (page.parent / link).exists()] == []
    kept = [*ROOT.glob("benchmark/results/**/*.json")]
    assert len(kept) > 10 and [path for path in kept if re.search('"/[a-z]+/', path.read_text())] == []  # of a machine
    elsewhere = re.compile("DE" + "SIGN|STYLE[.]md|paper[.]md")
    assert [path for path in [*CODE, *pages] if elsewhere.search(path.read_text())] == []


# ---- the table of rows

NAMES = [f"{name}:5" if row.decays else name for name, row in rows.ROWS.items()]


def another(field, hint):
    """A value of this flag that isn't its default."""
    if isinstance(field.default, bool):
        return not field.default
    choices = [value for value in typing.get_args(hint) if isinstance(value, str) and value != field.default]
    return choices[0] if choices else 0.25


@pytest.mark.parametrize("name", NAMES)
def test_a_row_and_each_of_its_readings_is_told_by_its_name(name):
    script, args = parse(name)
    assert script.row(args) == name
    fields = [field for field in dataclasses.fields(args) if field.name in (*script.READINGS, "beta")]
    hints = typing.get_type_hints(script.Args)
    readings = {field.name: another(field, hints[field.name]) for field in fields}
    seen = {name}
    for changed in [*({flag: value} for flag, value in readings.items()), {"dqda_clip": float("inf")}, readings]:
        if "qf" in name and "beta_decay" in changed:
            changed = {"beta": 0.25} | changed  # its beta is 0, which can't decay
        other = dataclasses.replace(args, **changed)
        seen.add(script.row(other))
        assert script.row(other).startswith(f"{name},") and parse(script.row(other)) == (script, other)
    assert len(seen) == len(readings) + 3  # no two readings share a name


def test_readings_as_they_are_written():
    written = {
        "ta:5,beta-decay": "gbrl_teacher_action.py --method ta --decay-rate 5 --beta-decay",
        "ta_qf,beta:5": "gbrl_teacher_action.py --method ta_qf --beta 5",
        "bc,demo-sigma:0": "gbrl_d4pg.py --demo-sigma 0",
    }
    assert {row: " ".join(rows.command(row)) for row in written} == written
    for name in ("ta", "bc:1", "nonsense", "ta:1:2"):
        with pytest.raises((ValueError, SystemExit)):
            parse(name)
    script, args = parse("ta_qf,beta-decay")
    with pytest.raises(UserError, match="--beta-decay needs a --beta above 0"):
        script.row(args)


def test_rows_share_a_clone_unless_a_reading_is_of_cloning():
    same = ("bc", "bc_reg_decay:5", "ta:5,beta-decay", "tg:1,sigma:0.2")
    assert {sweep.clone_of(row) for row in same} == {"bc"}
    assert sweep.clone_of("ta_qf,demo-sigma:0,beta:5") == "bc,demo-sigma:0"
