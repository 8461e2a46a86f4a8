"""How long a policy takes to sample a chunk at one state: eagerly, compiled, as an ONNX graph."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.methods.base import Method
from qam_lightning.runtime import ExportedPolicy
from qam_lightning.util.devices import available_cores
from qam_lightning.util.errors import UserError
from qam_lightning.util.provenance import hardware

THREADS = (1, 2)
WARM_UP = 20


class Latency(NamedTuple):
    """Milliseconds per chunk, at one state.

    Attributes:
        mode: ``"eager"``, ``"compiled"`` or ``"ONNX"``.
        threads: of the library that computes.
        median: of all calls.
        percentile_99: 99 of 100 calls took no longer.
        worst: the longest call.
    """

    mode: str
    threads: int
    median: float
    percentile_99: float
    worst: float


def measure(
    method: Method,
    exported: Path | None,
    calls: int,
    on_missing: Callable[[str], None],
) -> list[Latency]:
    """Time calls of a policy in each mode, noise included, after some that are not timed.

    Args:
        method: the policy, on the CPU.
        exported: its exported folder; without one, there is no ONNX graph to time.
        calls: how many to time, at least 1.
        on_missing: told why a mode is left out.
    """
    found = []
    states = np.random.default_rng(0).standard_normal((calls, 1, method.spaces.obs_dim), np.float32)
    before = torch.get_num_threads()
    try:
        for mode, threads, act in _policies(method, exported, on_missing):
            torch.set_num_threads(threads)
            try:
                found.append(Latency(mode, threads, *_times(act, states)))
            except UserError as error:
                on_missing(f"{mode}, {threads} threads: {error}")
    finally:
        torch.set_num_threads(before)
    return found


def _policies(
    method: Method, exported: Path | None, on_missing: Callable[[str], None]
) -> Iterator[tuple[str, int, Callable[[np.ndarray], np.ndarray]]]:
    for mode in ("eager", "compiled"):
        for threads in THREADS:
            # A compiled graph keeps the number of threads: each has a method of its own.
            own = copy.deepcopy(method) if mode == "compiled" else method
            try:
                policy = EpisodePolicy(own, 0, compiled=mode == "compiled")
            except UserError as error:
                on_missing(f"{mode}: {error}")
                break
            yield mode, threads, partial(policy, episodes=[0])
    if exported is not None:
        for threads in THREADS:
            yield "ONNX", threads, ExportedPolicy(exported, threads=threads).predict_action_chunk


def _times(
    act: Callable[[np.ndarray], np.ndarray], states: np.ndarray
) -> tuple[float, float, float]:
    for n in range(WARM_UP):
        act(states[n % len(states)])
    taken = []
    for state in states:
        start = time.perf_counter()
        act(state)
        taken.append(1e3 * (time.perf_counter() - start))
    return float(np.median(taken)), float(np.percentile(taken, 99)), max(taken)


def latency_table(found: Sequence[Latency], calls: int, horizon: int, period: float | None) -> str:
    """Return what was measured as Markdown, beside the environment's control period.

    Args:
        found: see `measure`.
        calls: that were timed.
        horizon: H, actions of a chunk.
        period: seconds between two actions, None if unknown.
    """
    head = ["", "threads", "median ms", "99% ms", "worst ms"]
    head += ["worst / period"] if period else []
    rows = []
    for mode, threads, *numbers in found:
        cells = [mode, str(threads), *(f"{number:.2f}" for number in numbers)]
        rows.append(cells + ([f"{numbers[-1] / (1e3 * period):.1%}"] if period else []))
    lines = [
        f"| {' | '.join(row)} |" for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)
    ]
    cores = available_cores()
    text = (
        f"Milliseconds per chunk of {horizon} actions at one observation, noise included, over "
        f"{calls:,} calls, on {hardware()} with {cores} core{'s' if cores > 1 else ''}."
    )
    if period is None:
        told = "The environment does not say its control period."
    else:
        told = (
            f"The environment's control period is {1e3 * period:g} ms. A control loop that samples "
            "a chunk between two actions keeps it if the worst call is shorter."
        )
    return "\n".join([*lines, "", f"{text} {told}"])
