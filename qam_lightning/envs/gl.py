"""OpenGL for mujoco: importing mujoco without it, and finding a library for pictures.

mujoco reads ``MUJOCO_GL`` when it is imported. The import fails if the variable names a library
that is not there. Simulation needs no OpenGL, so `import_mujoco` goes on without it.
"""

import functools
import os
import subprocess
import sys

from qam_lightning.util.errors import shown

_PROBE = "import mujoco; c = mujoco.GLContext(8, 8); c.make_current(); c.free()"
_refused: str | None = None


@functools.cache
def import_mujoco() -> None:
    """Import mujoco, without OpenGL where the one that ``MUJOCO_GL`` names does not work.

    The variable is then ``disabled``, for the processes started later too. `gl_problem` tells.
    """
    global _refused
    chosen = os.environ.get("MUJOCO_GL")
    if chosen is not None:
        spelled = chosen.strip().lower()  # dm_control knows no other spelling, and no glx
        os.environ["MUJOCO_GL"] = "glfw" if spelled == "glx" else spelled
    try:
        import dm_control._render  # noqa: F401
        import mujoco  # noqa: F401
    except Exception:  # whatever the OpenGL libraries raise
        _refused = "not set" if chosen is None else f"'{shown(chosen)}'"
        os.environ["MUJOCO_GL"] = "disabled"
        for name in [n for n in sys.modules if n.split(".")[0] in ("mujoco", "dm_control")]:
            del sys.modules[name]
        import mujoco  # noqa: F401


def gl_problem() -> str | None:
    """Say why mujoco was imported without OpenGL; None if it was not."""
    return None if _refused is None else _problem(_refused)


def no_gl() -> str:
    """Say why `headless_gl` found nothing."""
    chosen = os.environ.get("MUJOCO_GL")
    found = f"'{shown(chosen)}'" if chosen else None
    if _refused or found:
        return _problem(_refused or str(found))
    return "no OpenGL found (glfw, egl, osmesa); Mesa's libEGL would do"


def _problem(value: str) -> str:
    return (
        f"MUJOCO_GL is {value}, with which mujoco finds no OpenGL here, expected egl, osmesa or "
        "glfw, whichever is installed; or unset it"
    )


@functools.cache
def headless_gl() -> str | None:
    """Find a way to render frames and set ``MUJOCO_GL`` to it; must precede mujoco's first import.

    A value the user has set is the only one tried. Each candidate is tried in a process of its own,
    because a backend that does not work makes the import of mujoco fail.

    Returns:
        The backend (``glfw``, ``egl`` or ``osmesa``), or None if none works here.
    """
    chosen = os.environ.get("MUJOCO_GL")
    display = os.environ.get("DISPLAY") or sys.platform == "darwin"
    for backend in [chosen] if chosen else (["glfw"] if display else []) + ["egl", "osmesa"]:
        trial = {**os.environ, "MUJOCO_GL": backend}
        run = subprocess.run([sys.executable, "-c", _PROBE], env=trial, capture_output=True)
        if run.returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return backend
    return None
