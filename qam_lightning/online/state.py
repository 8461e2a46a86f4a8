"""What a checkpoint holds of the online phase: its schema, checked whole before any use."""

import math
from typing import Annotated, Any

from qam_lightning.util.checkpoint import DAMAGED
from qam_lightning.util.errors import UserError
from qam_lightning.util.schema import (
    Checked,
    Count,
    Crc32,
    Field,
    Key,
    Number,
    Schema,
    Text,
    validated,
)


def _chunk(rows: list[list[float]]) -> list[list[float]]:
    sizes = {len(row) for row in rows}
    if len(sizes) != 1 or 0 in sizes or any(abs(x) > 1 for row in rows for x in row):
        raise ValueError("rows of equal length, of numbers in [-1, 1]")
    return rows


class Settings(Schema):
    """The settings on which the replay's rows, their order and their schedule depend."""

    env: Text = Key("data.env")
    task: int = Key("data.task")
    sparse: bool = Key("data.sparse")
    max_steps: Count = Key("trainer.max_steps")
    learning_starts: Count = Key("online.learning_starts")
    utd_ratio: Count = Key("online.utd_ratio")
    num_envs: Count = Key("online.num_envs")


class ActorState(Schema):
    """See `qam_lightning.online.actor.EnvActor.state_dict`."""

    episode: Count
    length: Count
    discarded: Annotated[Count, Field(le=2**16 - 1)]
    executed: Count
    chunk: Annotated[list[list[Number]], Checked(_chunk)] | None


class StatisticsState(Schema):
    """See `qam_lightning.online.statistics.EpisodeStatistics`."""

    rows: Count
    episodes: Count
    discarded: Count
    recent: list[Annotated[list[Number], Field(min_length=3, max_length=3)]]
    running: dict[Count, Annotated[list[Number], Field(min_length=2, max_length=2)]]


class OnlineState(Schema):
    """The entry ``online`` of a checkpoint."""

    settings: Settings
    rows: Count
    crc32: Crc32
    actors: list[ActorState]
    statistics: StatisticsState


def online_state(
    checkpoint: dict[str, Any], chunk: tuple[int, int], path: object
) -> dict[str, Any] | None:
    """Return the entry of a checkpoint's online phase; None before the first environment step.

    Args:
        checkpoint: its counters are checked already.
        chunk: horizon and size of the actions, (H, A).
        path: the checkpoint's file.

    Raises:
        UserError: it is missing, or something in it is wrong or contradicts the rest.
    """
    taken = checkpoint["counters"]["env_step"]
    if "online" not in checkpoint:
        if taken:
            raise UserError(
                f"{path}: online is missing, but {taken} environment steps were taken, so training "
                "cannot go on from it (was it saved without Online?); use another checkpoint"
            )
        return None
    content = checkpoint["online"]
    state: OnlineState = validated(OnlineState, content, str(path), "online", DAMAGED)
    if problem := _contradiction(state, taken, chunk):
        raise UserError(f"{path}: online.{problem}; {DAMAGED}")
    return content


def _contradiction(state: OnlineState, taken: int, chunk: tuple[int, int]) -> str | None:
    """Name what does not go together, or None."""
    rows, num_envs, statistics = state.rows, state.settings.num_envs, state.statistics
    if rows != taken:
        return f"rows is {rows}, expected counters.env_step, {taken}"
    if num_envs != len(state.actors) or not num_envs:
        return f"actors has {len(state.actors)} entries, expected online.num_envs, {num_envs}"
    if not rows - 1 <= statistics.rows <= rows:
        return f"statistics.rows is {statistics.rows}, expected rows or one less"
    if statistics.running.keys() != set(range(min(num_envs, statistics.rows))):
        return "statistics.running has entries of other environments than those of its rows"
    if statistics.episodes > statistics.rows:
        return f"statistics.episodes is {statistics.episodes}, expected at most statistics.rows"
    for number, actor in enumerate(state.actors):
        where, own = f"actors[{number}]", math.ceil(max(0, rows - number) / num_envs)
        if actor.length > own:
            return f"{where}.length is {actor.length}, expected at most {own}, its rows"
        if actor.chunk is not None:
            if (shape := (len(actor.chunk), len(actor.chunk[0]))) != chunk:
                return f"{where}.chunk has shape {shape}, expected {chunk}"
            if not 1 <= actor.executed < chunk[0]:
                return f"{where}.executed is {actor.executed}, expected 1 to {chunk[0] - 1}"
    return None
