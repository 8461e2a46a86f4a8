"""The process behind `rollout.ProcessWorker`: environments at the other end of a pipe."""

import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from qam_lightning.envs.rollout import EnvGroup


def main(descriptor: int) -> None:
    """Serve requests from the pipe with this file descriptor until it is closed."""
    # They reach whole groups of processes.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # when to stop is the parent's business
    pipe = Connection(descriptor)
    try:
        group = EnvGroup(*pipe.recv())
        while True:
            verb, request = pipe.recv()
            try:
                for answer in group.serve(verb, request):
                    pipe.send(answer)
            except Exception:
                pipe.send(traceback.format_exc())
    except (EOFError, OSError):
        pass
    # GL contexts complain when torn down by the interpreter; the system frees them without noise.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
