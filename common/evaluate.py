"""Score policy snapshots on noise-free episodes and, on request, film them side by side.

    python -m common.evaluate RUN_DIR
    python -m common.evaluate RUN_DIR/cycle_0000 RUN_DIR/cycle_0004 --video film.gif

The numbers (STREAM, s, i) alone seed episode i of --seed s. Runs and demonstrations never use that stream, so no policy
is scored on episodes that it was trained or selected on. All snapshots of a task get the same start states. The shipped
teachers' scores are those of seed 0.
"""

import contextlib
import io
import math
import os
import subprocess
import sys
from collections.abc import Sequence
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
HEIGHT, WIDTH, MAX_FRAMES = 240, 320, 250  # a GIF of 1 MB or less for a snapshot [ours]
PLAIN = {"shadow": False, "reflection": False}  # without a GPU these two take 60 % of the drawing time


@dataclass
class Args:
    """Score policy snapshots on noise-free episodes, and film one of each on request."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """snapshots .pt, or folders that hold one: a run's (its last cycle's is taken) or one cycle's"""
    episodes: int = 20
    """noise-free episodes to score each snapshot on; 0 only films"""
    seed: int = 1
    """seed of the start states; the same seed gives every snapshot the same ones"""
    num_workers: int = 2
    """processes that run the episodes, 0 for none; the score doesn't depend on it"""
    video: Path | None = None
    """film the first episode of each, side by side, into this .gif"""


def find_snapshot(path: Path) -> Path:
    """The snapshot at `path`: a file, a cycle's, or that of a run's last cycle. Raises UserError if there is none."""
    if not path.is_dir():
        return path
    found = [*report.by_cycle(path, "snapshot.pt").values(), *path.glob("snapshot.pt")]
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


def film(paths: Sequence[Path], output: Path, seed: int = 1) -> None:
    """Film episode 0 of `seed`, the first that `score` runs, of each snapshot, about in real time, as `output`, a .gif.

    Raises:
        UserError: unknown format, no working renderer, no good snapshot, one of a task of your own, or several tasks.
    """
    if output.suffix != ".gif":
        raise UserError(f"--video {output}: expected a name that ends in .gif.")
    env_id, *others = dict.fromkeys(snapshots.load(path, torch.device("cpu")).env_id for path in paths)
    if others:
        raise UserError(f"--video films snapshots of one task, not of {env_id} and {others[0]}.")
    _with_renderer(env_id, "film_here", str(output.resolve()), str(seed), *(str(path.resolve()) for path in paths))


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
    env = envs.SuiteTask(env_id).dm_env
    env.reset()
    _picture(env)
    env.close()  # at the interpreter's exit, OSMesa's clean-up would print tracebacks


def _picture(env: Any) -> np.ndarray:
    """A frame, (HEIGHT, WIDTH, 3) uint8."""
    picture = env.physics.render(HEIGHT, WIDTH, camera_id=0, render_flag_overrides=PLAIN)
    if picture.std() == 0:
        raise RuntimeError("the picture is empty")
    return picture


def film_here(output: str, seed: str, *paths: str) -> None:
    """What `film` says, with this process's renderer."""
    films, env_id = [], snapshots.load(Path(paths[0]), torch.device("cpu")).env_id
    env = envs.Env(env_id)
    every = math.ceil(env.spec.episode_length / MAX_FRAMES)
    for path in paths:
        frames, episodic_return = _frames(env, snapshots.load(Path(path), torch.device("cpu")), int(seed), every)
        films.append(frames)
        print(f"filmed episode 0 of seed {seed}, return {episodic_return:.2f}, of {path}")
    longest = max(map(len, films))
    frames = [np.concatenate([film[min(i, len(film) - 1)] for film in films], axis=1) for i in range(longest)]
    # One palette without dithering keeps still parts of the picture identical, which GIF stores for nothing.
    palette = Image.fromarray(np.concatenate(frames[:: len(frames) // 4 + 1])).quantize(128)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    duration = 1000 * every * env.task.dm_env.control_timestep()
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    files.write_atomically(Path(output), buffer.getvalue())
    env.task.dm_env.close()


def _frames(env: envs.Env, snapshot: snapshots.Snapshot, seed: int, every: int) -> tuple[list[np.ndarray], float]:
    """A frame of each `every`-th step of the first episode that `score` runs, and its return."""
    stream, obs, frames = (STREAM, seed), np.zeros(env.spec.obs_size, np.float32), []
    (episode,) = rollouts.run_block(env.spec.env_id, snapshot.action, 0.0, stream, range(1))
    # The same episode again, by its actions, for the pictures.
    env.reset(rollouts.episode_seeds(stream, 0)[0], obs)
    for step, action in enumerate(episode.action):
        if step % every == 0:
            frames.append(_picture(env.task.dm_env))
        env.step(action, obs)
    return frames, episode.episodic_return


def main(args: Args) -> None:
    """Film, then score, and print what came out."""
    paths = [find_snapshot(path) for path in args.paths]
    if args.episodes < 0 or args.seed < 0 or args.num_workers < 0:
        raise UserError("--episodes, --seed and --num-workers can't be negative.")
    loaded = [snapshots.load(path, torch.device("cpu")) for path in paths]
    if args.video is not None:
        film(paths, args.video, args.seed)
    for path, snapshot in zip(paths, loaded if args.episodes > 0 else [], strict=False):
        returns = score(snapshot, args.episodes, args.seed, args.num_workers)
        mean, deviation, (low, high) = (report.summarise(returns)[name] for name in ("mean", "std", "ci95"))
        print(f"{path}: {snapshot.env_id}, SHA-256 {snapshot.sha256}")
        print(*(f"  {name}: {value}" for name, value in snapshot.metadata.items()), sep="\n")
        print(f"return of {args.episodes} noise-free episodes of seed {args.seed}:")
        print(f"  mean {mean:.2f}, 95 % bootstrap interval {low:.2f} to {high:.2f}")
        print(f"  standard deviation {deviation:.2f}, min {returns.min():.2f}, max {returns.max():.2f}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
