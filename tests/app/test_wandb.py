"""Weights & Biases: real runs of its client, offline and against a local HTTP server."""

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from wandb.proto import wandb_internal_pb2

from qam_lightning.callbacks.metrics import MetricsLogger
from qam_lightning.cli import main
from qam_lightning.loggers import WandbLogger
from qam_lightning.loggers.wandb import _logged_in, upload_report
from qam_lightning.studies.study import read_study
from qam_lightning.util.errors import UserError
from tests.app.wandb_server import WandbServer

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, no settings of the developer's, and a W&B that reads its environment anew."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)  # asking for a key would fail
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server in W&B's place."""
    with WandbServer() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        yield running
        running.shutdown()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of a user, who need not log in."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def log_in() -> None:
    """What a user does once, in a process of its own."""
    command = [sys.executable, "-m", "wandb", "login", "--no-verify", KEY]
    subprocess.run(command, check=True, capture_output=True)


def records(path: Path) -> list[wandb_internal_pb2.Record]:
    """The records of a W&B file: they lie in chunks (checksum, length, part) in blocks."""
    content, place, record, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if (room := -place % 32768) < 7:
            place += room
        length, part = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return found


def recorded(folder: Path) -> wandb_internal_pb2.RunRecord:
    """What the only offline record in a folder says of its run."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return next(record.run for record in records(path) if record.HasField("run"))


def log_steps(folder: Path, *steps: int, **options: Any) -> None:
    """Log rows of these gradient steps, as a training run does."""
    logger = WandbLogger(folder, **options)
    logger.begin(steps[0] - 1)
    for step in steps:
        logger.write({"gradient_step": step, "env_step": 0, "phase": "offline", "loss": 0.5 * step})
    logger.finalize("success")
    wandb.teardown()  # W&B's own process closes its files a little later than the run


# -- online --------------------------------------------------------------------------------------


def test_after_wandb_login_a_run_is_online(
    small_run: Callable[..., list[str]], server: WandbServer, tmp_path: Path
) -> None:
    log_in()
    assert main(small_run(2, "--log.wandb=online")) == 0
    ((name, run),) = server.runs.items()
    assert name == (tmp_path / "run/wandb_run_id").read_text()
    assert (run["sent"]["project"], run["sent"]["displayName"]) == ("qam_lightning", "run")
    assert [row["gradient_step"] for row in run["history"]] == [1, 2]
    assert [row["_step"] for row in run["history"]] == [1, 2]
    assert "evaluation/success" in run["history"][-1]
    assert run["config"]["versions"]["torch"] and run["config"]["model"]["init_args"]["width"] == 8
    assert not list(tmp_path.glob("run/wandb/offline-run-*"))


@pytest.mark.parametrize("found", ["nothing", "login", "WANDB_API_KEY", "another host's"])
def test_wandb_is_asked_for_its_key(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its server: this is the host that the installed client uses by itself."""
    if found == "login":
        log_in()
    elif found == "WANDB_API_KEY":
        monkeypatch.setenv(found, KEY)
    elif found == "another host's":
        log_in()
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert _logged_in() == (found in ("login", "WANDB_API_KEY"))


@pytest.mark.usefixtures("key")
def test_an_online_run_that_resumes_is_one_run(server: WandbServer, tmp_path: Path) -> None:
    log_steps(tmp_path, 100, 200, 300, mode="online")
    log_steps(tmp_path, 200, 300, 400, mode="online")  # killed after a checkpoint at step 100
    ((_, run),) = server.runs.items()
    assert [row["gradient_step"] for row in run["history"]] == [100, 200, 300, 400]
    assert [row["_step"] for row in run["history"]] == [100, 200, 300, 400]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("nobody listens", "http://127.0.0.1:9/graphql"),
        ("refused", "401"),
        ("key of a wrong form", "WANDB_API_KEY invalid: API key must have 40+ characters, has 5."),
    ],
)
def test_what_keeps_a_run_from_going_online_is_told_and_it_is_recorded_offline(
    trouble: str,
    said: str,
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short" if "form" in trouble else KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")  # seconds, 30 by default
    server.refusing = 401
    if trouble == "nobody listens":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    log_steps(tmp_path, 1, 2, mode="online")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("wandb: ") and said in line
    assert line.endswith("; recording offline, upload later with `wandb sync`")
    assert recorded(tmp_path).run_id == (tmp_path / "wandb_run_id").read_text()


def test_a_server_that_is_gone_at_the_end_does_not_hold_the_run_up(
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "0.5")  # seconds, 300 by default
    logger = WandbLogger(tmp_path, mode="online")
    logger.begin(0)
    server.shutdown()
    server.server_close()
    logger.write({"gradient_step": 1, "loss": 1.0})
    logger.finalize("success")
    address, line = capsys.readouterr().out.splitlines()
    identity = (tmp_path / "wandb_run_id").read_text()
    assert address == f"wandb: {server.url}/me/qam_lightning/runs/{identity}"
    assert line.startswith("wandb: ") and "the run goes on without W&B" in line
    assert list(tmp_path.glob("wandb/run-*/*.wandb"))


def test_training_survives_the_death_of_wandbs_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = WandbLogger(tmp_path, mode="offline")
    logger.begin(0)
    logger.write({"gradient_step": 1, "loss": 1.0})
    (service,) = (p for p in children(os.getpid()) if "wandb-core" in command_of(p))
    os.kill(service, signal.SIGKILL)
    while "Z" not in Path(f"/proc/{service}/stat").read_text().split(")")[1][:3]:
        time.sleep(0.01)
    for step in range(2, 50):
        logger.write({"gradient_step": step, "loss": 1.0})
    logger.finalize("success")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("wandb: ") and "metrics/ has all rows" in line
    log_steps(tmp_path / "next", 1, mode="offline")  # in the same process
    assert recorded(tmp_path / "next").run_id == (tmp_path / "next/wandb_run_id").read_text()


def children(process: int) -> list[int]:
    threads = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def command_of(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text()


# -- offline -------------------------------------------------------------------------------------


def test_without_a_key_a_run_is_recorded_offline_and_synced_later(
    small_run: Callable[..., list[str]],
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(small_run(2, "--log.wandb=online")) == 0
    assert "no API key found; recording offline" in capsys.readouterr().out
    run = tmp_path / "run"
    identity = (run / "wandb_run_id").read_text()
    assert main(small_run(4, "--log.wandb=offline", "--ckpt_path=last")) == 0
    assert (run / "wandb_run_id").read_text() == identity
    wandb.teardown()
    paths = sorted(run.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    lives = [records(path) for path in paths]
    steps = [[r.history.step.num for r in life if r.HasField("history")] for life in lives]
    assert steps == [[1, 2], [3, 4]]
    for life in lives:
        axes = {(r.metric.name or r.metric.glob_name): r.metric.step_metric for r in life}
        assert (axes.pop("gradient_step"), axes.pop("env_step"), axes.pop("")) == ("", "", "")
        assert axes.pop("*") == "gradient_step" and set(axes.values()) <= {"gradient_step"}
    assert not (tmp_path / "wandb").exists() and not server.runs
    sync(monkeypatch, *(path.parent for path in paths))
    ((name, sent),) = server.runs.items()
    assert name == identity
    assert [row["gradient_step"] for row in sent["history"]] == [1, 2, 3, 4]
    assert [row["_step"] for row in sent["history"]] == [1, 2, 3, 4]
    assert all("critic/q_mean" in row for row in sent["history"])
    assert sent["config"]["model"]["init_args"]["width"] == 8


def test_a_killed_run_recorded_offline_is_one_run_after_sync(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows after its checkpoint come twice, at the same gradient steps."""
    log_steps(tmp_path, 100, 200, 300, mode="offline")
    log_steps(tmp_path, 200, 300, 400, mode="offline")  # its checkpoint was of step 100
    sync(monkeypatch, *sorted(tmp_path.glob("wandb/offline-run-*")))
    ((_, run),) = server.runs.items()
    steps = [row["gradient_step"] for row in run["history"]]
    assert steps == [100, 200, 300, 200, 300, 400]
    assert [row["loss"] for row in run["history"]] == [0.5 * step for step in steps]
    assert run["history"][-1]["_step"] == 400


def sync(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """What a user does later, where there is a network."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
    subprocess.run(command, check=True, capture_output=True)


# -- group, tags, and the artifact of a report ---------------------------------------------------


@pytest.mark.usefixtures("key")
def test_group_tags_and_name_reach_every_logger(
    small_run: Callable[..., list[str]], server: WandbServer, tmp_path: Path
) -> None:
    labels = ("--log.group=smoke", "--log.tags=[qam, seed 0]", "--log.name=qam-0")
    theirs = (
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.save_dir={tmp_path}/theirs",
    )
    assert main(small_run(1, "--log.wandb=online", *labels, *theirs)) == 0
    ((_, run),) = server.runs.items()
    found = [run["sent"][key] for key in ("groupName", "displayName")]
    assert found == ["smoke", "qam-0"] and set(run["sent"]["tags"]) == {"qam", "seed 0"}
    (path,) = tmp_path.glob("theirs/**/hparams.yaml")
    # Beside the settings of method and data that Lightning gives it; in its loader's words.
    kept = yaml.unsafe_load(path.read_text())
    assert (kept["group"], kept["tags"], kept["name"]) == ("smoke", ["qam", "seed 0"], "qam-0")
    assert "tau" in kept


def test_group_and_tags_win_over_wandbs_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    monkeypatch.setenv("WANDB_TAGS", "theirs")
    log_steps(tmp_path, 1, mode="offline", group="mine", tags=["a", "b"])
    run = recorded(tmp_path)
    assert run.run_group == "mine" and set(run.tags) == {"a", "b"}


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--log.group=", "log.group is '', expected a text of 1 to 128 characters"),
        (f"--log.group={'g' * 129}", "log.group is 'ggg"),
        ("--log.tags=[a, '']", "log.tags is '', expected a text of 1 to 64 characters"),
        (f"--log.tags=[{'t' * 65}]", "expected a text of 1 to 64 characters"),
    ],
)
def test_labels_that_wandb_does_not_take_are_refused(
    flag: str, told: str, small_run: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_run(1, flag)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and told in line


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A folder of a report."""
    (tmp_path / "report/figures").mkdir(parents=True)
    (tmp_path / "report/index.html").write_text("<p>of a study")
    (tmp_path / "report/figures/success.png").write_bytes(b"a picture")
    return tmp_path / "report"


@pytest.mark.usefixtures("key")
def test_a_report_is_uploaded_as_an_artifact(
    server: WandbServer, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "training")
    address = upload_report(report, project="p", name="my study")
    ((identity, run),) = server.runs.items()
    assert identity != "training" and address.endswith(f"/p/runs/{identity}")
    assert run["sent"].items() >= {"displayName": "my study", "jobType": "report"}.items()
    files = {"index.html": b"<p>of a study", "figures/success.png": b"a picture"}
    assert server.artifacts == {"my-study": {"type": "report", "files": files}}
    assert sorted(path.name for path in report.iterdir()) == ["figures", "index.html"]


@pytest.mark.usefixtures("key")
def test_a_study_labels_its_runs_and_uploads_its_report(
    small_run: Callable[..., list[str]],
    server: WandbServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = small_run(2, "--method=fql", "--log.wandb=online")[1:]
    settings = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    del settings["run_dir"]
    Path("mine.yaml").write_text(yaml.safe_dump({"groups": {"a": {"settings": settings}}}))
    (run,) = read_study("mine.yaml").runs
    assert main(["fit", *run.arguments]) == 0
    (sent,) = (kept["sent"] for kept in server.runs.values())
    assert (sent["groupName"], sent["displayName"]) == ("mine", "a/run")
    assert set(sent["tags"]) == {"mine", "a", "fql"}
    capsys.readouterr()
    assert main(["study", "report", "mine.yaml", "--wandb"]) == 0
    identity = list(server.runs)[-1]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"uploaded to {server.url}/me/qam_lightning/runs/{identity}"
    folder = Path("runs/mine/report")
    written = {str(x.relative_to(folder)): x.read_bytes() for x in folder.rglob("*") if x.is_file()}
    assert "index.html" in written
    assert server.artifacts == {"mine": {"type": "report", "files": written}}


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ("no key", "W&B has no API key; log in with `wandb login`; the report is in "),
        ("offline", "W&B's mode is offline, and an upload needs online; the report is in "),
        ("refused", "W&B did not take the report: "),
        ("refused later", "W&B did not take the report: "),
        ("empty", "holds no report; write one first"),
        ("missing", "holds no report; write one first"),
    ],
)
def test_a_report_that_is_not_uploaded_is_told_in_one_line(
    trouble: str, told: str, server: WandbServer, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble != "no key":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")  # seconds, 30 by default
    if trouble == "offline":
        monkeypatch.setenv("WANDB_MODE", "offline")
    server.refusing = 401 if trouble == "refused" else 0
    if trouble == "refused later":
        monkeypatch.setattr(server, "answer_artifact", lambda *request: {})
    if trouble in ("empty", "missing"):
        report = report.parent / trouble
    if trouble == "empty":
        report.mkdir()
    with pytest.raises(UserError, match=told) as refusal:
        upload_report(report)
    assert "\n" not in str(refusal.value) and not server.artifacts


# -- W&B's own variables -------------------------------------------------------------------------


VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": "nightly",
    "WANDB_RUN_GROUP": "sizes",
    "WANDB_JOB_TYPE": "train",
    "WANDB_NOTES": "a note",
    "WANDB_TAGS": "one,two",
    "WANDB_RUN_ID": "an-id.1",
}


def test_wandbs_variables_are_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    log_steps(tmp_path / "run", 1)
    run = recorded(tmp_path / "elsewhere")
    assert (run.project, run.entity, run.display_name) == ("theirs", "team", "nightly")
    assert (run.run_group, run.job_type, run.notes) == ("sizes", "train", "a note")
    assert (list(run.tags), run.run_id) == (["one", "two"], "an-id.1")
    assert (tmp_path / "run/wandb_run_id").read_text() == "an-id.1"


def test_what_is_given_wins_over_wandbs_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "wandb_run_id").write_text("ours")
    log_steps(tmp_path, 1, mode="offline", project="mine", name="my run")
    run = recorded(tmp_path)
    assert (run.project, run.display_name, run.run_id) == ("mine", "my run", "ours")
    mode, identity = capsys.readouterr().out.splitlines()
    assert mode == "wandb: mode offline was asked for, WANDB_MODE disabled does not count"
    assert identity.startswith("wandb: this run is ours") and "WANDB_RUN_ID an-id.1" in identity


def test_wandbs_settings_file_counts_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wandb", "offline"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    log_steps(tmp_path / "run", 1)
    assert recorded(tmp_path / "run").project == "qam_lightning"


@pytest.mark.parametrize(
    ("variable", "given", "used"),
    [
        ("offline", None, True),
        ("online", None, True),
        ("disabled", None, False),
        ("offline", "disabled", False),
        ("disabled", "offline", True),
    ],
)
def test_wandb_mode_is_the_default_of_log_wandb(
    variable: str, given: Any, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    loggers = MetricsLogger("run", wandb=given)._loggers
    assert any(isinstance(logger, WandbLogger) for logger in loggers) == used


def test_an_agents_run_keeps_the_agents_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "me/p/abcd")
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    (tmp_path / "wandb_run_id").write_text("ours")
    log_steps(tmp_path, 1, mode="offline")
    assert recorded(tmp_path).run_id == "agents"
    assert (tmp_path / "wandb_run_id").read_text() == "agents"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WANDB_MODE", "sometimes", "'online', 'offline'"),
        ("WANDB_BASE_URL", "nowhere", "nowhere"),
        ("WANDB_PROJECT", "a/b", "a/b"),
    ],
)
def test_a_setting_that_wandb_refuses_ends_in_one_line(
    name: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="W&B cannot start a run: ") as refusal:
        log_steps(tmp_path / "run", 1, mode="offline")
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


# -- the file that keeps the id ------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a\nb", b"../../x", b"a b", b"x" * 999])
def test_a_damaged_id_is_told_and_replaced(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb_run_id").write_bytes(content)
    identity = WandbLogger(tmp_path)._identity(None, sweep=False, new=False)
    assert (tmp_path / "wandb_run_id").read_text() == identity
    assert len(identity) == 8 and identity.isalnum()
    (line,) = capsys.readouterr().out.splitlines()
    assert "holds no run id" in line


def test_an_id_that_cannot_be_read_or_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wandb_run_id").mkdir()
    with pytest.raises(UserError, match="wandb_run_id"):
        WandbLogger(tmp_path, mode="offline").begin(0)
