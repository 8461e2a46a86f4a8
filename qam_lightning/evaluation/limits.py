"""Whether an evaluation fits into memory, said before it begins."""

from qam_lightning.envs.make import is_ogbench
from qam_lightning.envs.worker import PROCESS_BYTES
from qam_lightning.methods.base import Method
from qam_lightning.util.devices import available_cores
from qam_lightning.util.errors import shown
from qam_lightning.util.memory import check_memory

# Bytes, each well below what was measured.
_RESULT, _SIMULATOR, _OWN_ENVIRONMENT = 1_000, 2_000_000, 10_000


def check_rollouts(
    owner: type | str, method: Method, env: str, episodes: int, num_envs: int, workers: int | None
) -> None:
    """Check sizes that an evaluation is asked for against the memory that is there.

    Args:
        owner: the class or function that takes the arguments.
        method: acts, with its ``best_of_n``.
        env: see `qam_lightning.envs.make_env`.
        episodes: as for `qam_lightning.envs.rollout.RolloutPool`.
        num_envs: likewise.
        workers: likewise.

    Raises:
        ArgumentError: the first that does not fit.
    """
    running = min(num_envs, episodes)
    each = _SIMULATOR if is_ogbench(env) else _OWN_ENVIRONMENT
    processes = min(running, available_cores() if workers is None else workers)
    check_memory(episodes * _RESULT, owner, "episodes", f"is {shown(episodes)}: their results")
    check_memory(running * each, owner, "num_envs", f"is {shown(num_envs)}: the simulators")
    check_memory(processes * PROCESS_BYTES, owner, "workers", f"is {workers}: the processes")
    check_candidates(method, running, "environments")


def check_candidates(method: Method, count: int, what: str = "states") -> None:
    """Check that acting at several states at once fits into memory.

    Raises:
        ArgumentError: it does not, with the method's ``best_of_n``.
    """
    problem = f"is {shown(method.best_of_n)}: acting in {count} {what} at once"
    needed = count * method.best_of_n * method.acting_bytes
    check_memory(needed, type(method), "best_of_n", problem)
