"""What the page of a report says: its tables, texts and figures."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure as Drawing

from qam_lightning.evaluation.statistics import MIN_SEEDS, Estimate
from qam_lightning.reports import estimates, figures
from qam_lightning.reports.beside import Beside, setting_lines
from qam_lightning.reports.comparison import Comparison, Task, Variant
from qam_lightning.reports.page import Block, Bullets, Figure, Link, Section, Table
from qam_lightning.reports.published import CREDIT
from qam_lightning.reports.results import Result, Score

Pick = Callable[[Result], Score | float | None]

_MOST_LISTED = 60  # runs that the page names one by one; runs.csv has all
_FEW = "†"
_BOUNDS = (
    "Mean over tasks and seeds. In brackets: Student's 95% interval of this mean, from "
    f"{MIN_SEEDS} seeds up. {_FEW}: fewer seeds, or equal ones, have no interval; in brackets the "
    "smallest and the largest. “2/5 tasks”: the mean of the tasks that have results, not "
    "comparable with the mean of all."
)


def content(
    found: Comparison, missing: Sequence[str], compared: Sequence[Beside] | None
) -> tuple[list[Section], dict[str, Drawing]]:
    """Return the page's sections, and its figures by name.

    Args:
        found: the results.
        missing: a line for every run without results.
        compared: the means beside published ones; None if these are not wanted.
    """
    drawn: dict[str, Drawing] = {}
    sections = [
        _summary(found, missing),
        *_success(found, drawn),
        _aggregates(found, drawn),
        *_best(found),
        *_learning(found, drawn, compared is not None),
        *_regret(found),
    ]
    if compared is not None:
        sections.append(_published(found, compared))
    return [*sections, _cost(found), _provenance(found)], drawn


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


def _success(found: Comparison, drawn: dict[str, Drawing]) -> list[Section]:
    """Return the scores after each phase; the figures show the last phase that has any.

    Where no run has both phases, all are scored after training, whatever phase theirs is.
    """
    phases: list[tuple[str, Pick]] = [("Success after training", lambda r: r.final)]
    if found.has_both_phases:
        phases = [
            ("Success after the offline phase", lambda r: r.offline),
            ("Success after the online phase", lambda r: r.online),
        ]
    tables: dict[str, list[Block]] = {}
    last: tuple[str, dict[str | None, list[Estimate | None]]] | None = None
    for title, pick in phases:
        some = any(variant.scores(pick) for variant in found.variants)
        tables[title] = [_by_domain(found, pick), _BOUNDS] if some else ["No run is that far."]
        if means := _means(found, pick):
            last = (title, means)
    sections = []
    if last is not None:
        title, means = last
        drawn["success"] = figures.bars(found, means)
        caption = f"{title}: means in percent, with the bounds of the table."
        tables[title].append(_figure("success", caption, drawn))
        if key := figures.sensitive(found):
            drawn["sensitivity"] = figures.sensitivity(found, key, means)
            caption = f"{title} over {key}. Bands: the bounds of the table."
            sections = [Section(f"Sensitivity to {key}", [_figure("sensitivity", caption, drawn)])]
    return [*(Section(title, blocks) for title, blocks in tables.items()), *sections]


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


def _aggregates(found: Comparison, drawn: dict[str, Drawing]) -> Section:
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
            "the column, on the same task; equal scores count half. In brackets: its 95% interval "
            f"by stratified bootstrap. {_FEW}: no interval, with fewer than {MIN_SEEDS} seeds or "
            "where all pairs agree.",
            _improvements(found.variants, scores),
        ]
    if len(tasks) > 1 and min(len(x) for own in scores for x in own) > 1:
        drawn["profile"] = figures.profiles(list(zip(found.variants, scores, strict=True)))
        caption = (
            "Performance profile: at every success, the share of runs, mean over tasks, that score "
            f"more. Bands: 95% bootstrap, pointwise, from {MIN_SEEDS} seeds up."
        )
        blocks.append(_figure("profile", caption, drawn))
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


def _evaluated_once(found: Comparison) -> bool:
    return all(run.finished and len(run.rows) == 1 for run in found.results)


def _best(found: Comparison) -> list[Section]:
    if _evaluated_once(found):
        return []
    if not any(variant.scores(lambda r: r.best) for variant in found.variants):
        return [Section("Best evaluation", ["No run is finished."])]
    text = (
        "The highest evaluation of every finished run. It is chosen by its own episodes, so it is "
        "too high on average: compare methods by their scores after training."
    )
    return [Section("Best evaluation", [text, _by_domain(found, lambda r: r.best)])]


def _learning(found: Comparison, drawn: dict[str, Drawing], published: bool) -> list[Section]:
    if _evaluated_once(found) and not published:
        return []
    drawn["curves"] = figures.curves(found, published)
    caption = (
        "Success during training: mean over the tasks that have results and over seeds, at the "
        "steps that all finished runs evaluated (all runs, where none is finished). Bands, in "
        f"panels of up to {figures.MOST_BANDS} curves: Student's 95% interval, or with fewer than "
        f"{MIN_SEEDS} seeds the smallest and the largest."
    )
    if found.has_online:
        caption += (
            " Dotted: the online phase begins; methods without an offline phase begin there, too."
        )
    if published:
        caption += " Dashed: published."
    return [Section("Learning curves", [_figure("curves", caption, drawn)])]


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
            "A comparison needs equal settings and data. Whether data of an official name are the "
            "official ones is not recorded. These settings differ from the paper's:",
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
        "online update. Runs may have shared a machine."
    )
    return Section("Cost", [text, Table(header, rows)])


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    low, middle, high = (form.format(x) for x in np.percentile(values, [0, 50, 100]))
    return middle if low == high else f"{middle} ({low}–{high})"


def _provenance(found: Comparison) -> Section:
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


def _figure(name: str, caption: str, drawn: dict[str, Drawing]) -> Figure:
    return Figure(name, caption, drawn[name].get_figwidth())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
