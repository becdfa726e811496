"""The four scripts share their text byte for byte, and the table of methods, the scripts and what is written agree."""

import dataclasses
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
import typing
from pathlib import Path
from types import SimpleNamespace

import methods
import pytest
import sweep
import tyro
from pieces import SCRIPTS, parse
from shared_text import ROOT, TRUNK, VARIANTS, parts, repaired
from small import own

from common import UserError, envs, files, launch
from common.envs import EnvSpec

SOURCES = {name: (ROOT / name).read_text() for name in (TRUNK, *VARIANTS)}


@pytest.mark.parametrize("name", VARIANTS)
def test_shared_text_is_byte_identical_and_a_change_is_found_and_repaired_wherever_it_is(name):
    shared, own = parts(SOURCES[name])
    assert shared == parts(SOURCES[TRUNK])[0]
    for which, text in enumerate(shared):
        drifted = [*shared[:which], re.sub("(?i)args", "words", text, count=1), *shared[which + 1 :]]
        changed = "".join(o + s for o, s in zip(own, drifted, strict=True))
        assert parts(changed)[0] != shared and repaired(SOURCES[TRUNK], changed) == SOURCES[name]


def test_common_never_imports_a_script():
    for path in (ROOT / "common").glob("*.py"):
        assert not re.search(r"^\s*(from|import) .*gbrl", path.read_text(), re.MULTILINE), path


def test_nothing_refers_to_a_page_or_a_machine_that_is_not_here():
    pages = [ROOT / "README.md", *ROOT.glob("benchmark/**/*.md"), *ROOT.glob("study/**/*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^):]+)\)", page.read_text())]

    def leads_somewhere(page, link):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        heads = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
        return target.exists() and (not anchor or anchor in anchors)

    assert len(links) > 5 and [link for page, link in links if not leads_somewhere(page, link)] == []
    kept = [*ROOT.glob("benchmark/results/**/*.json"), *ROOT.glob("study/results/**/*.json")]
    assert len(kept) > 10 and [path for path in kept if re.search('"/[a-z]+/', path.read_text())] == []


# ---- the constants

PAPER = {
    "num_cycles": 4, "actor_steps": 2_000_000, "learner_steps": 250_000, "samples_per_insert": 32, "batch_size": 256,
    "demo_episodes": 1_000, "demo_sigma": 0.3, "demos_in_replay": False, "bc_steps": 30_000, "bc_learning_rate": 1e-3,
    "critic_steps": 100_000, "buffer_size": 10_000_000, "learning_rate": 1e-4, "gamma": 0.99, "n_step": 5,
    "num_atoms": 51, "v_min": -150, "v_max": 150, "sigma": 0.3, "target_period": 100, "max_grad_norm": 40,
    "dqda_clip": 1, "eval_every": 100, "eval_episodes": 1, "report_episodes": 20,
}  # fmt: skip
OWN = {"bc_weight": 0.5, "decay_rate": 1, "beta": 0, "teacher_dqda_clip": 1, "alpha_form": "zero_at_end"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_with_no_flags_a_script_runs_the_papers_protocol_and_with_a_scale_its_fraction(script):
    env = EnvSpec("task", 3, 1, 1_000)
    whole, tenth, fiftieth = (vars(script.resolve(script.Args(scale=scale), env)) for scale in (1.0, 0.1, 0.02))
    expected = PAPER | {name: value for name, value in OWN.items() if name in whole}
    assert {name: whole[name] for name in expected} == expected
    scaled = {"actor_steps": 200_000, "learner_steps": 25_000, "demo_episodes": 100, "critic_steps": 10_000}
    assert {name: tenth[name] for name in expected} == expected | scaled
    scaled |= {"actor_steps": 40_000, "learner_steps": 5_000}  # the others have reached what they never go below
    assert {name: fiftieth[name] for name in expected} == expected | scaled
    rounded = script.resolve(script.Args(actor_steps=1_500, num_cycles=2), env)  # to whole episodes
    assert (rounded.actor_steps, rounded.learner_steps) == (2_000, 250)


# ---- the table of methods

NAMES = [f"{name}:5" if method.decays else name for name, method in methods.METHODS.items()]


OTHERS = {"v_min": -7.0, "v_max": 7.0}  # where only some values are allowed


def another(field, hint):
    """A value of this flag that isn't its default."""
    if field.name in OTHERS:
        return OTHERS[field.name]
    if isinstance(field.default, bool):
        return not field.default
    kinds = (hint, *typing.get_args(hint))
    choices = [kind for kind in kinds if isinstance(kind, str) and kind != field.default]
    return choices[0] if choices else 7 if int in kinds else "somebody's" if str in kinds else 0.25


MADE_UP = EnvSpec("made-up", 3, 2, 1_000)
UNSAID = launch.INHERITED | {"env_id", "teacher", "seed", "num_cycles", "scale", "actor_steps", "learner_steps"}
UNSAID -= {"annotate_fraction"}
UNSAID |= {"eval_every", "eval_episodes", "report_episodes", "buffer_size", "method", "decay_rate"}


def full_name(script, args):
    return launch.run_name(script.resolve(args, MADE_UP), MADE_UP, script.method, script.resolve)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_and_each_of_its_flags_is_told_by_its_name(name):
    script, args = parse(name)
    assert full_name(script, args) == name
    assert full_name(script, dataclasses.replace(args, num_cycles=8, scale=0.1, seed=3, eval_every=250)) == name
    assert full_name(script, dataclasses.replace(args, actor_steps=12_000_000, buffer_size=20_000_000)) == name
    hints, seen = typing.get_type_hints(script.Args), {name}
    for field in [field for field in dataclasses.fields(args) if field.name not in UNSAID]:
        changed = {field.name: another(field, hints[field.name])}
        if "qf" in name and "beta_decay" in changed:
            changed["beta"] = 0.25  # its beta is 0, which can't decay
        said = full_name(script, dataclasses.replace(args, **changed))
        assert said.startswith(f"{name},") and said not in seen, field.name
        assert full_name(*parse(said)) == said
        seen.add(said)
    assert len(seen) > 15


def test_names_are_those_of_the_kept_runs():
    for path in (ROOT / "study" / "results" / "campaign").glob("*__*.json"):
        content = json.loads(path.read_text())
        script = importlib.import_module(Path(content["report"]["script"]).stem)
        flags = {field.name for field in dataclasses.fields(script.Args)} & content["resolved"].keys()
        args = script.Args(**{flag: content["resolved"][flag] for flag in flags})
        env = envs.spec(args.env_id)
        assert launch.run_name(args, env, script.method, script.resolve) == content["report"]["name"], path.name


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_gives_the_flags_that_it_was_made_of(script):
    hints = typing.get_type_hints(script.Args)
    for field in dataclasses.fields(script.Args):
        args = script.Args(**{field.name: another(field, hints[field.name])})
        words = shlex.split(launch.command(args, "x.py"))
        expected = script.Args() if field.name in launch.NOT_IN_COMMAND else args
        assert words[:2] == ["python", "x.py"] and tyro.cli(script.Args, args=words[2:]) == expected, field.name


def test_readings_as_they_are_written():
    written = {
        "ta:5,beta-decay": "gbrl_teacher_action.py --method ta --decay-rate 5 --beta-decay",
        "ta_qf,beta:5": "gbrl_teacher_action.py --method ta_qf --beta 5",
        "bc,demo-sigma:0": "gbrl_d4pg.py --demo-sigma 0",
    }
    assert {method: " ".join(methods.command(method)) for method in written} == written
    assert sweep.clone_of("tg:1,alpha-form:plain") == "bc"
    assert sweep.clone_of("ta_qf,demo-sigma:0,beta:5") == "bc,demo-sigma:0"
    for name in ("ta", "bc:1", "nonsense", "ta:1:2"):
        with pytest.raises((ValueError, SystemExit)):
            parse(name)
    script, args = parse("ta_qf,beta-decay")
    with pytest.raises(UserError, match="--beta-decay needs a --beta above 0"):
        script.resolve(args, MADE_UP)


# ---- sweep.py


@pytest.fixture
def begun(monkeypatch):
    """Runs that a sweep begins: each only leaves what a sweep looks at, and fails if its name is in `begun.failing`."""
    parsing = threading.Lock()  # tyro isn't made for threads
    monkeypatch.setattr(sweep, "processors", lambda: 8)

    def ended(status):
        return SimpleNamespace(wait=lambda: status)

    def popen(words, **_):
        folder, script = Path(words[words.index("--run-dir") + 1]), importlib.import_module(Path(words[1]).stem)
        begun.names.append(folder.name)
        if folder.name in begun.failing:
            return ended(begun.failing[folder.name])
        with parsing:
            args = tyro.cli(script.Args, args=words[2:])
        content = {"script": Path(words[1]).name, "args": vars(script.resolve(args, envs.spec(args.env_id)))}
        files.save_json(folder / "args.json", content)
        files.save_json(folder / "report.json", {})
        return ended(0)

    def extract(folder):
        resolved = files.load_json(folder / "args.json", "arguments")["args"]
        return {"resolved": resolved, "report": {"name": "bc"}, "curve": {"learner_step": [], "return": []}}

    begun = SimpleNamespace(names=[], failing={}, drawn=[])
    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(Popen=popen, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr(sweep.plot, "main", lambda args: begun.drawn.append(args.runs))
    monkeypatch.setattr(sweep.runs, "extract", extract)
    return begun


def test_a_sweep_takes_over_what_is_finished_and_refuses_what_was_run_with_other_flags(tmp_path, begun):
    args = sweep.Args(methods=["bc", "ta:1"], output=tmp_path, seeds=(3,), scale=0.01, num_cycles=(2,), teacher="mid")
    sweep.main(args, [])
    clone = "clone__cartpole-swingup__bc__mid__0.01__3"
    names = [f"cartpole-swingup__{method}__mid__2__0.01__3" for method in ("bc", "ta-1")]
    assert sorted(begun.names) == sorted([clone, *names])
    flags = ("teacher", "seed", "scale", "num_cycles", "actor_steps", "learner_steps", "pretrained", "num_workers")
    for name in (clone, *names):
        made = files.load_json(tmp_path / name / "args.json", "arguments")["args"]
        # While the clone is made nothing learns; then two runs share eight processors, and learners need one each.
        alone, shared = (1, 1_000, 1, None, 8), (2, 20_000, 2_500, f"{tmp_path}/{clone}", 3)
        assert tuple(made[flag] for flag in flags) == ("mid", 3, 0.01, *(alone if name == clone else shared))
    assert begun.drawn == [tuple(tmp_path / name for name in names)]
    sweep.main(args, ["--num-workers", "3"])
    with pytest.raises(UserError, match="was run with --bc-steps 30000, not 10; give another --output"):
        sweep.main(args, ["--bc-steps", "10"])
    with pytest.raises(UserError, match="--parallel and --cpus-per-run must be at least 1"):
        sweep.main(dataclasses.replace(args, parallel=0), [])
    for more in (["--seed", "7"], ["--num_cycles=8"]):
        with pytest.raises(UserError, match=r"--(seed|num-cycles) after `--`: the sweep sets it for each run"):
            sweep.main(args, more)
    shutil.rmtree(tmp_path / clone)
    sweep.main(args, [])  # nobody needs it any more
    assert len(begun.names) == 3


def test_a_sweep_keeps_small_files_and_runs_what_they_lack(tmp_path, begun):
    args = sweep.Args(methods=["bc"], output=tmp_path / "runs", seeds=(1,), scale=0.01, results=tmp_path)
    sweep.main(args, [])
    args = dataclasses.replace(args, methods=["bc", "ta_qf"], output=tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"bc__expert__4__0.01__1.json was run with --sigma 0.3, not 0.2; give another"):
        sweep.main(args, ["--sigma", "0.2"])
    sweep.main(args, [])
    clone = "clone__cartpole-swingup__bc__expert__0.01__1"
    bc, ta_qf = (f"cartpole-swingup__{method}__expert__4__0.01__1" for method in ("bc", "ta_qf"))
    assert begun.names == [clone, bc, clone, ta_qf]
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == [bc, ta_qf]
    assert begun.drawn[-1] == (tmp_path / f"{bc}.json", tmp_path / "elsewhere" / ta_qf)


KEPT = ("campaign", "early_clone")


def test_the_campaign_goes_on_from_the_runs_that_are_kept(tmp_path, begun):
    """`campaign.sh` runs what has no file, and its flags are those that the kept runs had."""
    python, asked, results = tmp_path / "python", tmp_path / "asked", ROOT / "study" / "results"
    python.write_text(f'#!/bin/sh\n(printf "%s\\n" "$@"; echo) >> "{asked}"\n')
    python.chmod(0o755)
    for name in KEPT:
        shutil.copytree(results / name, tmp_path / "results" / name)
    campaign = [ROOT / "study" / "campaign.sh", tmp_path / "runs", tmp_path / "results"]
    subprocess.check_call(campaign, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    kept = {path.relative_to(results) for path in results.glob("*/*__*.json") if path.parent.name in KEPT}
    drawn = set()
    for words in asked.read_text().strip("\n").split("\n\n"):
        _, *flags = words.splitlines()
        own = flags[: flags.index("--")]
        args = tyro.cli(sweep.Args, args=own)
        begun.names.clear(), begun.drawn.clear()
        sweep.main(args, flags[len(own) + 1 :])
        assert not kept.intersection(Path(args.results.name, f"{name}.json") for name in begun.names)
        drawn |= {Path(args.results.name, f"{path.name.removesuffix('.json')}.json") for path in begun.drawn[0]}
    assert kept and kept <= drawn  # each is one of the campaign's runs


def test_a_sweep_with_a_failed_run_runs_the_others_and_fails(tmp_path, begun):
    """Also if what it keeps of a run can't be written."""
    begun.failing["cartpole-swingup__bc__expert__4__0.01__1"] = 75
    begun.failing["clone__cartpole-swingup__bc__expert__0.01__2"] = -9
    with pytest.raises(SystemExit, match="3 of 4 runs failed; start this again"):
        sweep.main(sweep.Args(methods=["bc", "bc_reg"], output=tmp_path, seeds=(1, 2), scale=0.01), [])
    assert (tmp_path / "cartpole-swingup__bc_reg__expert__4__0.01__1" / "report.json").exists()
    assert not [name for name in begun.names if not name.startswith("clone") and name.endswith("2")]
    assert begun.drawn == []
    (tmp_path / "kept").touch()  # no folder
    begun.failing.clear()
    with pytest.raises(SystemExit, match="4 of 4 runs failed; start this again"):
        sweep.main(sweep.Args(["bc", "bc_reg"], tmp_path, seeds=(1, 2), scale=0.01, results=tmp_path / "kept"), [])
    assert (tmp_path / "cartpole-swingup__bc_reg__expert__4__0.01__2" / "report.json").exists()


def test_a_sweep_refuses_two_runs_of_one_name(tmp_path, begun):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    mine = tuple(own(tmp_path / folder, "Point", "") for folder in ("a", "b"))
    with pytest.raises(UserError, match=r"two different runs would be .*: give another name to a file"):
        sweep.main(sweep.Args(["bc"], tmp_path, env_ids=mine, seeds=(1,), scale=0.01), [])


def test_a_sweep_counts_the_processors_that_it_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert sweep.processors(tmp_path) == 16
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    for group, limits, expected in (
        ("0::/", {"": "250000 100000"}, 2),
        ("0::/", {"": "5000 10000"}, 1),
        ("3:cpu,cpuacct:/x\n0::/", {"": "max 100000"}, 16),
        ("0::/a/b", {"a": "300000 100000", "a/b": "max 100000"}, 3),
    ):
        (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
        for name, text in limits.items():
            (tmp_path / "sys/fs/cgroup" / name / "cpu.max").write_text(f"{text}\n")
        assert sweep.processors(tmp_path) == expected
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert sweep.processors(tmp_path) == 2


def test_a_sweep_prints_the_commands_of_what_is_not_finished(tmp_path, begun, capsys):
    args = sweep.Args(methods=["bc"], output=tmp_path, seeds=(1,), scale=0.01)
    sweep.main(args, ["--eval-every", "7"])
    shutil.rmtree(tmp_path / "clone__cartpole-swingup__bc__expert__0.01__1")
    sweep.main(dataclasses.replace(args, methods=["bc", "ta:1"], print=True), ["--eval-every", "7"])
    clones, jobs = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert re.findall(r"--run-dir \S+/(\w+?)__", clones) == ["clone"] and jobs.count("--run-dir") == 1
    sweep.main(dataclasses.replace(args, methods=["bc", "bc_reg"]), ["--eval-every", "7"])  # makes the clone again
    capsys.readouterr(), begun.names.clear()
    args = dataclasses.replace(args, methods=["bc", "ta:1"], print=True, cpus_per_run=3)
    sweep.main(args, ["--eval-every", "7"])
    python, script, *flags = shlex.split(capsys.readouterr().out)  # the clone is there, so it is one command
    made = launch.checked(tyro.cli(importlib.import_module(Path(script).stem).Args, args=flags))
    assert (python, script, begun.names) == ("python", f"{ROOT}/gbrl_teacher_action.py", [])
    folders = [f"{tmp_path}/cartpole-swingup__ta-1__expert__4__0.01__1"]
    folders += [f"{tmp_path}/clone__cartpole-swingup__bc__expert__0.01__1"]
    assert [made.run_dir, made.pretrained, made.eval_every, made.num_workers] == [*folders, 7, 2]
