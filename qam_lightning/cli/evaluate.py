"""``eval``: roll out a trained policy, and report its success rate."""

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qam_lightning.cli.dispatch import called
from qam_lightning.util.arguments import Parser, answered, at_least, path
from qam_lightning.util.errors import UserError
from qam_lightning.util.imports import uncollected

FRAMES_IN_PICTURE = 6
FRAMES_IN_VIDEO = 250  # a frame costs a software renderer 0.2 s, more than the physics


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog=called("eval"),
        description="Roll out the policy of a checkpoint and report its success rate with a 95% "
        "interval. Everything needed to rebuild the policy comes from the checkpoint; results go "
        "to <run>/eval/ as JSON.",
    )
    add = parser.add_argument
    add("source", type=path, metavar="RUN_OR_CHECKPOINT", help="run folder or .ckpt file")
    add("--checkpoint", choices=("last", "best"), default="last", help="which one of a run folder")
    add("--episodes", type=at_least(1), default=50, metavar="N", help="default: %(default)s")
    # Not the training evaluations' seed: best.ckpt was chosen for doing well on those episodes.
    add("--seed", type=at_least(0), default=1, metavar="N", help="default: %(default)s")
    add("--task", type=int, metavar="K", help="another task (1-5) than the one trained on")
    add(
        "--policy",
        choices=("learned", "behavior"),
        default="learned",
        help="'behavior' acts with the behaviour cloned from the data; default: %(default)s",
    )
    add(
        "--best_of_n",
        type=at_least(1),
        metavar="N",
        help="act with the best of N samples by the critic; default: as trained",
    )
    add(
        "--num_envs",
        type=at_least(1),
        default=8,
        metavar="N",
        help="environments that run at once; default: %(default)s",
    )
    add(
        "--workers",
        type=at_least(0),
        metavar="N",
        help="simulation processes, 0: none but this; does not change results; default: all cores",
    )
    add("--compile", action="store_true", help="compile the policy, in its first call")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    add(
        "--video",
        type=at_least(1),
        nargs="?",
        const=1,
        default=0,
        metavar="K",
        help="write the first K episodes (default 1) to <run>/videos/ as mp4",
    )
    add(
        "--picture",
        action="store_true",
        help="write <run>/picture.png: learning curve and frames of a rollout",
    )
    add(
        "--runs",
        type=path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="further runs (other seeds) to average into the picture's learning curve",
    )
    add(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module first: one with a method or an environment of your own; a checkpoint "
        "imports nothing by itself; may be repeated",
    )
    add("--output", type=path, metavar="FILE", help="where to write the JSON instead")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    return answered(lambda: evaluate(options))


def evaluate(options: argparse.Namespace) -> int:
    """Rebuild the policy, roll it out, and report; return the exit code."""
    # Imported only now, so that --help and mistakes in the command line answer at once.
    with uncollected():
        import torch
        from rich.console import Console

        from qam_lightning.checkpoints import check_env, load_method
        from qam_lightning.envs.make import env_id
        from qam_lightning.envs.rollout import RolloutPool
        from qam_lightning.evaluation.episode_policy import EpisodePolicy
        from qam_lightning.evaluation.limits import check_rollouts
        from qam_lightning.evaluation.plots import read_curve
        from qam_lightning.evaluation.report import build_report, check_target, write_report
        from qam_lightning.evaluation.tables import report_table

    torch.set_flush_denormal(True)
    torch.set_num_threads(1)  # the workers have the other cores; and sums keep their order
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; use --device cpu")
    if options.output:
        if os.path.exists(options.output):
            raise UserError(f"--output {options.output}: exists already; delete it or name another")
        try:
            check_target(options.output)
        except UserError as error:
            raise UserError(f"--output {error}") from error

    import_modules(options.modules)
    checkpoint, run = locate(options.source, options.checkpoint)
    overrides = {"best_of_n": options.best_of_n} if options.best_of_n else {}
    method: Any
    method, meta = load_method(checkpoint, **overrides)
    subject = describe(options, checkpoint, method, meta)
    env, task, sparse = subject["env"], subject["task"], subject["sparse"]
    check_env(env, checkpoint)
    env_id(env, task)
    sizes = options.episodes, options.num_envs, options.workers
    check_rollouts("eval", method, env, *sizes)
    name = "-".join(
        f"{checkpoint.stem} step{subject['gradient_step']} {options.policy} "
        f"task{task} seed{options.seed}".split()
    )
    target = options.output or run / "eval" / f"{name}.json"
    # What is missing is better said before the rollouts than after.
    check_target(target)
    curves = [run, *options.runs] if options.picture else []
    for folder in curves:
        read_curve(folder)
    if options.picture:
        check_target(run / "picture.png")
    if options.video:
        check_target(run / "videos" / f"{name}-episode0.mp4")

    behavior, method = options.policy == "behavior", method.to(options.device)
    policy = EpisodePolicy(method, options.seed, behavior, compiled=options.compile)
    recorded, every = frames_wanted(options, env, task)
    with RolloutPool(env, task, sparse, options.workers, options.num_envs) as pool:
        episodes = with_progress(options.episodes, pool, policy, options.seed, recorded, every)

    report = build_report(subject, episodes)
    try:
        written = write_report(report, target, numbered=options.output is None)
    finally:  # also where it cannot be written
        Console(soft_wrap=True).print(report_table(report))
    print(f"wrote {written}")
    for made in draw(options, report, run, curves, name, episodes, every):
        print(f"wrote {made}")
    return 0


def import_modules(names: Sequence[str]) -> None:
    """Import the modules that the command line names.

    Raises:
        UserError: one cannot be imported, for whatever reason.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # also what a user's module raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"--import {name}: cannot be imported: {reason}; is its folder on PYTHONPATH?"
            ) from error


def locate(source: Path, which: str) -> tuple[Path, Path]:
    """Find the checkpoint file and the run folder it belongs to."""
    from qam_lightning.checkpoints import checkpoint_path

    if source.is_dir():
        return checkpoint_path(source, which), source
    if not source.exists():
        raise UserError(f"{source}: no such run folder or checkpoint file")
    inside = Path(os.path.realpath(source)).parent
    return source, inside.parent if inside.name == "checkpoints" else inside


def describe(
    options: argparse.Namespace, checkpoint: Path, method: Any, meta: dict[str, Any]
) -> dict[str, Any]:
    """Collect what is evaluated and how, and warn where the software differs."""
    from qam_lightning.util.provenance import mismatches, versions

    differences = mismatches(meta["versions"])
    if differences:
        print(f"warning: {'; '.join(differences)}", file=sys.stderr)
    if not meta["environment"]:
        raise UserError(
            f"{checkpoint}: names no environment; only what was trained on a ChunkDataModule can "
            "be evaluated here, load_policy acts anywhere"
        )
    kept = ("method", "config_hash", "gradient_step", "env_step", "phase")
    return {
        "checkpoint": str(checkpoint),
        **{key: meta[key] for key in kept if key in meta},
        **meta["environment"],
        "task": meta["environment"]["task"] if options.task is None else options.task,
        "trained_task": meta["environment"]["task"],
        "policy": options.policy,
        "best_of_n": method.best_of_n,
        "seed": options.seed,
        "num_envs": options.num_envs,
        "device": options.device,
        "compile": options.compile,
        "versions": versions(),
        "trained_versions": meta["versions"],
    }


def frames_wanted(options: argparse.Namespace, env: str, task: int) -> tuple[int, int]:
    """Decide how many episodes to record, and every how many steps."""
    from qam_lightning.envs.gl import headless_gl, no_gl
    from qam_lightning.envs.make import episode_steps

    recorded = max(min(options.video, options.episodes), int(options.picture))
    if recorded and headless_gl() is None:
        print(f"warning: {no_gl()}; going on without frames", file=sys.stderr)
        recorded = 0
    most = FRAMES_IN_VIDEO if options.video else 8 * FRAMES_IN_PICTURE
    return recorded, max(1, episode_steps(env, task) // most)


def with_progress(
    episodes: int, pool: Any, policy: Any, seed: int, recorded: int, every: int
) -> Sequence[Any]:
    """Roll out, counting episodes on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = ("episodes", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as p:
        bar = p.add_task("", total=episodes)
        return pool.run(policy, episodes, seed, recorded, every, lambda episode: p.advance(bar))


def draw(
    options: argparse.Namespace,
    report: dict[str, Any],
    run: Path,
    curves: Sequence[Path],
    name: str,
    episodes: Sequence[Any],
    every: int,
) -> Iterable[Path]:
    """Write the videos and the picture that were asked for."""
    from qam_lightning.evaluation.plots import draw_picture
    from qam_lightning.evaluation.video import write_video

    films = [episode for episode in episodes if episode.frames]
    for episode in films[: options.video]:
        yield write_video(run / "videos" / f"{name}-episode{episode.number}.mp4", episode.frames)
    if options.picture:
        shown: Any = max(films, key=lambda episode: episode.success, default=None)
        frames, steps = film_strip(shown, every) if shown else ([], [])
        title = f"{report['method'].rsplit('.', 1)[-1]} on {report['env']}, task {report['task']}"
        yield draw_picture(run / "picture.png", curves, title, frames, steps)


def film_strip(episode: Any, every: int) -> tuple[list, list[int]]:
    """Pick frames evenly from first to last, with the environment step of each."""
    last = len(episode.frames) - 1
    count = min(FRAMES_IN_PICTURE, last + 1)
    picks = [round(i * last / max(1, count - 1)) for i in range(count)]
    return [episode.frames[i] for i in picks], [min(i * every, episode.length) for i in picks]
