"""The process behind `rollout.ProcessWorker`: environments at the other end of a pipe."""

import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from qam_lightning.envs.rollout import EnvGroup


def main(descriptor: int) -> None:
    """Serve requests from the pipe with this file descriptor until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business.
    pipe = Connection(descriptor)
    try:
        group = EnvGroup(*pipe.recv())
        while True:
            verb, requests = pipe.recv()
            try:
                answer = getattr(group, verb)(requests)
            except Exception:
                answer = traceback.format_exc()
            pipe.send(answer)
    except (EOFError, OSError):
        pass
    # GL contexts complain when torn down by the interpreter; the system frees them without noise.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
