"""Workers: environments in this process or in one of their own, behind one interface.

A worker is sent a list of requests and gives their answers one by one, in order.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from qam_lightning.util.errors import UserError

_ONE_THREAD = {key: "1" for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}

PROCESS_BYTES = 100_000_000
"""Memory that a worker process takes at the least."""


class WorkerError(RuntimeError):
    """An environment failed, or its process died."""


class Settings(Protocol):
    """What a worker makes its environments from; pickled for one in another process."""

    def make(self) -> Any:
        """Make an environment."""
        ...


class Request(Protocol):
    """Work for one environment of a worker; pickled for one in another process."""

    @property
    def slot(self) -> int:
        """The environment's number within the worker."""
        ...

    def answers(self, env: Any) -> Iterator[Any]:
        """Do the work and yield its answers, each as soon as it is there."""
        ...


class Worker(Protocol):
    """Environments that answer requests."""

    def send(self, requests: Sequence[Request]) -> None:
        """Hand over work; the answers to earlier work have all been received."""
        ...

    def receive(self) -> Any:
        """Wait for the next answer.

        Raises:
            UserError: the environment cannot be made or used, as its message says.
            WorkerError: the environment failed, or its process died.
        """
        ...

    def close(self) -> None:
        """Close the environments."""
        ...


class LocalWorker:
    """Environments in this process, which work when an answer is received."""

    def __init__(self, settings: Settings):
        self.envs: dict[int, Any] = {}
        self._settings = settings
        self._answers: Iterator[Any] = iter(())

    def send(self, requests: Sequence[Request]) -> None:
        self._answers = self.work(requests)

    def receive(self) -> Any:
        try:
            return next(self._answers)
        except UserError:
            raise
        except Exception as error:
            raise WorkerError(f"an environment failed: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        for env in self.envs.values():
            env.close()

    def work(self, requests: Sequence[Request]) -> Iterator[Any]:
        """Yield the answers to ``requests``, working on the way."""
        for request in requests:
            if request.slot not in self.envs:
                self.envs[request.slot] = self._settings.make()
            yield from request.answers(self.envs[request.slot])


class ProcessWorker:
    """Environments in a process of their own, which imports them and nothing else.

    The process is a fresh interpreter, neither a fork nor a re-import of the main script: it has no
    CUDA context and no torch, and the caller's script needs no ``__main__`` guard. It ends when its
    end of the pipe is closed, so it cannot outlive this process for longer than its present work.
    """

    def __init__(self, settings: Settings, **environment: str):
        """Start the process.

        Args:
            settings: from which it makes its environments.
            environment: environment variables that it sees besides this process's.
        """
        self._pipe, theirs = Pipe()
        package = str(Path(__file__).resolve().parents[2])
        # What can be imported here can be imported there.
        path = os.pathsep.join(dict.fromkeys([package, *filter(None, sys.path)]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qam_lightning.envs.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path, **environment},
        )
        theirs.close()
        self._pipe.send(settings)

    def fileno(self) -> int:
        """Return the pipe's descriptor, which can be waited for."""
        return self._pipe.fileno()

    def send(self, requests: Sequence[Request]) -> None:
        try:
            self._pipe.send(requests)
        except OSError:
            raise self._death() from None

    def receive(self) -> Any:
        try:
            answer, failure = self._pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(failure, UserError):
            raise failure
        if failure is not None:
            raise WorkerError(f"an environment failed in its worker process:\n{failure}")
        return answer

    def close(self, patience: float = 5.0) -> None:
        """Close the pipe, upon which the process ends; kill it after ``patience`` seconds."""
        self._pipe.close()
        try:
            self.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _death(self) -> WorkerError:
        code = self.process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return WorkerError(
            f"worker process {self.process.pid} ended unexpectedly {how}; "
            "its own output, if any, stands above; was memory exhausted?"
        )


def serve(descriptor: int) -> None:
    """Answer the requests that a `ProcessWorker` sends through its pipe, until that is closed.

    Args:
        descriptor: the pipe's file descriptor.
    """
    # Signals reach the whole process group; when to stop is the parent's business.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(descriptor)
    try:
        worker = LocalWorker(pipe.recv())
        while True:
            requests = pipe.recv()
            try:
                for answer in worker.work(requests):
                    pipe.send((answer, None))
            except UserError as error:  # a plain one, as not every kind can be pickled
                pipe.send((None, UserError(str(error))))
            except Exception:
                pipe.send((None, traceback.format_exc()))
    except (EOFError, OSError):
        pass
    # GL contexts complain when the interpreter tears them down; the system frees them silently.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
