"""The model card of an exported folder: what it is, what it was made from, how it scored."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qam_lightning.evaluation.plots import draw_picture
from qam_lightning.evaluation.statistics import Interval, wilson_interval
from qam_lightning.export.check import TOLERANCE, Comparison
from qam_lightning.export.folder import CARD, CURVE, PROGRAM, WEIGHTS, Config, Score
from qam_lightning.methods.base import Method
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import replacing
from qam_lightning.util.metrics_csv import read_metrics
from qam_lightning.util.run_config import configuration

LATENCY = "## Latency"
_SAME = ("env", "task", "gradient_step", "env_step")
_TRAINING_ONLY = ("spaces", "compile", "seed")


class _Evaluated(NamedTuple):
    """How a checkpoint scored during training.

    Attributes:
        rate: success, with Wilson's interval.
        episodes: their number.
        seed: of the episodes; None if it is not recorded.
        chose: whether it is the highest of several evaluations and not the last. Then it may be why
            this checkpoint is exported (``best.ckpt``), and is too high on average.
    """

    rate: Interval
    episodes: int
    seed: int | None
    chose: bool


def score_of(run: Path, metadata: Mapping[str, Any], method: Method) -> Score | None:
    """Return how the policy scored in its run; None if it was never evaluated as it acts now.

    An evaluation by ``eval.py`` comes first, that of most episodes; then one during training. The
    episodes that chose the checkpoint among others do not count.
    """
    known = {**metadata, **metadata["environment"]}
    # Older reports lack settings that could not be changed then.
    acts = {name: getattr(method, name, 1.0) for name in method.acting_settings}
    trained = _evaluated(run, metadata)
    best: Score | None = None
    for path in sorted((run / "eval").glob("*.json")):
        with contextlib.suppress(ValueError, LookupError, TypeError, OSError):
            report = json.loads(path.read_text())
            same = report["policy"] == "learned" and all(report[k] == known[k] for k in _SAME)
            chose = trained is not None and trained.chose and report["seed"] == trained.seed
            acts_so = all(report.get(name, value) == value for name, value in acts.items())
            if same and acts_so and not chose:
                success, count = report["success"], report["episodes"]
                source = f"eval.py, {count} episodes, seed {report['seed']}"
                numbers = {key: float(success[key]) for key in ("mean", "low", "high")}
                score = Score(**numbers, episodes=count, source=source)
                best = score if best is None or count > best.episodes else best
    if best is not None or trained is None or trained.chose:
        return best
    if dict(method.hparams) != metadata["model"]:
        return None  # it acts with other settings than it was trained with
    source = f"an evaluation during training, {trained.episodes} episodes"
    return Score(**trained.rate._asdict(), episodes=trained.episodes, source=source)


def _evaluated(run: Path, metadata: Mapping[str, Any]) -> _Evaluated | None:
    """Return the evaluation of a checkpoint during training; None if there is none."""
    with contextlib.suppress(UserError, ValueError, LookupError, TypeError):
        settings = configuration(metadata["config"])["evaluation"]
        keys = ("gradient_step", "env_step", "success")
        rows = read_metrics(run / "metrics" / "eval.csv", keys)[1]
        highest = max(float(row["success"]) for row in rows)
        for row in rows:
            if all(int(row[key]) == metadata[key] for key in keys[:2]):
                success, episodes = float(row["success"]), settings["episodes"]
                rate = wilson_interval(round(success * episodes), episodes)
                chose = success == highest and row is not rows[-1]
                return _Evaluated(rate, episodes, settings.get("seed"), chose)
    return None


def draw_curve(folder: Path, run: Path, method: str, environment: Mapping[str, Any]) -> Path | None:
    """Draw the run's learning curve; None if it has none."""
    place = f" on {environment['env']}, task {environment['task']}" if environment else ""
    with contextlib.suppress(UserError):
        return draw_picture(folder / CURVE, [run], method + place)
    return None


def model_card(config: Config, checked: Comparison | None, curve: bool) -> str:
    """Return the model card, Markdown."""
    kind = config.method.rpartition(".")[2]
    env, spaces, noise = config.environment, config.spaces, config.noise
    place = f"{env['env']}, task {env['task']}" if env else "data of its user's"
    steps = f"{config.training.gradient_step:,} gradient steps"
    online = config.training.env_step
    steps += f" and {online:,} environment steps" if online else ""
    settings = [
        f"| `{name}` | {value} |"
        for name, value in config.settings.items()
        if name not in _TRAINING_ONLY
    ]
    versions = ", ".join(f"{name} {value}" for name, value in config.versions.items())
    parts = [
        f"---\nlibrary_name: qam_lightning\ntags: [reinforcement-learning, robotics, {kind}]\n---",
        f"# {kind} on {place}",
        f"A policy trained with {kind} of qam_lightning. At an observation it samples a chunk of "
        f"{spaces.horizon} actions. Observations are taken as the environment gives them: "
        "normalisation is inside, and so are the choice among candidates and the clipping of "
        "actions to [-1, 1].",
        "```python\nfrom qam_lightning.runtime import ExportedPolicy  # numpy and onnxruntime\n\n"
        'policy = ExportedPolicy("this/folder", seed=0)\npolicy.reset()\n'
        "action = policy.select_action(observation)\n```",
        _table(
            "input or output",
            "shape",
            [
                f"| `observation` | B × {spaces.obs_dim} |",
                f"| `noise`, standard normal | B × {noise.candidates} × {sum(noise.draws)} |",
                f"| `chunk` | B × {spaces.horizon} × {spaces.action_dim} |",
            ],
        ),
        f"`{WEIGHTS}` holds the weights that acting reads; `{PROGRAM}`, where it is there, is a "
        "program of torch.export. `qam_lightning.load_policy` reads the folder too.",
        "## Training",
        f"Trained for {steps} on {_data(env)}."
        + (f" On {found}." if (found := config.training.hardware) else ""),
        *([f"![Success over training]({CURVE})"] if curve else []),
        _table("setting", "value", settings),
        f"Software: {versions}.",
        "## Score",
        _scored(config),
        "## Checks",
        _checks(checked),
        "## Limits",
        _limits(config),
    ]
    return "\n\n".join(parts) + "\n"


def with_latency(folder: Path, table: str) -> None:
    """Put a table of latencies into a folder's model card, in the place of an earlier one.

    Raises:
        UserError: the card cannot be read or written.
    """
    path = folder / CARD
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    before, found, after = text.partition(f"{LATENCY}\n")
    following = after.partition("\n## ")
    rest = f"\n## {following[2]}" if found and following[1] else ""
    with replacing(path) as temporary:
        temporary.write_text(f"{before.rstrip()}\n\n{LATENCY}\n\n{table}\n{rest}", "utf-8")


def _table(left: str, right: str, rows: list[str]) -> str:
    return "\n".join([f"| {left} | {right} |", "|---|---|", *rows])


def _data(environment: Mapping[str, Any]) -> str:
    if not environment:
        return "data of its user's"
    rewards = "sparse rewards" if environment["sparse"] else "the environment's rewards"
    return f"the dataset {environment['env']}-{environment['dataset']}, with {rewards}"


def _scored(config: Config) -> str:
    score = config.score
    if score is None:
        text = "Not evaluated with these settings; episodes that chose the checkpoint do not count."
        if not config.environment:
            return text
        return (
            f"{text} `eval.py RUN` with these settings (`--best_of_n {config.noise.candidates}`) "
            "makes a score, and `--checkpoint best` that of the best checkpoint; then export again."
        )
    return (
        f"Success {score.mean:.1%} (95% Wilson interval {score.low:.1%} to {score.high:.1%}; "
        f"{score.source}). Success is the success flag of an episode's last step. The interval "
        "speaks of this policy, not of another training seed."
    )


def _checks(checked: Comparison | None) -> str:
    if checked is None:
        return "None: there is no ONNX graph to compare."
    ties = f", apart from {checked.ties} ties of candidates" if checked.ties else ""
    text = (
        f"Largest difference from the policy's actions over a batch: {checked.difference:.1g} "
        f"(at most {TOLERANCE:g} is allowed){ties}."
    )
    if checked.successes is None:
        return text + " No episodes were compared."
    return text + (
        f" In {checked.episodes} episodes with equal noise, success was equal in each: "
        f"{checked.successes} succeeded."
    )


def _limits(config: Config) -> str:
    horizon, period = config.spaces.horizon, config.control_period
    open_loop = "Training and scores execute a whole chunk without looking"
    if period:
        open_loop += f", for {horizon * period:g} s"
    return (
        f"- {open_loop}; to look more often (`execute`) is another policy, with a score of its "
        "own.\n- It knows the environment, the task and the control period that it was trained "
        "with, and states that resemble its data. It has no notion of safety.\n- Results differ "
        "between releases of the simulator."
    )
