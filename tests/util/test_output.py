"""Output that cannot end a program."""

import sys

import pytest

from qam_lightning.util.output import tolerant


def test_closing_a_tolerant_stream_closes_nothing_of_the_process(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a library does with the streams that its log handlers hold."""
    with tolerant() as out:
        out.close()
        sys.stderr.close()
        print("still here")
    print("and here", file=sys.stderr)
    assert capsys.readouterr() == ("still here\n", "and here\n")
