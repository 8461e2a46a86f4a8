"""Validation of what is read from disk, and sizes against memory: one line that names the place."""

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import AfterValidator

from qam_lightning.util import memory
from qam_lightning.util.errors import ArgumentError, UserError
from qam_lightning.util.memory import _group_limits, check_memory, memory_limit
from qam_lightning.util.schema import Count, Number, Schema, Text, read_json, validated


def short(text: str) -> str:
    if len(text) > 3:
        raise ValueError("at most three characters")
    return text


class Inner(Schema):
    rows: Count
    names: tuple[Text, ...] = ()


class Whole(Schema):
    inner: Inner
    best: Number | None = None
    label: Annotated[Text, AfterValidator(short)] = ""
    tensors: dict[str, torch.Tensor] = {}


GOOD: dict[str, Any] = {"inner": {"rows": 3, "names": ("a",)}, "best": 1, "label": "abc"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"inner": {}}, "inner.rows is missing"),
        ({"inner": None}, "inner is None, expected a mapping"),
        ({"inner": {"rows": True}}, "inner.rows is True, expected an integer"),
        ({"inner": {"rows": -1}}, "inner.rows is -1, expected at least 0"),
        ({"inner": {"rows": "9\n9"}}, "inner.rows is '9\\n9', expected an integer"),
        ({"inner": {"rows": 1, "names": ("a", 2)}}, "inner.names[1] is 2, expected a text"),
        ({"best": "x"}, "best is 'x', expected a number"),
        ({"best": float("nan")}, "best is nan, expected a finite number"),
        ({"label": "abcd"}, "label is 'abcd', expected at most three characters"),
        ({"tensors": {"w": []}}, "tensors.w is an empty list, expected a tensor"),
        ({"more": 1}, "more is unknown"),
    ],
)
def test_the_first_misfit_is_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as e:
        validated(Whole, {**GOOD, **changes}, "x.bin", "a whole", "delete it")
    assert str(e.value) == f"x.bin: {told}; delete it"


def test_what_fits_is_returned() -> None:
    whole = validated(Whole, GOOD, "x.bin", "a whole", "delete it")
    assert whole.inner == Inner(rows=3, names=("a",)) and whole.best == 1.0
    with pytest.raises(UserError, match="^x: a whole is an empty list, expected a mapping; del"):
        validated(Whole, [], "x", "a whole", "delete it")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'{"inner": {"rows": "3"}}', "inner.rows is '3', expected an integer; delete it"),
        (b"{", "is no JSON (EOF while parsing an object"),
        (b"\xff\x00", "is no JSON ("),
        (b"[" * 100_000, "is no JSON (recursion limit exceeded"),
        (b'{"inner": ' + b"9" * 5000 + b"}", "is no JSON (number out of range"),
    ],
)
def test_json_is_validated_too(text: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_json(Whole, path, "a whole", "delete it")
    path.write_text(json.dumps(GOOD))
    assert read_json(Whole, path, "a whole", "delete it").inner.names == ("a",)
    path.write_bytes(text)
    with pytest.raises(UserError) as e:
        read_json(Whole, path, "a whole", "delete it")
    assert str(e.value).startswith(f"{path}: {told}") and "\n" not in str(e.value)


def test_memory_is_that_of_the_machine_or_less(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < memory_limit() <= memory.PHYSICAL_MEMORY
    monkeypatch.setattr(memory, "memory_limit", lambda: 8 * 10**9)
    check_memory(8 * 10**9, "Net", "width", "is 9: it")
    with pytest.raises(ArgumentError) as e:
        check_memory(10**10, "Net", "width", "is 9: it")
    assert str(e.value) == (
        "Net: width is 9: it would take 10 GB, but there are 8 GB for this process"
    )
    with pytest.raises(ArgumentError, match=r"take more than 10\^12 GB"):
        check_memory(10**500, "Net", "width", "is 9: it")


@pytest.mark.parametrize(
    ("line", "folder", "file"),
    [
        ("0::/slurm/job_1/step_0", "slurm/job_1", "memory.max"),
        ("9:memory:/slurm/job_1/step_0", "memory/slurm/job_1", "memory.limit_in_bytes"),
    ],
)
def test_a_control_groups_limit_counts(line: str, folder: str, file: str, tmp_path: Path) -> None:
    (tmp_path / folder / "step_0").mkdir(parents=True)
    (tmp_path / folder / file).write_text("123\n")
    (tmp_path / folder / "step_0" / file).write_text("max\n")
    (tmp_path / "self").write_text(f"3:cpu:/else\n{line}\n")
    assert _group_limits(tmp_path / "self", tmp_path) == [123]
    assert _group_limits(tmp_path / "none", tmp_path) == []
