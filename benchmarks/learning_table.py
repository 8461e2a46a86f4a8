"""Every method on one task: equal data, networks and updates, several seeds.

python benchmarks/learning_table.py                      all methods, 3 seeds, the quickstart's task
python benchmarks/learning_table.py --methods qam fql --seeds 1 --steps 2000

Each run is `train.py fit --config <config> --method M --seed S` with the method's own values for
the configuration, scored by `eval.py`. RLPD has no offline phase: it takes an environment step per
update. Finished runs are kept: the command goes on where it was interrupted.
Writes <out>.csv (a row per run) and <out>.md (a row per method).
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

from qam_lightning.checkpoints import load_method
from qam_lightning.evaluation.statistics import bootstrap_interval

ROOT = Path(__file__).resolve().parent.parent
METHODS = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml"))
RANDOM_STEPS = 1_000  # of RLPD, before its updates begin


class Row(NamedTuple):
    """One finished run.

    Attributes:
        method: name of the method.
        seed: its seed.
        success: share of the scored episodes, in [0, 1].
        ms: milliseconds per update, of the fastest hundred in a row.
        parameters: trained ones.
        values: the hyperparameters that differ by domain.
    """

    method: str
    seed: int
    success: float
    ms: float
    parameters: int
    values: str


def main() -> None:
    """Train and score what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="METHOD")
    add("--seeds", type=int, default=3, help="seeds 0 to N - 1; default: %(default)s")
    add("--steps", type=int, default=12_000, help="updates of every run; default: %(default)s")
    add("--episodes", type=int, default=50, help="scored episodes of a run; default: %(default)s")
    add("--config", default="quickstart.yaml", help="default: %(default)s")
    add("--runs", type=Path, default=Path("runs/learning_table"), help="default: %(default)s")
    add("--out", type=Path, default=Path("docs/learning_table"), help="default: %(default)s")
    args, overrides = parser.parse_known_args()
    rows = []
    for seed in range(args.seeds):
        for method in args.methods:
            run = args.runs / f"{method}-seed{seed}"
            score = run / f"score-{args.steps}-{args.episodes}.json"
            if not score.exists():
                train(run, args.config, method, seed, args.steps, overrides)
                call("eval.py", run, "--episodes", args.episodes, "--output", score)
            rows.append(read(run, score, method, seed))
            write(args.out, rows, args)


def train(run: Path, config: str, method: str, seed: int, steps: int, overrides: list[str]) -> None:
    """Train one run, going on from its checkpoint if it has one; no evaluations in between."""
    flags = [f"--run_dir={run}", f"--trainer.max_steps={steps}"]
    flags += [f"--evaluation.every_n_steps={steps + 1}", "--evaluation.episodes=1"]
    if (run / "checkpoints" / "last.ckpt").exists():
        flags.append("--ckpt_path=last")
    if method == "rlpd":  # learns online only: as many updates, after the random actions
        flags += [
            f"--online.learning_starts={RANDOM_STEPS}",
            f"--online.steps={RANDOM_STEPS + steps}",
        ]
    options = ["--config", config, "--method", method, "--seed", seed]
    call("train.py", "fit", *options, *flags, *overrides)


def call(script: str, *arguments: object) -> None:
    """Run one of the project's scripts; its failure ends this one."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    print("$", *command[1:], flush=True)
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def read(run: Path, score: Path, method: str, seed: int) -> Row:
    """Collect what is reported of one finished run."""
    with (run / "metrics" / "train.csv").open() as file:
        rates = [float(row["steps_per_second"]) for row in csv.DictReader(file)]
    networks, _ = load_method(run / "checkpoints" / "last.ckpt")
    parameters = sum(p.numel() for p in networks.parameters() if p.requires_grad)
    success = json.loads(score.read_text())["success"]["mean"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    tuned = (config["tuned"] or {}).get(config["tuned_as"], {})
    used = config["model"]["init_args"]
    values = ", ".join(f"{key} {used[key]:g}" for key in tuned)
    return Row(method, seed, success, 1000 / max(rates), parameters, values)


def write(out: Path, rows: list[Row], args: argparse.Namespace) -> None:
    """Write the runs as CSV and the methods, best first, as a markdown table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(Row._fields)
        table.writerows(rows)
    lines = [
        "# All methods on one task",
        "",
        f"`benchmarks/learning_table.py`: {args.config}, {args.steps:,} updates, "
        f"{args.episodes} episodes per seed. Success: mean "
        "over seeds with its 95% bootstrap interval, then each seed. Milliseconds are those of the "
        "fastest hundred updates in a row, compiled where the configuration says so: runs may "
        "share the machine.",
        "",
        "| method | success % | 95% | seeds | ms per update | trained parameters | values |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    of = {method: [row for row in rows if row.method == method] for method in args.methods}
    found = [(bootstrap_interval([r.success for r in runs]), runs) for runs in of.values() if runs]
    for interval, runs in sorted(found, key=lambda pair: -pair[0].mean):
        low, high = 100 * interval.low, 100 * interval.high
        seeds = ", ".join(f"{100 * row.success:.0f}" for row in runs)
        ms = min(row.ms for row in runs)
        lines.append(
            f"| {runs[0].method} | {100 * interval.mean:.0f} | {low:.0f} – {high:.0f} | {seeds} "
            f"| {ms:.1f} | {runs[0].parameters:,} | {runs[0].values} |"
        )
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
