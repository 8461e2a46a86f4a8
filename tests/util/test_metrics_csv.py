"""The last row of a file of metrics, beside the reader of all rows."""

from pathlib import Path

import pytest

from qam_lightning.util.metrics_csv import last_row, read_metrics

HEAD = "gradient_step,phase,loss\n"


@pytest.mark.parametrize("rows", [1, 2, 9000])  # the last is more than the end that is read
@pytest.mark.parametrize("cut", ["", "9,off"])
def test_the_last_row_is_that_of_the_whole_file(rows: int, cut: str, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(HEAD + "".join(f"{n},offline,{n / 7}\n" for n in range(rows)) + cut)
    assert last_row(path) == read_metrics(path)[1][-1]


@pytest.mark.parametrize(
    ("content", "error"),
    [("", LookupError), (HEAD, LookupError), (HEAD + "1,offline\n", ValueError)],
)
def test_a_file_without_a_row_has_none(content: str, error: type, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(content)
    with pytest.raises(error):
        last_row(path)
