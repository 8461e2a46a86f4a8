"""``laboratory``: compare every method's policy with the optimum where it is known."""

from collections.abc import Sequence

from qam_lightning.cli.dispatch import called
from qam_lightning.laboratory import __main__ as laboratory


def main(arguments: Sequence[str]) -> int:
    """Run the laboratory as the arguments say; return the exit code."""
    return laboratory.main(arguments, prog=called("laboratory"))
