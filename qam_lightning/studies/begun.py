"""The runs that a search has begun, as their folders tell."""

import re
from typing import Any

from qam_lightning.studies.study import Run, Study, canonical, trial
from qam_lightning.util.errors import UserError
from qam_lightning.util.run_config import read_run_config

_FOLDER = re.compile(r"trial-\d{4,}")


def runs_of(study: Study) -> list[Run]:
    """Return a study's runs; of a search those that it has begun, in their order.

    A search's runs know their folders, but not their values.
    """
    if study.search is None:
        return study.runs
    names = (path.name for path in study.folder.glob("trial-*") if path.is_dir())
    found = sorted(filter(_FOLDER.fullmatch, names), key=lambda name: (len(name), name))
    return [trial(study, name, {}) for name in found]


def with_values(study: Study) -> list[Run]:
    """Return the runs that a search has begun and configured, with their values.

    Raises:
        UserError: the configuration of one is damaged.
    """
    assert study.search is not None
    found = []
    for run in runs_of(study):
        config = run.run_dir / "config.yaml"
        if config.is_file():
            advice = "restore the file, or move its folder away"
            values = values_of(read_run_config(config, advice)[1], study)
            if lacking := [key for key in study.search.space if key not in values]:
                raise UserError(f"{config}: {lacking[0]} is missing; {advice}")
            found.append(trial(study, run.name, values))
    return found


def values_of(config: object, study: Study) -> dict[str, Any]:
    """Return what a run's resolved configuration has for those keys of a search that it has."""
    assert study.search is not None
    found = {}
    for key in study.search.space:
        place, full = config, canonical(key)
        if full.startswith("model.") and full != "model.class_path":
            full = full.replace("model.", "model.init_args.", 1)
        for name in full.split("."):
            if not isinstance(place, dict) or name not in place:
                break
            place = place[name]
        else:
            found[key] = place
    return found
