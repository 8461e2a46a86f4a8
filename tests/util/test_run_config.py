"""A run's configuration: one reader for the file and for the copy in a checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest

from qam_lightning.util.errors import UserError
from qam_lightning.util.run_config import configuration, read_run_config

GROWING = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGING = "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
REFUSED = {
    "list": "- 1",
    "cut short": "a: [",
    "itself": "a: &a [*a]",
    "deep": "[" * 100_000 + "]" * 100_000,
    "growing": "a0: &a0 [1, 1]\n" + GROWING,
    "merging": "a0: &a0 {b: 1}\n" + MERGING,
    "long": f"a: {'x' * 2**20}",
    "no number": "a: !!int x",
    "digits": f"a: {'1' * 5000}",
    "object": "a: !!python/object/apply:os.getcwd []",
    "half a character": "a: \ud800",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^a configuration, a mapping in YAML of at most 1 MiB,"):
        configuration(text)
    (tmp_path / "config.yaml").write_bytes(text.encode(errors="surrogatepass"))
    words = "config.yaml: (holds something else, expected a config.*|is no text in UTF-8); repair"
    with pytest.raises(UserError, match=words):
        read_run_config(tmp_path / "config.yaml", "repair it")


def test_an_ordinary_configuration_is_read(tmp_path: Path) -> None:
    text = "a: &x {b: 1}\r\nc: *x\nd: ü"
    (tmp_path / "config.yaml").write_bytes(text.encode())
    expected = {"a": {"b": 1}, "c": {"b": 1}, "d": "ü"}
    assert read_run_config(tmp_path / "config.yaml", "") == (text, expected)
    assert configuration("") == {}
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_run_config(tmp_path / "none.yaml", "")


def test_reading_needs_no_torch() -> None:
    code = "import sys, qam_lightning.util.run_config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
