"""A report on a set of runs: a page, figures, and the numbers behind them as CSV files."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from qam_lightning.evaluation.statistics import MIN_SEEDS, Estimate
from qam_lightning.reports import estimates, figures, page
from qam_lightning.reports.beside import Beside, beside, setting_lines
from qam_lightning.reports.comparison import Comparison, Task, Variant, compare
from qam_lightning.reports.page import Block, Bullets, Link, Section, Table
from qam_lightning.reports.published import CREDIT
from qam_lightning.reports.results import Result, Score, read_results
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.files import replacing, writing

Pick = Callable[[Result], Score | float | None]

_FIGURES = ("success", "curves", "sensitivity", "profile")
FILES = (
    *("index.html", "report.md", "runs.csv", "evaluations.csv", "published.csv"),
    *(f"{name}.{kind}" for name in _FIGURES for kind in ("png", "pdf")),
)
"""The names of a report's files; which of them there are depends on the runs."""

_MOST_LISTED = 60  # runs that the page names one by one; runs.csv has all
_FEW = "†"


def write_report(
    runs: Sequence[Path],
    output: Path,
    title: str,
    missing: Sequence[str] = (),
    axes: Sequence[str] | None = None,
    published: bool = False,
) -> list[Path]:
    """Write a report, in place of an earlier one.

    Args:
        runs: run folders, finished or not.
        output: the report's folder, which is made.
        title: the page's heading.
        missing: one line for each run that should be there and has no folder, or failed.
        axes: the keys of the settings that vary; None finds them, see `comparison.compare`.
        published: show the published curves beside the runs.

    Returns:
        The files, `FILES` or some of them.

    Raises:
        UserError: a folder is no run's, no run has an evaluation, or ``output`` holds other files
            than a report's or cannot be written.
    """
    check_output(output)
    results, damaged = read_results(runs)
    if not results:
        reason = f": {damaged[0]}" if damaged else ""
        raise UserError(f"report: no run has results yet, of {len(runs)}{reason}")
    found = compare(results, axes)
    compared = beside(found) if published else []
    sections, drawn = _sections(found, [*missing, *damaged], compared, published)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    written = [
        _write(output / "index.html", page.html(title, sections)),
        _write(output / "report.md", page.markdown(title, sections)),
        _write_rows(output / "runs.csv", map(_run_row, *_with_axes(found))),
        _write_rows(output / "evaluations.csv", _evaluation_rows(found)),
    ]
    if compared:
        written.append(_write_rows(output / "published.csv", (x.row() for x in compared)))
    for name, figure in drawn.items():
        written += figures.save(figure, output, name)
    with writing(output):
        for name in FILES:
            if output / name not in written:
                (output / name).unlink(missing_ok=True)
    return written


def check_output(output: Path) -> None:
    """Check that a folder is new, empty, or holds an earlier report; change nothing.

    Raises:
        UserError: it holds other files, or is none.
    """
    advice = "name another folder"
    if not output.is_dir():
        if output.exists() or output.is_symlink():
            raise UserError(f"{output}: is a file, expected a folder for the report; {advice}")
        return
    try:
        names = sorted(path.name for path in output.iterdir() if path.name[0] != ".")
        others = [name for name in names if name not in FILES or not (output / name).is_file()]
        index = output / "index.html"
        if not others and index.exists() and page.GENERATOR not in index.read_text("utf-8"):
            others = ["index.html"]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{output}: cannot be read: {error}; {advice}") from None
    if others:
        held = f"{shown(others[0])}, which is not of a report"
        raise UserError(f"{output}: holds {held}; nothing is overwritten: {advice}")


# -- sections --------------------------------------------------------------------------------------


def _sections(
    found: Comparison, missing: Sequence[str], compared: Sequence[Beside], published: bool
) -> tuple[list[Section], dict[str, Any]]:
    """Return the page, and its figures by name."""
    drawn: dict[str, Any] = {}
    sections = [
        _summary(found, missing),
        *_success(found, drawn),
        _aggregates(found, drawn),
        _best(found),
        _learning(found, drawn, published),
        *_regret(found),
    ]
    if published:
        sections.append(_published(found, compared))
    return [*sections, _cost(found), _provenance(found, published)], drawn


def _summary(found: Comparison, missing: Sequence[str]) -> Section:
    results = found.results
    unfinished = [r for r in results if not r.finished]
    seeds = len({r.seed for r in results})
    blocks: list[Block] = [
        f"{_count(len(results), 'run')}: {_count(len(found.variants), 'method')} (with settings), "
        f"{_count(len(found.tasks), 'task')}, {_count(seeds, 'seed')}; "
        f"{len(results) - len(unfinished)} finished, {len(unfinished)} not yet."
    ]
    if found.lines:
        blocks += ["To know:", Bullets(found.lines)]
    incomplete = [*map(_progress, unfinished), *missing]
    if incomplete:
        more = len(incomplete) - _MOST_LISTED
        rest = [f"and {more} more"] if more > 0 else []
        lacks = Bullets([*incomplete[:_MOST_LISTED], *rest])
        blocks += ["This report is partial. It lacks:", lacks]
    return Section("Summary", blocks)


def _progress(result: Result) -> str:
    success, step = result.last
    return (
        f"{result.folder}: not finished; last evaluated at step {step:,} of {result.total:,}, "
        f"success {success:.0%}"
    )


def _success(found: Comparison, drawn: dict[str, Any]) -> list[Section]:
    """Return the tables of scores after each phase."""
    phases: list[tuple[str, Pick]] = [("Success after training", lambda r: r.final)]
    if found.has_online:
        phases = [
            ("Success after the offline phase", lambda r: r.offline),
            ("Success after the online phase", lambda r: r.online),
        ]
    sections = []
    for title, pick in phases:
        if not any(variant.scores(pick) for variant in found.variants):
            sections.append(Section(title, ["No run is that far."]))
            continue
        sections.append(Section(title, [_by_domain(found, pick), _BOUNDS]))
    last = next((pick for _, pick in reversed(phases) if _means(found, pick)), None)
    if last is not None:
        means = _means(found, last)
        after = phases[-1][0].lower() if last is phases[-1][1] else phases[0][0].lower()
        drawn["success"] = figures.bars(found, means)
        caption = f"Mean {after}, in percent. The lines are the bounds of the table above."
        sections[-1] = sections[-1]._replace(
            blocks=[*sections[-1].blocks, page.Figure("success", caption)]
        )
        key = figures.sensitive(found)
        if key is not None:
            drawn["sensitivity"] = figures.sensitivity(found, key, means)
            figure = page.Figure("sensitivity", f"Mean {after} over {key}. Bands: the same bounds.")
            sections.append(Section(f"Sensitivity to {key}", [figure]))
    return sections


_BOUNDS = (
    "Mean over tasks and seeds. In brackets: Student's 95% interval of this mean, from "
    f"{MIN_SEEDS} seeds up. {_FEW}: fewer seeds, or equal ones, have no interval; in brackets the "
    "smallest and the largest. “2/5 tasks”: the mean of the tasks that have results, not "
    "comparable with the mean of all."
)


def _by_domain(found: Comparison, pick: Pick) -> Table:
    """Return the table of means by variant and domain, with all tasks last."""
    columns: list[str | None] = [*found.domains]
    if len(columns) > 1:
        columns.append(None)
    rows = []
    for variant in found.variants:
        scores = variant.scores(pick)
        counts = sorted({len(x) for x in scores.values()})
        seeds = "–".join(str(n) for n in dict.fromkeys((*counts[:1], *counts[-1:])))
        cells = [_cell(scores, found.tasks_of(domain)) for domain in columns]
        rows.append([variant.label, *cells, seeds or "0"])
    return Table(["method", *(column or "all tasks" for column in columns), "seeds"], rows)


def _cell(scores: dict[Task, list[float]], tasks: Sequence[Task]) -> str:
    present = [scores[task] for task in tasks if task in scores]
    if not present:
        return "–"
    text = _text(estimates.mean(present))
    return text if len(present) == len(tasks) else f"{text} {len(present)}/{len(tasks)} tasks"


def _text(value: Estimate) -> str:
    if value.bounds == "1 seed":
        return f"{100 * value.mean:.0f}%{_FEW}"
    return value.percent() + ("" if value.bounds.startswith("95%") else _FEW)


def _means(found: Comparison, pick: Pick) -> dict[str | None, list[Estimate | None]]:
    """Return domain -> means of the variants that have all its tasks; None is all tasks.

    Domains in which no variant has all tasks are left out.
    """
    columns: list[str | None] = [*found.domains]
    if len(columns) > 1:
        columns.append(None)
    means: dict[str | None, list[Estimate | None]] = {}
    for domain in columns:
        tasks = found.tasks_of(domain)
        values: list[Estimate | None] = []
        for variant in found.variants:
            scores = variant.scores(pick)
            complete = all(task in scores for task in tasks)
            values.append(estimates.mean([scores[t] for t in tasks]) if complete else None)
        if any(values):
            means[domain] = values
    return means


def _aggregates(found: Comparison, drawn: dict[str, Any]) -> Section:
    """Return aggregates over the tasks that all variants finished, and improvements."""
    final = [variant.scores(lambda r: r.final) for variant in found.variants]
    tasks = [task for task in found.tasks if all(task in scores for scores in final)]
    if not tasks:
        return Section("Aggregates", ["No task is finished by all variants."])
    scores = [[of[task] for task in tasks] for of in final]
    statistics = (estimates.iqm, estimates.median, estimates.optimality_gap)
    rows = [
        [
            variant.label,
            _text(estimates.mean(own)),
            *(_text(estimates.estimate(own, statistic)) for statistic in statistics),
        ]
        for variant, own in zip(found.variants, scores, strict=True)
    ]
    header = ["method", "mean", "interquartile mean", "median of tasks", "optimality gap"]
    blocks: list[Block] = [
        f"Success after training, over the {_count(len(tasks), 'task')} that every variant has "
        "finished. In brackets: 95% intervals, of the mean Student's, of the others by stratified "
        f"bootstrap over seeds within tasks. {_FEW}: fewer than {MIN_SEEDS} seeds, or equal ones; "
        "the smallest and the largest.",
        Table(header, rows),
    ]
    if len(found.variants) > 1:
        blocks += [
            "Probability that a run of the method in the row scores above one of the method in "
            "the column, on the same task; equal scores count half.",
            _improvements(found.variants, scores),
        ]
    if len(tasks) > 1 and min(len(x) for own in scores for x in own) > 1:
        drawn["profile"] = figures.profiles(list(zip(found.variants, scores, strict=True)))
        caption = (
            "Performance profile: the share of runs, mean over tasks, whose success is above τ. "
            f"Bands: 95% bootstrap, pointwise, from {MIN_SEEDS} seeds up."
        )
        blocks.append(page.Figure("profile", caption))
    return Section("Aggregates", blocks)


def _improvements(variants: Sequence[Variant], scores: Sequence[estimates.Scores]) -> Table:
    count = len(variants)
    cells = [["–"] * count for _ in variants]
    for i, j in combinations(range(count), 2):
        value = estimates.improvement(scores[i], scores[j])
        mirrored = Estimate(1 - value.mean, 1 - value.high, 1 - value.low, value.bounds)
        cells[i][j], cells[j][i] = _probability(value), _probability(mirrored)
    labels = [variant.label for variant in variants]
    return Table(["", *labels], [[x, *row] for x, row in zip(labels, cells, strict=True)])


def _probability(value: Estimate) -> str:
    if value.bounds.startswith("95%"):
        return f"{value.mean:.2f} ({value.low:.2f}–{value.high:.2f})"
    return f"{value.mean:.2f}{_FEW}"


def _best(found: Comparison) -> Section:
    if not any(variant.scores(lambda r: r.best) for variant in found.variants):
        return Section("Best evaluation", ["No run is finished."])
    text = (
        "The highest evaluation of every finished run. It is chosen by its own episodes, so it is "
        "too high on average: compare methods by their scores after training."
    )
    return Section("Best evaluation", [text, _by_domain(found, lambda r: r.best)])


def _learning(found: Comparison, drawn: dict[str, Any], published: bool) -> Section:
    drawn["curves"] = figures.curves(found, published)
    caption = (
        "Success during training: mean over tasks and seeds at the steps that all finished runs "
        "evaluated (all runs, where none is finished). Bands: Student's 95% interval, or with "
        f"fewer than {MIN_SEEDS} seeds the smallest and the largest."
    )
    if found.has_online:
        caption += (
            " Dotted: the online phase begins; methods without an offline phase begin there, too."
        )
    if published:
        caption += " Dashed: published."
    return Section("Learning curves", [page.Figure("curves", caption)])


def _regret(found: Comparison) -> list[Section]:
    if not any(variant.scores(lambda r: r.regret) for variant in found.variants):
        return []
    text = (
        "1 minus the mean success over the environment steps of the online phase, from the last "
        "offline evaluation on, with straight lines between evaluations. Lower is better."
    )
    return [Section("Regret of the online phase", [text, _by_domain(found, lambda r: r.regret)])]


def _published(found: Comparison, compared: Sequence[Beside]) -> Section:
    blocks: list[Block] = [CREDIT]
    if compared:
        blocks.append(Table(_BESIDE, [_beside_row(x) for x in compared if not x.within]))
        blocks.append(
            "Means in percent, with 95% intervals; difference: ours minus published, in percentage "
            f"points. {_FEW}: fewer than {MIN_SEEDS} seeds, the smallest and the largest. Two 95% "
            "intervals may overlap although the means differ."
        )
        blocks.append(Link("published.csv", "the same for every task."))
    else:
        blocks.append(
            "None of the finished runs has a published counterpart: a method, task and step "
            "(a multiple of 50,000) of the paper."
        )
    lines = setting_lines(found)
    if lines:
        blocks += [
            "A comparison needs equal settings. These differ from the paper's:",
            Bullets(lines),
        ]
    return Section("Beside the published curves", blocks)


_BESIDE = ("method", "task", "step", "ours", "published", "difference", "intervals")


def _beside_row(found: Beside) -> list[str]:
    theirs = Estimate(*found.theirs, "95%")
    return [
        found.variant.label,
        found.unit,
        f"{found.step:,}",
        _text(found.ours),
        theirs.percent(),
        f"{100 * (found.ours.mean - found.theirs.mean):+.0f}",
        "overlap" if found.overlap else "apart",
    ]


def _cost(found: Comparison) -> Section:
    rows = []
    for variant in found.variants:
        speeds = [r.speed for r in variant.results if r.speed is not None]
        hours = [r.hours for r in variant.results if r.hours is not None]
        finished = [r.hours for r in variant.results if r.finished and r.hours is not None]
        devices = dict.fromkeys(r.device for r in variant.results)
        precision = dict.fromkeys(str(r.settings.get("trainer.precision")) for r in variant.results)
        rows.append(
            [
                variant.label,
                _spread(speeds, "{:.1f}"),
                _spread(finished, "{:.2f}"),
                f"{sum(hours):.1f}" if hours else "–",
                ", ".join(devices),
                ", ".join(precision),
            ]
        )
    header = [
        "method",
        "updates per second",
        "hours per run",
        "hours in all",
        "device",
        "precision",
    ]
    text = (
        "Medians over runs, in brackets the smallest and the largest. Hours are updates over their "
        "speed, and evaluations; without start-up, and environment steps before the first "
        "online update. The device is the setting trainer.accelerator; runs may have shared "
        "a machine."
    )
    return Section("Cost", [text, Table(header, rows)])


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    low, middle, high = (form.format(x) for x in np.percentile(values, [0, 50, 100]))
    return middle if low == high else f"{middle} ({low}–{high})"


def _provenance(found: Comparison, published: bool) -> Section:
    results = found.results
    commits = Counter(r.commit for r in results)
    packages = Counter(
        ", ".join(f"{k} {v}" for k, v in r.versions.items() if k != "commit") or "unknown"
        for r in results
    )
    blocks: list[Block] = [
        Table(["commit", "runs"], [[name, str(n)] for name, n in commits.most_common()]),
        Bullets([f"{_count(n, 'run')}: {name}" for name, n in packages.most_common()]),
        Link("runs.csv", "a row per run: folder, scores, cost, commit, configuration hash."),
        Link("evaluations.csv", "a row per evaluation of every run."),
    ]
    if len(results) <= _MOST_LISTED:
        rows = [
            [
                str(r.folder),
                variant.label,
                f"{r.domain}, task {r.task}",
                str(r.seed),
                f"{r.final.success:.0%}" if r.final else "–",
                f"{r.best.success:.0%} at {r.best.step:,}" if r.best else "–",
                r.commit[:7],
                r.config_hash,
            ]
            for variant in found.variants
            for r in variant.results
        ]
        header = ["run", "method", "task", "seed", "final", "best", "commit", "configuration"]
        blocks.insert(0, Table(header, rows))
    return Section("Where the numbers come from", blocks)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# -- files -----------------------------------------------------------------------------------------


def _with_axes(found: Comparison) -> tuple[list[Result], list[dict[str, Any]]]:
    """Return all runs, and what varies for each of them."""
    results = found.results
    return results, [{key: r.settings.get(key, "") for key in found.axes} for r in results]


def _run_row(result: Result, varied: dict[str, Any]) -> dict[str, Any]:
    scores = {
        name: getattr(result, name) for name in ("offline", "online", "final", "best", "last")
    }
    numbers = {
        column: value
        for name, score in scores.items()
        for column, value in zip((name, f"{name}_step"), score or ("", ""), strict=True)
    }
    return {
        "folder": result.folder,
        "method": result.method,
        "domain": result.domain,
        "dataset": result.settings.get("data.dataset", ""),
        "task": result.task,
        "seed": result.seed,
        **varied,
        "finished": result.finished,
        **numbers,
        "online_from": result.curve.online_from,
        "regret": result.regret,
        "updates_per_second": result.speed,
        "hours": result.hours,
        "device": result.device,
        "precision": result.settings.get("trainer.precision"),
        "config_hash": result.config_hash,
        **{f"version_{name}": value for name, value in result.versions.items()},
        "commit": result.commit,
    }


def _evaluation_rows(found: Comparison) -> Iterable[dict[str, Any]]:
    for result, varied in zip(*_with_axes(found), strict=True):
        label = {name: getattr(result, name) for name in ("folder", "method", "domain", "task")}
        for row, step in zip(result.rows, result.curve.steps.tolist(), strict=True):
            yield {**label, "seed": result.seed, **varied, "step": step, **row}


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path, alone=True) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return path


def _write(path: Path, text: str) -> Path:
    with replacing(path, alone=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
