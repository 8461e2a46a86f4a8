"""Run folders: what checkpoints hold, the files beside them, tables, the replay, odd folders."""

import json
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from qam_lightning.checkpoints import fingerprint
from tests.fuzz import mutations as m
from tests.fuzz.case import Case, Group, Must
from tests.fuzz.data import Payload, archive
from tests.fuzz.harness import EXECUTED
from tests.fuzz.sound import EVAL, FIT, LAST, RESUME, as_reference, trained

GROUP = Group("runs")
kind = GROUP.kind

LAST_CKPT = "run/checkpoints/last.ckpt"
AFTER_FALLBACK = ("run/checkpoints/*.aside",)


# -- commands ------------------------------------------------------------------------------------


def resume(about: str, *places: str, must: Must = "end well", **more: Any) -> Case:
    """Resuming: refused, or exactly as from the sound files."""
    more.setdefault("check", lambda folder, _: as_reference(folder))
    return Case(RESUME, about, places, must, **more)


def evaluate(about: str, *places: str, must: Must = "end well", **more: Any) -> Case:
    more.setdefault("check", lambda folder, _: evaluated(folder))
    return Case(EVAL, about, places, must, **more)


def load(about: str, *places: str, must: Must = "end well", **more: Any) -> Case:
    return Case(["load_policy", "run"], about, places, must, **more)


def evaluated(folder: Path) -> str | None:
    """Check that a report was written, with one episode."""
    reports = list((folder / "run/eval").glob("*.json"))
    if len(reports) != 1:
        return f"{len(reports)} reports were written"
    found = json.loads(reports[0].read_text())
    return (
        None
        if found["episodes"] == 1 and 0 <= found["success"]["mean"] <= 1
        else "the report is odd"
    )


def any_command(
    rng: random.Random, about: str, *places: str, must: Must = "end well", **more: Any
) -> Case:
    choice = rng.choice([resume, resume, evaluate, load])
    return choice(about, *places, must=must, **more)


# -- what a checkpoint holds ---------------------------------------------------------------------


def read(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / LAST_CKPT, weights_only=True)
    return checkpoint


def only_last(folder: Path) -> None:
    """Remove the checkpoints to fall back to."""
    for path in (folder / "run/checkpoints").glob("last-*.ckpt"):
        path.unlink()


def write(rng: random.Random, folder: Path, checkpoint: Any) -> str:
    """Replace the newest checkpoint, remove the older ones; say what became of the file beside."""
    torch.save(checkpoint, folder / LAST_CKPT)
    only_last(folder)
    beside = (folder / LAST_CKPT).with_suffix(".json")
    way = rng.choice(["stale", "fitting", "gone"])
    if way == "gone":
        beside.unlink()
    elif way == "fitting":
        content = json.loads(beside.read_text()) | {"fingerprint": fingerprint(folder / LAST_CKPT)}
        beside.write_text(json.dumps(content))
    return f"; the JSON beside is {way}"


def spoilt_tensors(x: torch.Tensor) -> dict[str, Any]:
    y = x.detach().clone()
    flat = y.reshape(-1)
    made: dict[str, Any] = {
        "of shape (1,)": torch.zeros(1, dtype=y.dtype),
        "empty": torch.zeros(0, dtype=y.dtype),
        "0-d" if y.ndim else "(3,)": torch.zeros(() if y.ndim else 3, dtype=y.dtype),
        "one row more": torch.cat([y, y[:1]]) if y.ndim else torch.zeros(2),
        "one dimension more": y[None],
        "transposed"
        if y.ndim == 2 and y.shape[0] != y.shape[1]
        else "of another shape": y.mT.contiguous()
        if y.ndim == 2 and y.shape[0] != y.shape[1]
        else torch.zeros(7, 7, 7),
        "complex": y.to(torch.complex64),
        "whole numbers": y.to(torch.int64),
        "Boolean": y.to(torch.bool),
        "sparse": y.to_sparse() if y.ndim else y.to(torch.int8),
        "10^10 large": torch.zeros(1, dtype=y.dtype).expand(10**10),
        "a list": y.tolist(),
    }
    if y.is_floating_point():
        for name, value in (("NaN", float("nan")), ("infinite", float("inf")), ("huge", 3e38)):
            spoilt = flat.clone()
            spoilt[0 if len(flat) else slice(0)] = value
            made[name] = spoilt.reshape(y.shape)
    return made


def spoilt(rng: random.Random, value: Any) -> tuple[str, Any]:
    if isinstance(value, torch.Tensor) and rng.random() < 0.8:
        return rng.choice(list(spoilt_tensors(value).items()))
    found = m.wrong(rng, value)
    return f"is {m.short(found)}", found


@kind(times=7)
def part_of_checkpoint(rng: random.Random, folder: Path) -> Case:
    """Any value at any depth, of another type; the sections take turns."""
    checkpoint = read(folder)
    section = rng.choice([*checkpoint, "qam_lightning", "online", "counters", "callbacks", "loops"])
    keys = rng.choice([(section,), *((section, *k) for k in m.keys_of(checkpoint[section]))])
    about, value = spoilt(rng, m.value_at(checkpoint, keys))
    more = write(rng, folder, m.put(checkpoint, keys, value))
    return any_command(
        rng, f"last.ckpt: {m.dotted(keys)} {about}{more}", "last.ckpt", must="end well"
    )


@kind(times=4)
def weights(rng: random.Random, folder: Path) -> Case:
    checkpoint = read(folder)
    name = rng.choice(list(checkpoint["state_dict"]))
    about, value = rng.choice(
        [
            x
            for x in spoilt_tensors(checkpoint["state_dict"][name]).items()
            if x[0] not in ("huge", "whole numbers", "Boolean")
        ]
    )
    more = write(rng, folder, m.put(checkpoint, ("state_dict", name), value))
    return any_command(
        rng, f"last.ckpt: weight {name} {about}{more}", "last.ckpt", must="be refused"
    )


@kind(times=4)
def moments(rng: random.Random, folder: Path) -> Case:
    checkpoint = read(folder)
    number = rng.choice(list(checkpoint["optimizer_states"][0]["state"]))
    key = rng.choice(["exp_avg", "exp_avg_sq", "step"])
    keys = ("optimizer_states", 0, "state", number, key)
    options = spoilt_tensors(m.value_at(checkpoint, keys))
    for harmless in ("huge", "whole numbers", "Boolean"):
        options.pop(harmless, None)
    if key == "step":
        options = {
            "-3": torch.tensor(-3.0),
            "NaN": torch.tensor(float("nan")),
            "a text": "x",
            "of two": torch.zeros(2),
            "None": None,
        }
    about, value = rng.choice(list(options.items()))
    more = write(rng, folder, m.put(checkpoint, keys, value))
    return resume(
        f"last.ckpt: {key} of parameter {number} {about}{more}", "last.ckpt", must="be refused"
    )


@kind(times=3)
def optimizer(rng: random.Random, folder: Path) -> Case:
    checkpoint = read(folder)
    state = checkpoint["optimizer_states"][0]
    other = {n: (n + 1) % len(state["state"]) for n in state["state"]}
    name, made = rng.choice(
        [
            ("no state", []),
            ("two states", [state, state]),
            ("an empty state", [{"state": {}, "param_groups": state["param_groups"]}]),
            ("no groups", [{"state": state["state"], "param_groups": []}]),
            ("two groups", [{**state, "param_groups": state["param_groups"] * 2}]),
            (
                "a parameter less",
                [{**state, "state": {n: x for n, x in state["state"].items() if n}}],
            ),
            ("a parameter more", [{**state, "state": {**state["state"], 999: state["state"][0]}}]),
            (
                "parameters by name",
                [{**state, "state": {str(n): x for n, x in state["state"].items()}}],
            ),
            (
                "parameters exchanged",
                [{**state, "state": {n: state["state"][k] for n, k in other.items()}}],
            ),
            (
                "params of the group",
                [{**state, "param_groups": [{**state["param_groups"][0], "params": [0]}]}],
            ),
            (
                "params twice",
                [
                    {
                        **state,
                        "param_groups": [
                            {**state["param_groups"][0], "params": [0] * len(state["state"])}
                        ],
                    }
                ],
            ),
            (
                "no exp_avg_sq",
                [
                    {
                        **state,
                        "state": {
                            n: {k: v for k, v in x.items() if k != "exp_avg_sq"}
                            for n, x in state["state"].items()
                        },
                    }
                ],
            ),
            (
                "NaN betas",
                [
                    {
                        **state,
                        "param_groups": [
                            {**state["param_groups"][0], "betas": (float("nan"), 0.9)}
                        ],
                    }
                ],
            ),
            (
                "betas of text",
                [{**state, "param_groups": [{**state["param_groups"][0], "betas": "xy"}]}],
            ),
            (
                "negative eps",
                [{**state, "param_groups": [{**state["param_groups"][0], "eps": -1.0}]}],
            ),
            (
                "weight decay",
                [{**state, "param_groups": [{**state["param_groups"][0], "weight_decay": 5.0}]}],
            ),
            (
                "amsgrad",
                [{**state, "param_groups": [{**state["param_groups"][0], "amsgrad": True}]}],
            ),
            (
                "maximize",
                [{**state, "param_groups": [{**state["param_groups"][0], "maximize": True}]}],
            ),
            ("None", None),
            ("a mapping", {"state": 1}),
        ]
    )
    more = write(rng, folder, checkpoint | {"optimizer_states": made})
    must: Must = (
        "end well"
        if name in ("a parameter more", "maximize", "weight decay", "negative eps", "amsgrad")
        else "be refused"
    )
    return resume(f"last.ckpt: optimizer_states: {name}{more}", "last.ckpt", must=must)


@kind(times=3)
def counters(rng: random.Random, folder: Path) -> Case:
    checkpoint = read(folder)
    key = rng.choice(["gradient_step", "env_step", "phase"])
    value = rng.choice(
        [
            -5, -1, None, "6", "six", float("nan"), float("inf"), 6.5, 6.0, True, 2**70, [6],
            {}, torch.tensor(6), torch.tensor([6, 6]), 10**400, "Online", "",
        ]
    )  # fmt: skip
    if rng.random() < 0.25:
        keys: m.Keys = rng.choice([("counters",), ("counters", key)])
        checkpoint, about = m.without(checkpoint, keys), f"{m.dotted(keys)} is missing"
    else:
        checkpoint, about = (
            m.put(checkpoint, ("counters", key), value),
            f"{key} is {m.short(value)}",
        )
    more = write(rng, folder, checkpoint)
    return any_command(rng, f"last.ckpt: {about}{more}", "last.ckpt", must="be refused")


@kind(times=3)
def section_missing(rng: random.Random, folder: Path) -> Case:
    checkpoint = read(folder)
    keys = rng.choice(
        [(k,) for k in checkpoint]
        + [(s, k) for s in ("qam_lightning", "online") for k in checkpoint[s]]
        + [("online", "settings", k) for k in checkpoint["online"]["settings"]]
    )
    more = write(rng, folder, m.without(checkpoint, keys))
    needed = keys in [("state_dict",), ("qam_lightning",), ("counters",)] or (
        keys[0] == "optimizer_states" or keys[0] == "online" and keys[-1] not in ("statistics",)
    )
    must: Must = "be refused" if needed else "end well"
    make = (
        resume
        if keys[0] in ("optimizer_states", "online")
        else lambda *a, **k: any_command(rng, *a, **k)
    )
    return make(f"last.ckpt: {m.dotted(keys)} is missing{more}", "last.ckpt", must=must)


@kind(times=3)
def online_lies(rng: random.Random, folder: Path) -> Case:
    """Values of the right type that cannot be true."""
    checkpoint = read(folder)
    keys, value = rng.choice(
        [
            (("online", "rows"), -1), (("online", "rows"), 10**9), (("online", "rows"), 3),
            (("online", "rows"), 2**62), (("online", "crc32"), 5), (("online", "crc32"), -1),
            (("online", "actors"), []), (("online", "actors", 0, "length"), -3),
            (("online", "actors", 0, "length"), 1000), (("online", "actors", 0, "episode"), -1),
            (("online", "actors", 0, "executed"), 77),
            (("online", "actors", 0, "executed"), -1),
            (("online", "actors", 0, "chunk"), [[1.0, 2.0]]),
            (("online", "actors", 0, "chunk"), [[float("nan")]] * 3),
            (("online", "actors", 0, "chunk"), [[5.0]] * 3),
            (("online", "actors", 0, "chunk"), [[0.5]] * 100),
            (("online", "statistics", "rows"), 10**6), (("online", "statistics", "rows"), -5),
            (("online", "statistics", "recent"), [[1.0]]),
            (("online", "statistics", "running"), {}),
            (("online", "statistics", "running"), {0: [1.0]}),
            (("online", "statistics", "episodes"), -1),
            (("online", "settings", "online.num_envs"), 0),
            (("online", "settings", "online.num_envs"), 10**9),
            (("online", "settings", "unknown"), 1), (("counters", "env_step"), 5),
            (("counters", "env_step"), 10**6), (("counters", "gradient_step"), 5),
            (("counters", "gradient_step"), 10**6), (("counters", "phase"), "offline"),
            (("epoch",), -1), (("global_step",), 10**9),
        ]
    )  # fmt: skip
    if keys[-1] == "unknown":
        checkpoint["online"]["settings"]["unknown"] = 1
    else:
        checkpoint = m.put(checkpoint, keys, value)
    more = write(rng, folder, checkpoint)
    # An episode whose actions lead elsewhere is discarded with a notice; the run goes on.
    actors = keys[:2] == ("online", "actors")
    return resume(
        f"last.ckpt: {m.dotted(keys)} is {m.short(value)}{more}",
        "last.ckpt",
        "replay.bin",
        "num_envs",
        "gradient step",
        "env_step",
        check=(lambda f, _: trained(f, "run", LAST)) if actors else lambda f, _: as_reference(f),
    )


@kind(times=3)
def imports(rng: random.Random, folder: Path) -> Case:
    """Names in a checkpoint: nothing outside the package is imported on a file's word."""
    (folder / "canary.py").write_text(f"open('../{EXECUTED}', 'w')\nclass Method: pass\n")
    checkpoint = read(folder)
    keys, value = rng.choice(
        [
            *[
                (("qam_lightning", "method"), v)
                for v in (
                    "canary.Method",
                    "canary",
                    "canary.Method.x",
                    "os.system",
                    "builtins.eval",
                    "",
                    ".",
                    "qam_lightning.methods.qam",
                    "qam_lightning.methods.base.Method",
                    "qam_lightning.cli.main",
                    "qam_lightning.nothing.X",
                    "qam_lightning.methods.qam.torch.nn.Linear",
                    "qam_lightning..qam",
                    "qam_lightning.methods.fql.FQL",
                    "a\nb.C",
                    "x" * 5000,
                )
            ],
            *[
                (("qam_lightning", "environment", "env"), v)
                for v in (
                    "canary:Env-v0",
                    "canary:",
                    ":",
                    "os:x-v0",
                    "Nothing-v9",
                    "",
                    "scene\n",
                    "a\x00-v0",
                    "CartPole-v1",
                    "Pendulum-v1",
                    "x" * 5000,
                )
            ],
            *[
                (("qam_lightning", "environment", "task"), v)
                for v in (0, 6, -1, "1", None, 10**30, 1.5)
            ],
            *[(("qam_lightning", "environment", "sparse"), v) for v in ("yes", None, 3)],
            (("qam_lightning", "environment"), {}),
            (("qam_lightning", "environment"), {"env": "canary:Env-v0"}),
            (("qam_lightning", "config"), "!!python/object/apply:os.system ['touch ../EXECUTED']"),
            (("qam_lightning", "config"), "a: [" * 2000),
            (("qam_lightning", "config"), "a: &a [*a, *a]"),
            (("qam_lightning", "config"), "\x00"),
            (("qam_lightning", "config"), "5"),
            (("qam_lightning", "config"), "- a\n- b"),
            (("qam_lightning", "versions"), {"torch": "0.0\n\x1b[31m"}),
            (("qam_lightning", "versions"), {"torch": 5}),
            (("qam_lightning", "versions"), []),
            (("qam_lightning", "format"), 10**9),
            (("qam_lightning", "format"), "2"),
            (("qam_lightning", "run_dir"), "../../EVIL"),
        ]
    )
    more = write(rng, folder, m.put(checkpoint, keys, value))
    bad = keys[-1] == "method" or str(value).startswith("canary")
    make = (
        rng.choice([evaluate, load])
        if bad and keys[-1] == "env"
        else lambda *a, **k: any_command(rng, *a, **k)
    )
    case = make(f"last.ckpt: {m.dotted(keys)} is {m.short(value)}{more}", "last.ckpt", keys[-1])
    if keys[-1] == "method" and value != "qam_lightning.methods.fql.FQL" and case.command != RESUME:
        case.must = "be refused"
    return case


@kind(times=3)
def model_arguments(rng: random.Random, folder: Path) -> Case:
    """The constructor's arguments, which rebuild the method."""
    checkpoint = read(folder)
    model = checkpoint["qam_lightning"]["model"]
    key = rng.choice(list(model))
    about, value = rng.choice(
        [
            *[
                (f"{key} is {m.short(v)}", {**model, key: v})
                for v in (m.wrong(rng, model[key]), 10**9, 10**12, -1)
            ],
            (f"{key} is missing", {k: v for k, v in model.items() if k != key}),
            ("one more argument", model | {"more": 1}),
            ("an argument that is no name", model | {5: 1}),
            ("spaces are huge", model | {"spaces": [10**9, 10**9, 10**9]}),
            ("spaces are a text", model | {"spaces": "abc"}),
            ("spaces are of other sizes", model | {"spaces": [5, 1, 3]}),
            ("width is 10^5", model | {"width": 10**5}),
            ("depth is 10^6", model | {"depth": 10**6}),
            ("num_critics is 10^7", model | {"num_critics": 10**7}),
            ("best_of_n is 10^9", model | {"best_of_n": 10**9}),
            ("flow_steps is 10^9", model | {"flow_steps": 10**9}),
            ("a list", list(model)),
            ("empty", {}),
        ]
    )
    checkpoint = m.put(checkpoint, ("qam_lightning", "model"), value)
    more = write(rng, folder, checkpoint)
    make = rng.choice([evaluate, load])
    # A flow of many steps is slow, not wrong.
    return make(
        f"last.ckpt: model: {about}{more}",
        "last.ckpt",
        *map(str, model),
        check=None,
        endless="flow_steps" in about,
    )


# -- files ---------------------------------------------------------------------------------------


@kind(times=4)
def damaged_checkpoint(rng: random.Random, folder: Path) -> Case:
    """The newest checkpoint is damaged: the older one gives the same end."""
    path = folder / LAST_CKPT
    name, damage = rng.choice(list(m.DAMAGE.items()))
    path.write_bytes(damage(rng, path.read_bytes()))
    alone = rng.random() < 0.4
    if alone:
        only_last(folder)
    about = f"last.ckpt, {name}{', the only one' if alone else ''}"
    return any_command(rng, about, "last.ckpt", writes=AFTER_FALLBACK)


@kind(times=3)
def no_checkpoint(rng: random.Random, folder: Path) -> Case:
    file = rng.choice(["last.ckpt", "last.json", "best.ckpt", "best.json", "last-1.ckpt"])
    name, make = rng.choice([*m.NOT_FILES.items(), ("gone", m.gone)])
    make(folder / "run/checkpoints" / file)
    places = (file, file.replace(".json", ".ckpt"))
    return any_command(rng, f"{file} is {name}", *places, writes=AFTER_FALLBACK)


@kind(times=3)
def another_file(rng: random.Random, folder: Path) -> Case:
    path = folder / LAST_CKPT
    only_last(folder)
    name = rng.choice(
        [
            "a pickle", "pickled in torch's format", "an npz file", "JSON", "another program's",
            "a state dict", "a list", "a number", "a tensor", "text", "inflates", "outside",
            "members twice", "an old torch file", "code for torchscript",
        ]
    )  # fmt: skip
    if name == "a pickle":
        path.write_bytes(pickle.dumps(Payload()))
    elif name == "pickled in torch's format":
        torch.save(read(folder) | {"extra": Payload()}, path)
    elif name == "an npz file":
        shutil.copy(folder / "own.npz", path)
    elif name == "JSON":
        path.write_text("{}")
    elif name == "another program's":
        torch.save({k: v for k, v in read(folder).items() if k != "qam_lightning"}, path)
    elif name == "a state dict":
        torch.save(read(folder)["state_dict"], path)
    elif name == "a list":
        torch.save([1, 2], path)
    elif name == "a number":
        torch.save(5, path)
    elif name == "a tensor":
        torch.save(torch.zeros(3), path)
    elif name == "text":
        path.write_text("hello\n" * 100)
    elif name == "inflates":
        _inflated(path, 3 << 29)
    elif name in ("outside", "members twice"):
        with zipfile.ZipFile(path) as file:
            content = {i.filename: file.read(i) for i in file.infolist()}
        archive(path, content | {"../../EVIL": b"x"})
        if name == "members twice":
            import warnings

            with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                file.writestr(next(iter(content)), b"x")
    elif name == "an old torch file":
        torch.save(read(folder), path, _use_new_zipfile_serialization=False)
    else:
        archive(
            path, {"last/code/__torch__.py": b"x", "last/constants.pkl": b"x", "last/version": b"3"}
        )
    either = name in ("outside", "members twice", "an old torch file")
    return any_command(
        rng, f"last.ckpt is {name}", "last.ckpt", must="end well" if either else "be refused"
    )


def _inflated(path: Path, size: int) -> None:
    """A checkpoint one of whose members inflates."""
    with zipfile.ZipFile(path) as file:
        content = {i.filename: file.read(i) for i in file.infolist()}
    name = next(n for n in content if n.endswith("data.pkl"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for key, data in content.items():
            with file.open(key, "w", force_zip64=True) as member:
                member.write(data)
                for _ in range(size >> 24 if key == name else 0):
                    member.write(bytes(1 << 24))


@kind(times=4)
def json_beside(rng: random.Random, folder: Path) -> Case:
    """What is said of a checkpoint; the checkpoint itself says more."""
    path = (
        folder
        / "run/checkpoints"
        / rng.choice(["last.json", "last.json", "best.json", "last-1.json"])
    )
    tree = json.loads(path.read_text())
    if rng.random() < 0.7:
        keys = rng.choice([k for k in m.keys_of(tree) if k[0] != "shapes" or rng.random() < 0.1])
        if rng.random() < 0.3:
            path.write_text(json.dumps(m.without(tree, keys)))
            about = f"{m.dotted(keys)} is missing"
        else:
            value = m.wrong(rng, m.value_at(tree, keys))
            path.write_text(json.dumps(m.put(tree, keys, value)))
            about = f"{m.dotted(keys)} is {m.short(value)}"
    else:
        about, damage = rng.choice(
            [
                *m.TEXT_DAMAGE.items(),
                ("deep", lambda r, c: b"[" * 100_000),
                ("null", lambda r, c: b"null"),
                ("a list", lambda r, c: b"[]"),
            ]
        )
        path.write_bytes(damage(rng, path.read_bytes()))
    best = rng.random() < 0.3 and path.name == "best.json"
    case = any_command(rng, f"{path.name}: {about}", path.name, path.with_suffix(".ckpt").name)
    if best and case.command == RESUME:
        case.command = [*RESUME, "--ckpt_path=best"]
    return case


@kind(times=4)
def table(rng: random.Random, folder: Path) -> Case:
    path = folder / "run/metrics" / rng.choice(["train.csv", "eval.csv", "eval.csv"])
    raw = path.read_bytes()
    first, *rows = raw.decode().splitlines()
    name, content = rng.choice(
        [
            *[(n, d(rng, raw)) for n, d in m.TEXT_DAMAGE.items()],
            ("another header", b"a,b,c\n1,2,3\n"),
            ("no header", "\n".join(rows).encode() + b"\n"),
            ("header only", first.encode() + b"\n"),
            ("words for steps", raw.replace(b"\n4,", b"\nfour,").replace(b"\n6,", b"\nsix,")),
            ("NaN steps", raw.replace(b"\n6,", b"\nnan,")),
            ("huge steps", raw.replace(b"\n6,", b"\n" + b"9" * 5000 + b",")),
            ("a field of 200,000", raw + b'6,"' + b"x" * 200_000 + b'",1\n'),
            ("more fields", raw.replace(b"\n", b",1,2,3\n")),
            (
                "fewer fields",
                (first + "\n" + "\n".join(r.rpartition(",")[0] for r in rows) + "\n").encode(),
            ),
            (
                "a column twice",
                (first + "," + first + "\n" + "\n".join(f"{r},{r}" for r in rows) + "\n").encode(),
            ),
            ("semicolons", raw.replace(b",", b";")),
            ("tabs", raw.replace(b",", b"\t")),
            ("CRLF", raw.replace(b"\n", b"\r\n")),
            ("CR", raw.replace(b"\n", b"\r")),
            ("BOM", b"\xef\xbb\xbf" + raw),
            ("NUL", b"\x00" * 500),
            ("binary", rng.randbytes(500)),
            ("an open quote", raw + b'"'),
            ("a quoted line break", raw.replace(b"offline", b'"off\nline"')),
            ("control characters", raw.replace(b"offline", b"\x1b[31m")),
            ("another phase", raw.replace(b"online", b"sideways")),
            (
                "rows of later steps",
                raw
                + b"\n".join(
                    f"{n}{r[r.index(',') :]}".encode()
                    for n, r in zip((99, 100), rows, strict=False)
                )
                + b"\n",
            ),
            ("last row cut", raw[:-9]),
            ("empty lines", raw.replace(b"\n", b"\n\n")),
        ]
    )
    path.write_bytes(content)
    about = f"{path.name}: {name}"
    if path.name == "eval.csv" and rng.random() < 0.5:
        return Case(
            [*EVAL, "--picture"], about, ("eval.csv",), "end well", lambda f, _: evaluated(f)
        )
    return resume(about, path.name)


@kind(times=3)
def replay(rng: random.Random, folder: Path) -> Case:
    path = folder / "run/checkpoints/replay.bin"
    raw = path.read_bytes()
    if rng.random() < 0.6:
        name, damage = rng.choice(list(m.DAMAGE.items()))
        path.write_bytes(damage(rng, raw))
    else:
        name, make = rng.choice([*m.NOT_FILES.items(), ("gone", m.gone)])
        make(path)
    same = (
        path.is_file()
        and not path.is_symlink()
        and path.stat().st_size < 10**6
        and path.read_bytes()[: len(raw)] == raw
    )
    # Evaluation does not need it.
    make_case = resume if rng.random() < 0.8 else evaluate
    must: Must = (
        "be accepted"
        if same or make_case is evaluate
        else "end well"
        if name == "sparse"
        else "be refused"
    )
    return make_case(f"replay.bin, {name}", "replay.bin", must=must)


@kind(times=3)
def beside_checkpoints(rng: random.Random, folder: Path) -> Case:
    """Files of a run that a resume does not read, or replaces."""
    file = rng.choice(
        [
            "run/config.yaml", "run/wandb_run_id", "run/eval", "run/videos", "run/metrics",
            "run/checkpoints/last.ckpt.aside", "run/checkpoints/.last.ckpt.tmp",
            "run/checkpoints/last-7.ckpt", "run/checkpoints/last-x.ckpt",
            "run/checkpoints/last-٣.ckpt", "run/metrics/train.csv", "run/metrics/eval.csv",
            "run/picture.png",
        ]
    )  # fmt: skip
    name, make = rng.choice([*m.NOT_FILES.items(), ("a_file", m.a_file), ("gone", m.gone)])
    make(folder / file)
    about = f"{file} is {name}"
    late = ("run/*",) if file.endswith(".tmp") else AFTER_FALLBACK  # a failed write comes late
    short = file.removeprefix("run/")
    if rng.random() < 0.5:
        return resume(
            about,
            short,
            Path(file).name,
            "last.ckpt",
            check=lambda f, _: trained(f, "run", LAST),
            writes=late,
        )
    command = [*EVAL, *rng.choice([[], ["--picture"]])]
    return Case(command, about, (short, Path(file).name), "end well", None)


@kind(times=3)
def odd_run_folder(rng: random.Random, folder: Path) -> Case:
    what = rng.choice(["run", "run/checkpoints", "run/metrics"])
    name, make = rng.choice(
        [
            *m.NOT_FOLDERS.items(),
            ("empty", m.an_empty_folder),
            ("gone", m.gone),
            ("endless_device", m.endless_device),
        ]
    )
    make(folder / what)
    about = f"{what} is {name}"
    places = (what.rpartition("/")[2], "run_dir", "ckpt_path")
    choice = rng.randrange(4)
    if choice == 0:
        return resume(
            about, *places, check=lambda f, _: trained(f, "run", LAST), writes=AFTER_FALLBACK
        )
    if choice == 1:
        return Case(EVAL, about, places)
    if choice == 2:
        return load(about, *places)
    # A new run: the folder is refused while it holds anything of the old one.
    holds = what != "run"
    return Case(
        FIT,
        about + ", a new run begins there",
        places,
        "be refused" if holds or name not in ("empty", "gone") else "be accepted",
        lambda f, _: trained(f, "run"),
    )


@kind(times=3)
def leftovers(rng: random.Random, folder: Path) -> Case:
    """A new run in the folder of an old one, of which something is left."""
    left = rng.sample(
        [
            "config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
            "checkpoints/last-1.ckpt", "checkpoints/replay.bin", "metrics/train.csv",
            "metrics/eval.csv", "wandb_run_id", "eval/last-step6.json",
        ],
        rng.randint(1, 3),
    )  # fmt: skip
    (folder / "run/wandb_run_id").write_text("abc\n")
    (folder / "run/eval").mkdir()
    (folder / "run/eval/last-step6.json").write_text("{}")
    for path in list((folder / "run").rglob("*")):
        if path.is_file() and str(path.relative_to(folder / "run")) not in left:
            path.unlink()
    if left == ["config.yaml"] or set(left) == {"config.yaml", "metrics/train.csv"}:
        return Case(
            FIT,
            f"left of the old run: {left}",
            ("run",),
            "end well",
            lambda f, _: trained(f, "run"),
        )
    return Case(FIT, f"left of the old run: {left}", ("run",), "be refused")


@kind(times=2)
def other_source(rng: random.Random, folder: Path) -> Case:
    """Names of checkpoints: of another run, another place, another kind."""
    flag = rng.choice(
        [
            "best", "last", "run/checkpoints/last.ckpt", "run/checkpoints/best.ckpt",
            "run/checkpoints/last-1.ckpt", "run", "run/checkpoints", "own.npz", "tiny.yaml", "",
            "first", "LAST", "last ", "last.ckpt", "x" * 5000, "a\x00b", "a\nb", "/dev/null",
            "/dev/zero", "~no_such_user/x.ckpt", "hparams", "registry", "registry:name",
            "http://127.0.0.1:9/x.ckpt", "null", "None", "run/checkpoints/last.json",
        ]
    )  # fmt: skip
    where = rng.choice(["run", "new"])
    good = (
        flag == "last"
        and where == "run"
        or flag in ("best", "run/checkpoints/last.ckpt", "run/checkpoints/best.ckpt")
        and where == "run"
    )
    command = [*FIT, f"--run_dir={where}", f"--ckpt_path={flag}", "--online.steps=8"]
    either = (
        flag in ("null", "None", "hparams", "registry")
        or "last-1" in flag
        or "checkpoints" in flag
        and where == "new"
    )
    return Case(
        command,
        f"--ckpt_path {m.short(flag)} for {where}",
        ("ckpt_path", "run", *([flag] if len(flag) > 2 else [])),
        "be accepted" if good else "end well" if either else "be refused",
        lambda f, _: trained(f, where, LAST),
    )


@kind(times=2)
def changed_setting(rng: random.Random, folder: Path) -> Case:
    """A resume with other settings: told, refused where it cannot be."""
    flag, good = rng.choice(
        [
            ("--model.width=8", False), ("--model.depth=2", False), ("--method=fql", False),
            ("--data.horizon=2", False), ("--trainer.max_steps=2", False),
            ("--trainer.max_steps=9", False), ("--online.learning_starts=5", False),
            ("--online.utd_ratio=2", False), ("--online.num_envs=2", False),
            ("--online.steps=0", False), ("--data.sparse=true", False),
            ("--data.env=Pendulum-v1", False), ("--data.path=halves", True), ("--seed=5", True),
            ("--model.tau=3", True), ("--data.batch_size=4", True),
            ("--log.every_n_steps=2", True), ("--checkpoints.keep_last=1", True),
            ("--evaluation.episodes=2", True),
        ]
    )  # fmt: skip
    key = flag[2:].partition("=")[0].rpartition(".")[2]
    return Case(
        [*RESUME, flag],
        f"resumed with {flag}",
        (key, "last.ckpt", "env"),
        "be accepted" if good else "be refused",
        lambda f, _: trained(f, "run", LAST),
    )
