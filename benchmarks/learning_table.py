"""Every method on one task: equal data, networks and updates, unequal tuning, several seeds.

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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from qam_lightning.checkpoints import load_method
from qam_lightning.evaluation.statistics import over_seeds

ROOT = Path(__file__).resolve().parent.parent
METHODS = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml"))
RANDOM_STEPS = 1_000  # of RLPD, before its updates begin
QUICKSTART: dict[str, str] = {
    "qam": "τ: best of 3 on this task",
    "bam": "τ: QAM's",
    "qam_edit": "τ: QAM's; edit_scale: set by hand",
    "qam_fql": "τ: QAM's; alpha: FQL's",
    "fawac": "τ: best of 2 on this task",
    **dict.fromkeys(("dac", "fbrac", "qsm"), "of `cube-double`; 1 other was no better here"),
}
"""How a method's values for the quickstart were chosen, where they are not `cube-double`'s."""


class Row(NamedTuple):
    """One finished run.

    Attributes:
        method: name of the method.
        seed: its seed.
        success: share of the scored episodes, in [0, 1].
        ms: milliseconds per update, of the fastest hundred in a row.
        parameters: trained ones.
        values: the hyperparameters that differ by domain.
        chosen: how these were chosen.
        commit: the code that trained it; empty if it ran outside a git checkout.
    """

    method: str
    seed: int
    success: float
    ms: float
    parameters: int
    values: str
    chosen: str
    commit: str


def main(arguments: Sequence[str] | None = None) -> None:
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
    args, overrides = parser.parse_known_args(arguments)
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
    # eval.py scores
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
    report = json.loads(score.read_text())
    success, commit = report["success"]["mean"], report["trained_versions"].get("commit", "")
    config = yaml.safe_load((run / "config.yaml").read_text())
    tuned = (config["tuned"] or {}).get(config["tuned_as"], {})
    used = config["model"]["init_args"]
    values = ", ".join(f"{key} {used[key]:g}" for key in tuned)
    how = chosen(method, config["tuned_as"]) if tuned else "none to choose"
    return Row(method, seed, success, 1000 / max(rates), parameters, values, how, commit)


def chosen(method: str, tuned_as: str) -> str:
    """Return how a method's values for a domain were chosen."""
    if tuned_as == "quickstart":
        return QUICKSTART.get(method, "of `cube-double`, not tuned here")
    return f"of `{tuned_as.replace('_', '-')}` (the paper's Table 4)"


def write(out: Path, rows: list[Row], args: argparse.Namespace) -> None:
    """Write the runs as CSV, and the methods in alphabetical order as a markdown table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(Row._fields)
        table.writerows(rows)
    estimates = {
        method: over_seeds([row.success for row in rows if row.method == method])
        for method in args.methods
        if any(row.method == method for row in rows)
    }
    commits = ", ".join(sorted({row.commit or "not in a git checkout" for row in rows}))
    lines = [
        "# All methods on one task",
        "",
        f"`benchmarks/learning_table.py`: {args.config}, {args.steps:,} updates, {args.episodes} "
        f"episodes per seed, {args.seeds} seeds, commit {commits}. Milliseconds are those of the "
        "fastest hundred updates in a row, compiled where the configuration says so; runs may "
        "share the machine.",
        "",
        "The methods were not tuned alike: the last column says how the settings of each were "
        "chosen.",
        "",
        "| method | success | seeds, % | ms per update | trained parameters | settings | chosen |",
        "|---|---|---|---:|---:|---|---|",
    ]
    for method, estimate in estimates.items():
        runs = [row for row in rows if row.method == method]
        seeds = ", ".join(f"{100 * row.success:.0f}" for row in runs)
        ms = min(row.ms for row in runs)
        lines.append(
            f"| {method} | {estimate} | {seeds} | {ms:.1f} "
            f"| {runs[0].parameters:,} | {runs[0].values} | {runs[0].chosen} |"
        )
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
