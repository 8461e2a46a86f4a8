"""``eval``: roll out a trained policy, and report its success rate."""

import argparse
import importlib
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from qam_lightning.cli.dispatch import called
from qam_lightning.util.arguments import Parser, answered, at_least, path, spelled, takes_imports
from qam_lightning.util.errors import UserError, reason_of, shown
from qam_lightning.util.hub import is_url, policy_folder
from qam_lightning.util.imports import uncollected

ACTING = ("best_of_n", "flow_steps", "sampler", "temperature", "vartheta")
"""Settings of acting that may have several values."""
SEVERAL = {*(f"--{name}" for name in ACTING), "--guidance"}
SAMPLERS = ("euler", "ab2", "etd2")
FRAMES_IN_PICTURE = 6
FRAMES_IN_VIDEO = 250  # a frame costs a software renderer 0.2 s, more than the physics


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog=called("eval"),
        description="Roll out the policy of a checkpoint and report its success rate with a 95% "
        "interval. Everything needed to rebuild the policy comes from the checkpoint; results go "
        "to <run>/eval/ as JSON. Several values of N, T, SIGMA, WEIGHT or the sampler make a sweep "
        "of all combinations, with a table as CSV and a curve; the same command goes on with a "
        "sweep that was interrupted.",
    )
    add = parser.add_argument
    several = partial(add, action="append", default=[])
    source = "run folder, .ckpt file, exported folder, or hf://owner/name on the Hugging Face hub"
    add("source", type=path, metavar="RUN_OR_CHECKPOINT", help=source)
    add("--checkpoint", choices=("last", "best"), default="last", help="which one of a run folder")
    add("--episodes", type=at_least(1), default=50, metavar="N", help="default: %(default)s")
    # Not the training evaluations' seed: best.ckpt was chosen for doing well on those episodes.
    add("--seed", type=at_least(0), default=1, metavar="N", help="default: %(default)s")
    add(
        "--task",
        type=task,
        metavar="K",
        help="another task (1-5) than the one trained on; all: each of the five, and their mean",
    )
    add(
        "--policy",
        choices=("learned", "behavior"),
        default="learned",
        help="'behavior' acts with the behaviour cloned from the data; default: %(default)s",
    )
    several(
        "--best_of_n",
        type=at_least(1),
        metavar="N",
        help="act with the best of N samples by the critic; default: as trained",
    )
    several(
        "--flow_steps",
        type=at_least(1),
        metavar="T",
        help="integration steps of the flow that acts; default: as trained",
    )
    several(
        "--sampler",
        choices=SAMPLERS,
        help="how the flow that acts is integrated, at the same cost: first or second order; "
        "default: as trained",
    )
    several(
        "--temperature",
        type=number,
        metavar="SIGMA",
        help="standard deviation of the noise that the flow starts from; default: 1, as trained",
    )
    several(
        *("--vartheta", "--guidance"),
        type=number,
        metavar="WEIGHT",
        help="strength of the guidance of CGQL and its kin; default: as trained",
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
        "--latency",
        type=at_least(1),
        nargs="?",
        const=1000,
        metavar="CALLS",
        help="instead of rolling out, time CALLS (default 1000) of the policy at one observation: "
        "eager, compiled and ONNX, with one thread and two",
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
    takes_imports(parser)
    add("--output", type=path, metavar="FILE", help="where to write the JSON instead")
    options = parser.parse_args(one_by_one(sys.argv[1:] if arguments is None else arguments))
    try:
        check(options)
    except UserError as error:
        parser.error(str(error))
    return options


def task(text: str) -> int | str:
    """Read a task: its number, or ``all``."""
    return text if text == "all" else int(text)


def number(text: str) -> float:
    """Read a number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {shown(text)}")
    return value


def is_number(text: str) -> bool:
    """Whether an argument is a number, though perhaps none that the setting takes."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def one_by_one(arguments: Sequence[str]) -> list[str]:
    """Spell ``--best_of_n 1 4`` as ``--best_of_n 1 --best_of_n 4``.

    argparse could take all values at once, but would then take the run that follows them for one.
    """
    found, flag = list[str](), ""
    for argument in arguments:
        value = argument in SAMPLERS if flag == "--sampler" else is_number(argument)
        if flag and found[-1] != flag and value:
            found.append(flag)
        elif argument.startswith("-"):
            name = argument.partition("=")[0]
            flag = name if name in SEVERAL else ""
        elif found and found[-1] != flag:
            flag = ""
        found.append(argument)
    return found


def check(options: argparse.Namespace) -> None:
    """Gather the combinations of acting settings, and check that the options go together.

    Raises:
        UserError: they do not.
    """
    for name in ACTING:
        values = getattr(options, name)
        twice = next((x for i, x in enumerate(values) if x in values[:i]), None)
        if twice is not None:
            raise UserError(f"--{name}: {spelled(twice)} is given twice")
    given = {name: values for name in ACTING if (values := getattr(options, name))}
    options.grid = [dict(zip(given, values, strict=True)) for values in product(*given.values())]
    options.sweep = len(options.grid) > 1 or options.task == "all"
    if options.policy == "behavior" and len(options.best_of_n) > 1:
        raise UserError("--best_of_n: the behaviour acts with its first sample; give one value")
    if options.latency is not None:
        names = ("output", "picture", "video", "compile", "temperature", "task")
        others = {name: getattr(options, name) for name in names}
        others["device cuda"] = options.device == "cuda"
        others |= {"policy behavior": options.policy == "behavior", "a sweep": options.sweep}
        if wrong := next((name for name, given in others.items() if given), None):
            raise UserError(f"--latency: does not go together with {wrong}; leave one out")
    for name in ("output", "picture", "video"):
        if options.sweep and getattr(options, name):
            raise UserError(
                f"--{name} is for one evaluation, and this is a sweep, which names its own files; "
                "leave it out, or give one task and one value of each setting"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    return answered(lambda: evaluate(options))


def evaluate(options: argparse.Namespace) -> int:
    """Rebuild the policy, roll it out, and report; return the exit code."""
    # Imported only now, so that --help and mistakes in the command line answer at once.
    with uncollected():
        import torch

        from qam_lightning.cli.sweep import sweep
        from qam_lightning.evaluation.report import check_target

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
    checkpoint, run = locate(options.source, options.checkpoint, options.latency is not None)
    if options.latency is not None:
        from qam_lightning.cli.latency import latency

        return latency(options, checkpoint, run)
    return (sweep if options.sweep else one)(options, checkpoint, run)


def one(options: argparse.Namespace, checkpoint: Path, run: Path) -> int:
    """Evaluate one policy on one task; return the exit code."""
    from rich.console import Console

    from qam_lightning.evaluation.plots import read_curve
    from qam_lightning.evaluation.report import build_report, check_target, write_report
    from qam_lightning.evaluation.tables import report_table

    (acting,) = options.grid
    method, subject = prepare(options, checkpoint, acting, options.task)
    warn(subject)
    name = file_name(checkpoint, subject)
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

    recorded, every = frames_wanted(options, subject["env"], subject["task"])
    with rollouts(options, subject) as pool:
        episodes = with_progress(options, pool, method, acting, recorded, every)

    report = build_report(subject, episodes)
    try:
        written = write_report(report, target, numbered=options.output is None)
    finally:  # also where it cannot be written
        Console(soft_wrap=True).print(report_table(report))
    print(f"wrote {written}")
    for made in draw(options, report, run, curves, name, episodes, every):
        print(f"wrote {made}")
    return 0


def prepare(
    options: argparse.Namespace,
    checkpoint: Path,
    acting: Mapping[str, Any],
    task: int | None,
) -> tuple[Any, dict[str, Any]]:
    """Rebuild the policy, and check that it can be rolled out.

    Args:
        options: of the command line.
        checkpoint: the file.
        acting: settings of acting to replace.
        task: the task; None for the one trained on.

    Returns:
        The method, and what is evaluated and how.

    Raises:
        UserError: it cannot.
    """
    from qam_lightning.checkpoints import check_env, load_method
    from qam_lightning.envs.make import env_id
    from qam_lightning.evaluation.limits import check_rollouts

    behavior = options.policy == "behavior"
    changed = {name: value for name, value in acting.items() if name != "temperature"}
    method, meta = load_method(checkpoint, behavior=behavior, **changed)
    if "temperature" in acting:
        method.check_acting("temperature", acting["temperature"], behavior)
    subject = describe(options, checkpoint, method, meta, acting, task)
    check_env(subject["env"], checkpoint)
    env_id(subject["env"], subject["task"])
    sizes = options.episodes, options.num_envs, options.workers
    check_rollouts("eval", method, subject["env"], *sizes)
    return method, subject


def file_name(checkpoint: Path, subject: Mapping[str, Any]) -> str:
    """Name the files of an evaluation."""
    return "-".join(
        f"{checkpoint.stem} step{subject['gradient_step']} {subject['policy']} "
        f"task{subject['task']} seed{subject['seed']}".split()
    )


def import_modules(names: Sequence[str]) -> None:
    """Import the modules that the command line names.

    Raises:
        UserError: one cannot be imported, for whatever reason.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # also what a user's module raises
            problem = f"cannot be imported: {reason_of(error)}; is its folder on PYTHONPATH?"
            raise UserError(f"--import {name}: {problem}") from error


def locate(source: Path, which: str, graph: bool = False) -> tuple[Path, Path]:
    """Find the checkpoint file and the run folder it belongs to; an exported folder is both.

    Results of a policy on the hub go to a folder of its name. ``graph`` asks for its ONNX graph,
    if it has one.
    """
    from qam_lightning.checkpoints import checkpoint_path, run_of
    from qam_lightning.export.folder import WEIGHTS, is_exported, read_config
    from qam_lightning.runtime import CONFIG, ONNX

    folder = policy_folder(source, CONFIG, WEIGHTS)
    if is_exported(folder):
        if which == "best":
            raise UserError(
                f"{source}: an exported folder holds one policy; leave out --checkpoint"
            )
        if graph and ONNX in read_config(folder).files:
            policy_folder(source, ONNX)  # into the same folder
        return folder, Path(source.name.partition("@")[0]) if is_url(source) else source
    if source.is_dir():
        return checkpoint_path(source, which), source
    if not source.exists():
        raise UserError(f"{source}: no such run folder or checkpoint file")
    return source, run_of(source)


def describe(
    options: argparse.Namespace,
    checkpoint: Path,
    method: Any,
    meta: dict[str, Any],
    acting: Mapping[str, Any],
    task: int | None,
) -> dict[str, Any]:
    """Collect what is evaluated and how."""
    from qam_lightning.checkpoints import fingerprint
    from qam_lightning.util.provenance import versions

    if not meta["environment"]:
        raise UserError(
            f"{checkpoint}: names no environment; only what was trained on a ChunkDataModule can "
            "be evaluated here, load_policy acts anywhere"
        )
    behavior = options.policy == "behavior"
    settings = method.behavior_settings if behavior else method.acting_settings
    temperature = acting.get("temperature", 1.0)
    kept = ("method", "config_hash", "gradient_step", "env_step", "phase")
    return {
        "checkpoint": str(checkpoint),
        "fingerprint": fingerprint(checkpoint),
        **{key: meta[key] for key in kept if key in meta},
        **meta["environment"],
        "task": meta["environment"]["task"] if task is None else task,
        "trained_task": meta["environment"]["task"],
        "policy": options.policy,
        **{n: temperature if n == "temperature" else getattr(method, n) for n in settings},
        "seed": options.seed,
        "num_envs": options.num_envs,
        "device": options.device,
        "compile": options.compile,
        "versions": versions(),
        "trained_versions": meta["versions"],
    }


def warn(subject: Mapping[str, Any]) -> None:
    """Tell where the software is not that of the training."""
    from qam_lightning.util.provenance import mismatches

    differences = mismatches(subject["trained_versions"])
    if differences:
        print(f"warning: {'; '.join(differences)}", file=sys.stderr)


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


def rollouts(options: argparse.Namespace, subject: Mapping[str, Any]) -> Any:
    """Return the environments of an evaluation, a pool to enter."""
    from qam_lightning.envs.rollout import RolloutPool

    place = subject["env"], subject["task"], subject["sparse"]
    return RolloutPool(*place, options.workers, options.num_envs)


def with_progress(
    options: argparse.Namespace,
    pool: Any,
    method: Any,
    acting: Mapping[str, Any],
    recorded: int = 0,
    every: int = 1,
) -> Sequence[Any]:
    """Roll out, counting episodes on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from qam_lightning.evaluation.episode_policy import EpisodePolicy

    policy = EpisodePolicy(
        method.to(options.device),
        options.seed,
        options.policy == "behavior",
        compiled=options.compile,
        temperature=acting.get("temperature"),
    )
    columns = ("episodes", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as p:
        bar = p.add_task("", total=options.episodes)
        wanted = options.episodes, options.seed, recorded, every
        return pool.run(finite(policy, acting), *wanted, lambda episode: p.advance(bar))


def finite(policy: Any, acting: Mapping[str, Any]) -> Any:
    """Return the policy, which refuses to act with settings that let it overflow."""
    import numpy as np

    def act(observations: np.ndarray, episodes: list[int]) -> np.ndarray:
        actions = policy(observations, episodes)
        if acting and not np.isfinite(actions).all():
            settings = ", ".join(f"{name} {spelled(value)}" for name, value in acting.items())
            raise UserError(f"with {settings}, the policy's actions are no numbers; lower them")
        return actions

    return act


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
