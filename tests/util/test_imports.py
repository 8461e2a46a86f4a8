"""The garbage collector while a command imports what it needs."""

import gc
import subprocess
import sys

import torch  # noqa: F401

from qam_lightning.util.imports import uncollected

START = """
import gc
from qam_lightning.util.imports import uncollected
"""


def test_imports_happen_without_the_collector_and_are_not_searched_again() -> None:
    program = START + (
        "with uncollected():\n    assert not gc.isenabled()\n    import torch\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 10_000"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_collector_is_back_after_a_failed_import() -> None:
    program = START + (
        "try:\n    with uncollected():\n        import nothing_of_this_name\n"
        "except ImportError:\n    assert gc.isenabled()\nelse:\n    raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nothing_changes_where_pytorch_is_imported_already() -> None:
    frozen = gc.get_freeze_count()
    with uncollected():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
