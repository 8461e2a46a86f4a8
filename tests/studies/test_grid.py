"""The runs of random studies, beside nested loops."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qam_lightning.studies.study import read_study
from qam_lightning.util.errors import UserError

VALUES: dict[str, list[Any]] = {
    "method": ["qam", "fql", "bc"],
    "task": [1, 2, 3],
    "model.tau": [0.3, 1, 3],
    "model.width": [8, 16],
    "seed": [0, 1, 2],
}
HOMES = ("settings", "grid", "list", "group's settings", "group's grid", "nowhere")


def drawn(seed: int) -> dict[str, Any]:
    """Draw a study: each key has a home of its own, and a group may override settings."""
    rng = random.Random(seed)
    homes: dict[str, list[str]] = {home: [] for home in HOMES}
    for key in VALUES:
        homes[rng.choice(HOMES)].append(key)

    def some(found: Sequence[Any]) -> list[Any]:
        return rng.sample(found, rng.randint(1, len(found)))

    def one(keys: list[str]) -> dict[str, Any]:
        return {key: rng.choice(VALUES[key]) for key in keys}

    def part(fixed: list[str], varied: list[str], listed: list[str]) -> dict[str, Any]:
        # In one order: a folder's name has the keys in the file's.
        entries = [one(sorted(some(listed))) for _ in range(3 if listed else 0)]
        different = [entry for n, entry in enumerate(entries) if entry not in entries[:n]]
        axes = {key: some(VALUES[key]) for key in varied}
        return {"settings": one(fixed), "grid": axes, "list": different}

    def rules() -> list[dict[str, Any]]:
        chosen = rng.sample(runs, rng.randint(0, min(2, len(runs))))
        found = [{key: run[key] for key in some(list(run))} for run in chosen if run]
        return [{key: rng.choice([x, [x]]) for key, x in rule.items()} for rule in found]

    here = rng.random() < 0.5
    study = part(homes["settings"], homes["grid"], homes["list"] if here else [])
    groups = {
        name: part(
            homes["group's settings"] + rng.choice([[], homes["settings"]]),
            homes["group's grid"],
            [] if here else homes["list"],
        )
        for name in rng.choice(["", "a", "ab"])
    }
    runs = [run for _, run in looped({**study, "groups": groups})]
    study["exclude"] = rules()
    for group in groups.values():
        group["exclude"] = rules()
    study["groups"] = {name: filled(group) for name, group in groups.items()}
    return filled(study)


def filled(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: content for name, content in parts.items() if content}


def looped(study: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the group and the settings of each run."""
    found = []
    for group, own in (study.get("groups") or {"": {}}).items():
        points = [{**study.get("settings", {}), **own.get("settings", {})}]
        for key, values in {**study.get("grid", {}), **own.get("grid", {})}.items():
            points = [{**point, key: value} for point in points for value in values]
        for point in points:
            for entry in own.get("list") or study.get("list") or [{}]:
                run = {**point, **entry}
                rules = [*study.get("exclude", []), *own.get("exclude", [])]
                if not any(is_excluded(run, rule) for rule in rules):
                    found.append((group, run))
    return found


def is_excluded(run: dict[str, Any], rule: dict[str, Any]) -> bool:
    for key, values in rule.items():
        if run.get(key) not in (values if isinstance(values, list) else [values]):
            return False
    return True


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_the_runs_of_a_study(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    study = drawn(seed)
    path = tmp_path_factory.getbasetemp() / "drawn.yaml"
    path.write_text(yaml.safe_dump({"name": "drawn", **study}, sort_keys=False))
    expected = looped(study)
    if not expected:
        with pytest.raises(UserError, match="describes no run"):
            read_study(str(path))
        return
    runs = read_study(str(path)).runs
    assert [(run.group, run.settings) for run in runs] == expected
    assert len({run.name for run in runs}) == len({run.run_dir for run in runs}) == len(runs)
