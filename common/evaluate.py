"""Score a policy snapshot on noise-free episodes and, on request, film it.

`python -m common.evaluate PATH [--episodes 20] [--seed 1] [--num-workers 2] [--video FILE.gif] [--json FILE]`

Only (STREAM, s, i) seeds episode i of seed s. Runs and demonstrations never use that stream, so no policy is scored on
episodes that it was trained or selected on. All snapshots of a task get the same start states. The shipped teachers'
scores are those of seed 0.
"""

import contextlib
import io
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image

from common import UserError, envs, files, report, rollouts, snapshots
from common.workers import Workers

ROOT = Path(__file__).resolve().parent.parent
STREAM = 0x6576616C  # ASCII "eval"; a run's streams start with its seed, so only seed 1702257004 would clash
HEIGHT, WIDTH, MAX_FRAMES = 240, 320, 250  # a GIF of 1 MB or less [ours]
PLAIN = {"shadow": False, "reflection": False}  # without a GPU these two take 60 % of the drawing time


@dataclass
class Args:
    """Score a policy snapshot on noise-free episodes, and film one on request."""

    path: tyro.conf.Positional[Path]
    """a snapshot .pt, or a folder with one: a cycle's, or a run's, where its last cycle counts"""
    episodes: int = 20
    """noise-free episodes to score; 0 only films"""
    seed: int = 1
    """seed of the start states; the same seed gives every snapshot the same ones"""
    num_workers: int = 2
    """processes that run the episodes, 0 for none; the score doesn't depend on it"""
    video: Path | None = None
    """film the first episode into this .gif"""
    json: Path | None = None
    """write the returns and the snapshot's SHA-256 to this file"""


def find_snapshot(path: Path) -> Path:
    """The snapshot at `path`: a file, a cycle's, or that of a run's last cycle. Raises UserError if there is none."""
    if not path.is_dir():
        return path
    cycles = sorted(path.glob("cycle_*/snapshot.pt"), key=lambda found: int(found.parent.name[6:]))
    found = [*cycles, *path.glob("snapshot.pt")]
    if not found:
        raise UserError(f"{path} holds no snapshot.pt, neither itself nor in a cycle_KKKK folder.")
    return found[-1]


def score(snapshot: snapshots.Snapshot, episodes: int, seed: int, num_workers: int) -> np.ndarray:
    """Undiscounted returns of the noise-free episodes 0 to `episodes` - 1 of `seed`, (episodes,) float64."""
    with contextlib.closing(Workers(envs.spec(snapshot.env_id), num_workers)) as workers:
        done = workers.episodes(snapshot.action, 0.0, (STREAM, seed), range(episodes), "scoring")
    return np.array([episode.episodic_return for episode in done])


def check_can_film(env_id: str) -> None:
    """Raise UserError if the task isn't dm_control's, or no renderer works on this machine."""
    _with_renderer(env_id, "draw_start", env_id)


def film(snapshot_path: Path, output: Path, seed: int = 1) -> None:
    """Film episode 0 of `seed`, the first that `score` runs, in about real time; `output` is a .gif.

    Raises:
        UserError: `output` isn't a .gif, no renderer works, the snapshot is bad, or its task isn't dm_control's.
    """
    if output.suffix != ".gif":
        raise UserError(f"--video {output}: expected a name that ends in .gif.")
    env_id = snapshots.load(snapshot_path, torch.device("cpu")).env_id
    _with_renderer(env_id, "film_here", str(snapshot_path.resolve()), str(output.resolve()), str(seed))


def _with_renderer(env_id: str, function: str, *words: str) -> None:
    """Call a function of this file in a new process with a renderer: the one that you set, else EGL, else OSMesa.

    dm_control picks a process's only renderer at import, and this process has none.
    """
    if not envs.is_suite(env_id):
        raise UserError(f"no video: {env_id} isn't a task of dm_control's, and only those are drawn.")
    wanted = os.environ.get("MUJOCO_GL", "")
    code, failed = f"import sys; from common import evaluate; evaluate.{function}(*sys.argv[1:])", []
    for name in ["egl", "osmesa"] if wanted in ("", "disabled") else [wanted]:
        command, env = [sys.executable, "-c", code, *words], os.environ | {"MUJOCO_GL": name}
        done = subprocess.run(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return
        failed += [f"{name}: {(done.stderr.strip().splitlines() or [f'status {done.returncode}'])[-1]}"]
    raise UserError(
        f"no video: MuJoCo can't draw ({'; '.join(failed)}); install OSMesa (Debian: apt-get install libosmesa6), or "
        "libegl1 and a GPU driver for EGL, or set MUJOCO_GL=glfw on a desktop."
    )


def draw_start(env_id: str) -> None:
    """Draw the start of an episode with this process's renderer. Raises what the renderer raises."""
    env = envs.SuiteEnv(env_id).dm_env
    env.reset()
    _picture(env)
    env.close()  # at the interpreter's exit, OSMesa's clean-up would print tracebacks


def _picture(env: Any) -> np.ndarray:
    """A frame, (HEIGHT, WIDTH, 3) uint8."""
    picture = env.physics.render(HEIGHT, WIDTH, camera_id=0, render_flag_overrides=PLAIN)
    if picture.std() == 0:
        raise RuntimeError("the picture is empty")
    return picture


def film_here(snapshot_path: str, output: str, seed: str) -> None:
    """Film as `film` does, with this process's renderer."""
    snapshot = snapshots.load(Path(snapshot_path), torch.device("cpu"))
    env = envs.SuiteEnv(snapshot.env_id)
    every = math.ceil(env.spec.episode_length / MAX_FRAMES)
    frames, rewards, last = [], [], False
    # The same ten rows, thread and seed as in `rollouts.run_block`, so that this is the scored episode bit for bit.
    obs = np.zeros((rollouts.BLOCK, env.spec.obs_size), np.float32)
    env.reset(rollouts.episode_seeds((STREAM, int(seed)), 0)[0], obs[0])
    with rollouts.one_thread(), torch.inference_mode():
        while not last:
            if len(rewards) % every == 0:
                frames.append(_picture(env.dm_env))
            reward, _, last = env.step(snapshot.action(torch.from_numpy(obs))[0].numpy(), obs[0])
            rewards.append(np.float32(reward))
    seconds = every * env.dm_env.control_timestep()
    env.dm_env.close()
    # One palette without dithering keeps still parts of the picture identical, which GIF stores for nothing.
    palette = Image.fromarray(np.concatenate(frames[:: len(frames) // 4 + 1])).quantize(128)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=1000 * seconds, loop=0)
    files.write_atomically(Path(output), buffer.getvalue())
    print(f"filmed episode 0 of seed {seed}, return {np.sum(rewards, dtype=np.float64):.2f}, into {output}")


def main(args: Args) -> None:
    """Film and score the snapshot, then print and write the results."""
    path = find_snapshot(args.path)
    if args.episodes < 0 or args.seed < 0 or args.num_workers < 0:
        raise UserError("--episodes, --seed and --num-workers can't be negative.")
    snapshot = snapshots.load(path, torch.device("cpu"))
    if args.video is not None:
        film(path, args.video, args.seed)
    if args.episodes == 0:
        return
    returns = score(snapshot, args.episodes, args.seed, args.num_workers)
    result = report.summarise(returns) | {"min": float(returns.min()), "max": float(returns.max())}
    spec = envs.spec(snapshot.env_id)
    print(f"{path}: {spec.env_id}, obs size {spec.obs_size}, action size {spec.action_size}, sha256 {snapshot.sha256}")
    print(*(f"  {name}: {value}" for name, value in snapshot.metadata.items()), sep="\n")
    print(f"return of {args.episodes} noise-free episodes of seed {args.seed}:")
    print(f"  mean {result['mean']:.2f}, 95 % bootstrap interval {result['ci95'][0]:.2f} to {result['ci95'][1]:.2f}")
    print(f"  standard deviation {result['std']:.2f}, min {result['min']:.2f}, max {result['max']:.2f}")
    if args.json is not None:
        result |= {"env_id": spec.env_id, "seed": args.seed, "returns": returns.tolist()}
        files.save_json(args.json, result | {"snapshot_sha256": snapshot.sha256, "metadata": snapshot.metadata})


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
