"""Evaluation results for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def report_table(report: Mapping[str, Any]) -> Table:
    """A small table of what was evaluated and how it went.

    Args:
        report: see `qam_lightning.evaluation.report.build_report`; of its subject, ``method``,
            ``env``, ``task``, ``policy``, ``checkpoint`` and ``gradient_step`` are shown.
    """
    method = str(report["method"]).rsplit(".", 1)[-1]
    table = Table(
        title=f"{method} on {report['env']}, task {report['task']}",
        title_justify="left",
        caption=f"{report['policy']} policy after {report['gradient_step']:,} gradient steps, "
        f"{report['episodes']} episodes, seed {report['seed']}",
        caption_justify="left",
    )
    for name in ("", "mean", "spread", ""):
        table.add_column(name, justify="left" if name == "" else "right")
    success, returns, length = report["success"], report["return"], report["length"]
    bounds = f"{100 * success['low']:.1f} – {100 * success['high']:.1f}"
    table.add_row("success %", f"{100 * success['mean']:.1f}", bounds, "95% Wilson interval")
    for name, row in (("return", returns), ("length", length)):
        table.add_row(name, f"{row['mean']:.1f}", f"± {row['std']:.1f}", "standard deviation")
    return table
