"""Command lines: values, spellings and places of flags; names that hurt; variables around them."""

import random
from pathlib import Path

from tests.fuzz import mutations as m
from tests.fuzz.case import Case, Group, Must
from tests.fuzz.sound import ENV, EVAL, FIT, GENERATE, MAZE, MAZE_FLAGS, NEW, RESUME, trained

GROUP = Group("commands")
kind = GROUP.kind

INTEGERS = [
    "", " ", "five", "1.5", "-1", "0", "0x10", "1e3", "1e400", "nan", "inf", "9" * 30,
    "9" * 400, "9" * 5000, "٣", "1_0", "+1", " 1", "1,2", "[1]", "{}", "null", "true", "1 --x",
    "${seed}", "${x}", "!!int 1", "a\x00b", "1\n2", "\x1b[31m", "\udcff", "x" * 5000,
]  # fmt: skip
# A trial may run as root: nothing here leads to a folder outside in which root can write.
NAMES = [
    "", " ", ".", "/proc", "nothing", "x" * 300, "x" * 5000, "a\x00b", "a\nb", "\x1b[31m",
    "\u202eevil", "\udcff", "~no_such_user/x", "/dev/null", "/dev/zero", "/proc/self/mem",
    "/proc/1/x", "../../EVIL/x\x00", "own.npz", "tiny.yaml/x", "%s%n", "*", "-", "--", "$HOME",
    "http://127.0.0.1:9/x", "null", "[]", "{a: 1}", "5", "dangling", "loop", "pipe",
]  # fmt: skip

EVALUATION = {
    "--episodes": INTEGERS,
    "--seed": INTEGERS,
    "--task": [*INTEGERS, "6", "99"],
    "--best_of_n": INTEGERS,
    "--flow_steps": INTEGERS,
    "--temperature": INTEGERS,
    "--vartheta": INTEGERS,
    "--num_envs": INTEGERS,
    "--workers": [x for x in INTEGERS if len(x) < 20 or not x.isdigit()],
    "--video": [*INTEGERS, "0"],
    "--policy": [*NAMES, "Learned"],
    "--checkpoint": [*NAMES, "first", "last-1", "Best"],
    "--device": [*NAMES, "cuda:0", "mps", "CPU"],
    "--output": NAMES,
    "--runs": NAMES,
}

TRAINING = {
    "--seed": INTEGERS,
    "--task": [*INTEGERS, "6"],
    "--threads": [x for x in INTEGERS if x != "1e3"],
    "--matmul_precision": [*NAMES, "low"],
    "--tuned_as": NAMES,
    "--tuned": NAMES,
    "--domain": NAMES,
    "--method": [*NAMES, "QAM", "qam,fql"],
    "--model": [*NAMES, "QAM", "torch.nn.Linear"],
    "--model.tau": INTEGERS,
    "--model.rho": [*INTEGERS, "-1e-3", "-.5", "-inf"],
    "--model.residual": [*NAMES, "maybe", "2"],
    "--model.grad_clip_mode": NAMES,
    "--model.init_args.tau": INTEGERS,
    "--data.horizon": INTEGERS,
    "--data.discount": [*INTEGERS, "1.0000001", "0"],
    "--data.env": [*NAMES, f"{MAZE}-singletask-task2-v0", "os:x-v0"],
    "--data.dataset": NAMES,
    "--data.storage": NAMES,
    "--data.path": NAMES,
    "--trainer.max_steps": [x for x in INTEGERS if x != "1e3"],
    "--trainer.devices": INTEGERS,
    "--trainer.accelerator": NAMES,
    "--trainer.precision": NAMES,
    "--trainer.callbacks": NAMES,
    "--log.wandb": [*NAMES, "on"],
    "--log.every_n_steps": INTEGERS,
    "--checkpoints.keep_last": INTEGERS,
    "--evaluation.num_envs": INTEGERS,
    "--evaluation.at_start": NAMES,
    "--online.sampling": NAMES,
    "--online.utd_ratio": [x for x in INTEGERS if x != "1e3"],
    "--progress.every_seconds": INTEGERS,
    "--ckpt_path": NAMES,
    "--pretrained": NAMES,
    "--config": NAMES,
}

COLLECTION = {
    "--env": [*NAMES, "antmaze-large", "Scene", ENV],
    "--dataset": [*NAMES, "play", "Navigate"],
    "--episodes": ["0", "-1", "", "five", "1.5", "nan", "9" * 400, "a\nb", "1e-3"],
    "--seed": [
        x for x in INTEGERS if x not in ("0", "0x10", "1e3", "+1", " 1", "1_0", "true", "9" * 30)
    ],
    "--workers": ["0", "-1", "five", "1.5", "nan", ""],
    "--episode_steps": ["0", "1", "-1", "five", "nan", "9" * 400, ""],
    "--directory": [
        x
        for x in NAMES
        if x
        not in (
            "",
            " ",
            ".",
            "%s%n",
            "*",
            "$HOME",
            "5",
            "[]",
            "nothing",
            "x" * 300,
            "\u202eevil",
            "{a: 1}",
            "-",
            "null",
            "--",
            "dangling",
            "a\nb",
            "\x1b[31m",
            "\udcff",
        )
    ],
}

LABORATORY = {
    "--methods": NAMES,
    "--problems": NAMES,
    "--seeds": [x for x in INTEGERS if x not in ("1_0", "+1", " 1", "٣", "9" * 30, "9" * 400)],
    "--steps": ["0", "-1", "five", "1.5", "nan", "", "9" * 5000, "a\x00b", "a\nb"],
    "--flow_steps": ["0", "-1", "five", "1.5", "nan", "", "9" * 5000, "a\x00b", "a\nb"],
    "--out": [
        "tiny.yaml/x",
        "own.npz",
        "a\x00b",
        "/dev/null/x",
        "/proc/1/x",
        "x" * 300,
        "x" * 5000,
        "loop/x",
    ],
}

DESCRIPTION = {
    "--env": [*NAMES, "os:x-v0"],
    "--path": NAMES,
    "--task": INTEGERS,
    "--store": [x for x in NAMES if x not in ("nothing", "%s%n", "*", "$HOME", "5", "-")],
    "--picture": NAMES,
    "--base_url": NAMES,
    "--dataset": NAMES,
    "--directory": NAMES,
}


def odd_files(folder: Path) -> None:
    """Files that the hurting names lead to."""
    m.dangling(folder / "dangling")
    m.loop(folder / "loop")
    m.pipe(folder / "pipe")


def put_flag(rng: random.Random, command: list[str], flag: str, value: str) -> list[str]:
    """Add a flag, in one word or in two."""
    if rng.random() < 0.6 or value.startswith("-"):
        return [*command, f"{flag}={value}"]
    return [*command, flag, value]


def leaf(flag: str) -> str:
    return flag.lstrip("-").rpartition(".")[2]


# -- values --------------------------------------------------------------------------------------


@kind(times=8)
def value_of_fit(rng: random.Random, folder: Path) -> Case:
    odd_files(folder)
    flag = rng.choice(list(TRAINING))
    value = rng.choice(TRAINING[flag])
    numbers = TRAINING[flag] is not NAMES and value.strip().isdigit()
    command = put_flag(rng, NEW, flag, value)
    places = {"task": "data.task", "init_args": "model"}.get(leaf(flag), leaf(flag))
    # A number may be a size, or the amount of work, that takes more than a test.
    return Case(
        command,
        f"{flag} {m.short(value)}",
        (places, leaf(flag), "--model", "model.tau", "domain"),
        endless=numbers,
        writes=("own*.store*", "nothing*"),
    )


@kind(times=6)
def value_of_eval(rng: random.Random, folder: Path) -> Case:
    odd_files(folder)
    flag = rng.choice(list(EVALUATION))
    value = rng.choice(EVALUATION[flag])
    command = put_flag(rng, EVAL, flag, value)
    if flag == "--runs":
        command.append("--picture")
    digits = value.strip().isdigit()
    known = len(value) > 2 and value.isprintable() and len(value) < 80
    return Case(
        command,
        f"{flag} {m.short(value)}",
        (flag, leaf(flag), *(["eval.csv"] if flag == "--runs" else [value] if known else [])),
        endless=digits,
    )


@kind(times=3)
def value_of_generate(rng: random.Random, folder: Path) -> Case:
    odd_files(folder)
    flag = rng.choice(list(COLLECTION))
    value = rng.choice(COLLECTION[flag])
    # The unfinished collection is complete, so what is accepted takes no processes.
    command = put_flag(rng, GENERATE, flag, value)
    own = flag == "--workers"
    return Case(
        command,
        f"{flag} {m.short(value)}",
        (leaf(flag), "parts", *([value] if len(value) > 2 and len(value) < 80 else [])),
        "end well" if own else "be refused",
        endless=False,
    )


@kind(times=3)
def value_of_data(rng: random.Random, folder: Path) -> Case:
    odd_files(folder)
    flag = rng.choice(list(DESCRIPTION))
    value = rng.choice(DESCRIPTION[flag])
    base = ["data", rng.choice(["info", "info", "verify"])]
    base += (
        [f"--env={ENV}", "--path=own.npz"]
        if flag in ("--env", "--path", "--task", "--store") or rng.random() < 0.3
        else MAZE_FLAGS
    )
    if flag == "--picture":
        base[1] = "info"
    command = put_flag(rng, base, flag, value)
    known = len(value) > 2 and value.isprintable() and len(value) < 80
    return Case(
        command,
        f"{flag} {m.short(value)}",
        (leaf(flag), "path", "store", "base_url", *([value] if known else [])),
        codes=(1,),
        writes=("*.store*", "*/*.store*", *([value] if flag == "--directory" else [])),
    )


@kind(times=2)
def value_of_laboratory(rng: random.Random, folder: Path) -> Case:
    odd_files(folder)
    flag = rng.choice(list(LABORATORY))
    value = rng.choice(LABORATORY[flag])
    base = ["laboratory", "--quick", "--out=lab"]
    command = put_flag(rng, base, flag, value)
    known = len(value) > 2 and value.isprintable() and len(value) < 80
    return Case(
        command,
        f"{flag} {m.short(value)}",
        (flag, leaf(flag), *([value] if known else [])),
        "end well" if value in ("0x10", "1e3", "true", "9" * 400) else "be refused",
    )


@kind(times=3)
def large_number(rng: random.Random, folder: Path) -> Case:
    flag = rng.choice(["--episodes", "--num_envs", "--best_of_n", "--seed", "--video"])
    value = rng.choice([10**6, 10**9, 2**31, 2**63, 10**18, 10**40])
    return Case([*EVAL, f"{flag}={value}"], f"{flag} {value}", (flag, leaf(flag)), endless=True)


# -- spellings -----------------------------------------------------------------------------------

BASES = {
    "fit": NEW,
    "eval": EVAL,
    "generate": GENERATE,
    "data": ["data", "info", f"--env={ENV}", "--path=own.npz"],
    "laboratory": ["laboratory", "--quick", "--out=lab"],
}


@kind(times=3)
def unknown_flag(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(list(BASES))
    flag = rng.choice(
        [
            "--nothing", "--nothing=1", "-x", "-xyz=1", "--", "---", "--=", "--=1", "--data",
            "--data.", "--.x=1", "--model.nothing=1", "--trainer.nothing=1", "--a.b.c.d=1",
            "--x\ny=1", "--x\x00=1", "--\x1b[31m=1", "--ñ=1", "--" + "x" * 5000, "extra",
            "extra words", "@tiny.yaml", "--CONFIG=x", "--Episodes=1", "--epochs=5", "--lr=1",
            "--model.init_args.nothing=1", "--data.init_args.x=1", "--__class__=1",
            "--data.__class__=1", "--model+=x", "--trainer.callbacks+=5", "--data.task.x=1",
        ]
    )  # fmt: skip
    command = list(BASES[name])
    place = rng.randrange(1 if name != "data" else 2, len(command) + 1)
    if rng.random() < 0.4 and flag.startswith("--") and flag != "--":
        command.insert(place, flag)
    else:
        command.append(flag)
    word = flag.lstrip("-").partition("=")[0].strip("+.")
    # Of dashes alone there is nothing to name; `data` asks for its first word.
    return Case(
        command,
        f"{name} with {m.short(flag)}",
        m.shown_as(word) + m.shown_as(leaf(word)) + (("data",) if name == "data" else ())
        or ("--", "''"),
        must="end well" if flag == "--" else "be refused",
    )


@kind(times=3)
def value_missing(rng: random.Random, folder: Path) -> Case:
    name, flag = rng.choice(
        [("fit", f) for f in TRAINING]
        + [("eval", f) for f in EVALUATION if f != "--video"]
        + [("generate", f) for f in COLLECTION]
        + [("laboratory", f) for f in LABORATORY]
        + [("data", f) for f in DESCRIPTION]
    )
    command = list(BASES[name])
    form = rng.choice(["last", "before another flag", "empty"])
    if form == "last":
        command.append(flag)
    elif form == "empty":
        command.append(f"{flag}=")
    else:
        command[2 if name == "data" else 1 : 2 if name == "data" else 1] = [flag]
        if name == "eval":  # the run follows, and is no value
            command = ["eval", flag, "--episodes=1", "--workers=0", "--num_envs=1", "run"]
    # Nothing at all is a value of texts, paths and optional settings.
    must: Must = (
        "end well" if form == "empty" or name == "eval" and form != "last" else "be refused"
    )
    return Case(
        command,
        f"{name}: {flag} without a value, {form}",
        (leaf(flag), "run", "path", "expected"),
        must=must,
    )


@kind(times=3)
def right_spelling(rng: random.Random, folder: Path) -> Case:
    """Other ways to say the same."""
    words = rng.choice(
        [
            ["--seed", "3"], ["--seed=3"], ["--seed=03"], ["--seed", "3e0"],
            ["--seed", "7", "--seed", "3"], ["--seed=3", "--model.tau", "3"],
            ["--seed=3", "--model.init_args.tau=3"],
            ["--seed=3", "--data.task=1", "--task", "1"],
            ["--seed=3", "--trainer.max_steps", "4e0"], ["--seed=3", "--model.rho", "0.5"],
            ["--seed=3", "--model.learning_rate=1e-2"], ["--seed=3", "--data.sparse", "False"],
            ["--seed=3", "--data.sparse=no"], ["--seed=3", "--log.name=a b=c"],
            ["--seed=3", "--log.name", "größe"], ["--seed=3", "--log.name=null"],
            ["--seed=3", "--config", "tiny.yaml"], ["--seed=3", "-c", "tiny.yaml"],
        ]
    )  # fmt: skip

    def check(folder: Path, _: str) -> str | None:
        import yaml

        used = yaml.safe_load((folder / "new/config.yaml").read_text())
        return trained(folder) if used["seed"] == 3 else f"seed is {used['seed']}"

    command = [*NEW, *words]
    if rng.random() < 0.5:
        command = ["fit", *words, *NEW[1:]]
    return Case(command, f"fit with {words}", ("seed",), "be accepted", check)


@kind(times=3)
def odd_command(rng: random.Random, folder: Path) -> Case:
    word = rng.choice(
        [
            "", " ", "Fit", "fit ", "train", "evaluate", "--fit", "-", "--", "data", "data fit",
            "a\nb", "a\x00b", "\x1b[31m", "x" * 5000, "../fit", "qam_lightning.cli.fit", "ñ",
            "\udcff", "help", "--version", "-V", "eval.py", "__init__", "dispatch", "compose",
        ]
    )  # fmt: skip
    more = rng.choice([[], ["--help"], ["run"], ["--config=tiny.yaml"]])
    command = [word, *more]
    shown = word.strip() if word.isprintable() else ""
    helped = word in ("data",) and more == ["--help"]
    return Case(
        command,
        f"the command {m.short(word)} {more}",
        ("command", "data", shown or "command"),
        must="end well" if helped else "be refused",
    )


@kind(times=2)
def second_word(rng: random.Random, folder: Path) -> Case:
    command, place = rng.choice(
        [
            (["data"], "data"),
            (["data", ""], "data"),
            (["data", "Info"], "data"),
            (["data", "a\nb"], "data"),
            (["data", "--env=scene"], "data"),
            (["data", "info"], "env"),
            (["data", "verify", "info"], "info"),
            (["data", "info", "info", f"--env={ENV}", "--path=own.npz"], "info"),
            (["eval"], "RUN"),
            (["eval", ""], "run"),
            (["eval", "nothing"], "nothing"),
            (["eval", "run", "run"], "run"),
            (["eval", "own.npz"], "own.npz"),
            (["eval", "tiny.yaml"], "tiny.yaml"),
            (["eval", "/dev/null"], "/dev/null"),
            (["eval", "a\x00b"], "a\\x00b"),
            (["eval", "a\nb"], "a\\nb"),
            (["eval", "x" * 5000], "xxxx"),
            (["eval", "."], "last.ckpt"),
            (["eval", "run/checkpoints"], "last.ckpt"),
            (["fit"], "domain"),
            (["fit", "tiny.yaml"], "tiny.yaml"),
            (["fit", "--config"], "config"),
            (["generate"], "env"),
            (["generate", "scene"], "scene"),
            (["generate", "--env", "--dataset"], "env"),
            (["laboratory", "qam"], "qam"),
            (["load_policy", "~no_such_user/run"], "no_such_user"),
            (["load_policy", "nothing"], "nothing"),
            (["load_policy", "own.npz"], "own.npz"),
            (["load_policy", ""], "last.ckpt"),
            (["load_policy", "a\x00b"], "a\\x00b"),
            (["load_policy", "a\nb"], "a\\nb"),
            (["load_policy", "run/metrics/eval.csv"], "eval.csv"),
        ]
    )
    return Case(command, f"{command}", (place, "run", "checkpoint"), must="be refused")


@kind(times=2)
def help_anywhere(rng: random.Random, folder: Path) -> Case:
    """Help is given, whatever else is wrong with a command line."""
    name = rng.choice(list(BASES))
    command = [*BASES[name], rng.choice(["--help", "-h"])]
    rng.shuffle(tail := command[2 if name == "data" else 1 :])
    command = [*command[: 2 if name == "data" else 1], *tail]
    check = lambda folder, out: None if "--" in out and not (folder / "new").exists() else "no help"  # noqa: E731
    return Case(command, f"help of {name}", ("help",), "be accepted", check)


# -- places --------------------------------------------------------------------------------------


@kind(times=4)
def run_dir(rng: random.Random, folder: Path) -> Case:
    odd_files(folder)
    value = rng.choice(
        [
            *NAMES, "run/../new", "new/", "a b", "größe", "100%", "new\n", "deep/er/and/deeper",
            "~/runs/x", "own.npz/x", "run", "run/", "./run", "link",
        ]
    )  # fmt: skip
    (folder / "link").symlink_to("run")
    holds = value in ("run", "run/", "./run", "link")
    bad = (
        holds
        or value
        in (
            "",
            " ",
            "/proc",
            "/dev/null",
            "/dev/zero",
            "/proc/self/mem",
            "/proc/1/x",
            "own.npz",
            "own.npz/x",
            "tiny.yaml/x",
            "loop",
            "pipe",
            "x" * 300,
            "x" * 5000,
            "a\x00b",
        )
        or "\x00" in value
    )
    fine = value in ("new/", "a b", "größe", "deep/er/and/deeper", "run/../new", "100%", "~/runs/x")
    command = [*FIT, f"--run_dir={value}"]
    known = len(value) > 2 and value.isprintable() and len(value) < 80

    def check(folder: Path, _: str) -> str | None:
        where = folder / value if not value.startswith("~/") else folder.parent / "home" / value[2:]
        return trained(where.parent, where.name) if fine else None

    return Case(
        command,
        f"run_dir is {m.short(value)}",
        ("run_dir", *([value] if known else [])),
        "be refused" if bad else "be accepted" if fine else "end well",
        check,
    )


@kind(times=3)
def output(rng: random.Random, folder: Path) -> Case:
    odd_files(folder)
    value = rng.choice(
        [
            "run", "own.npz", "tiny.yaml/x.json", "own.npz/x", "", ".", "/", "/dev/null/x",
            "/proc/1/x.json", "x" * 300, "x" * 5000, "a\x00b", "dangling", "loop", "pipe",
            "new/deep/x.json", "größe.json", "a\nb.json", "~/x.json", "/dev/full",
        ]
    )  # fmt: skip
    fine = value in ("new/deep/x.json", "größe.json", "~/x.json", "a\nb.json")
    known = len(value) > 2 and value.isprintable() and len(value) < 80

    def check(folder: Path, _: str) -> str | None:
        where = folder / value if not value.startswith("~/") else folder.parent / "home" / value[2:]
        return None if not fine or where.is_file() else f"{value!r} was not written"

    return Case(
        [*EVAL, f"--output={value}"],
        f"--output {m.short(value)}",
        ("--output", *([value] if known else [])),
        "be accepted" if fine else "end well" if value == "dangling" else "be refused",
        check,
    )


@kind(times=2)
def download(rng: random.Random, folder: Path) -> Case:
    """Data that are not there, from places that do not give them."""
    url = rng.choice(
        [
            "http://127.0.0.1:9", "https://127.0.0.1:9", "file:///etc", "ftp://127.0.0.1:9",
            "nonsense", "", "http://", "http://[", "http://127.0.0.1:99999", "http://a b",
            "http://a\nb", "data:text/plain,x", "javascript:x", "/etc", "http://\x00",
            "http://user:pass@127.0.0.1:9",
        ]
    )  # fmt: skip
    if rng.random() < 0.5:
        return Case(
            [
                *NEW,
                "--data.path=null",
                f"--data.env={MAZE}",
                "--data.dataset=navigate",
                "--data.directory=empty",
                f"--data.base_url={url}",
            ],
            f"base_url {url!r}",
            ("base_url", "navigate", "download", url or "download"),
            must="be refused",
            writes=("empty", "empty/*"),
        )
    return Case(
        ["data", "info", f"--env={MAZE}", "--dataset=navigate", "--directory=empty"],
        f"QAM_DATA_URL {url!r}",
        ("QAM_DATA_URL", "navigate", "download"),
        must="be refused",
        writes=("empty", "empty/*"),
        environment={"QAM_DATA_URL": url or "x"} if "\x00" not in url else {},
    )


# -- what is around a command --------------------------------------------------------------------


@kind(times=3)
def variable(rng: random.Random, folder: Path) -> Case:
    name, value = rng.choice(
        [
            ("RANK", "1"), ("LOCAL_RANK", "1"), ("RANK", "x"), ("SLURM_PROCID", "1"),
            ("SLURM_LOCALID", "1"), ("JSM_NAMESPACE_RANK", "1"), ("WORLD_SIZE", "x"),
            ("HOME", "/proc/nowhere"), ("HOME", "own.npz"),
            ("TMPDIR", "/proc/nowhere"), ("COLUMNS", "0"), ("COLUMNS", "-5"), ("COLUMNS", "x"),
            ("LINES", "0"), ("TERM", "\x1b"), ("NO_COLOR", "1"), ("FORCE_COLOR", "1"),
            ("MUJOCO_GL", "nonsense"), ("WANDB_MODE", "nonsense"), ("WANDB_PROJECT", "a\nb"),
            ("LANG", "nonsense"), ("PATH", ""), ("PATH", None), ("PL_GLOBAL_SEED", "x"),
            ("PL_FIT__TRAINER__MAX_STEPS", "9"), ("CUDA_VISIBLE_DEVICES", "nonsense"),
            ("SLURM_JOB_ID", "5"), ("QAM_DATA_URL", "a\nb"), ("PYTHONHASHSEED", "x"),
            ("OMP_NUM_THREADS", "x"),
        ]
    )  # fmt: skip
    # Of a run that exists, nothing may be lost, whatever a launcher left behind.
    if rng.random() < 0.5:
        return Case(
            FIT,
            f"{name}={value!r}, and a run is there",
            ("run", name),
            "be refused",
            environment={name: value},
        )
    rank = "RANK" in name or "SLURM" in name or name == "WORLD_SIZE"
    return Case(
        RESUME,
        f"{name}={value!r}, resumed",
        (name, "run"),
        "end well" if rank else "be accepted",
        lambda f, _: trained(f, "run", 8),
        environment={name: value},
        writes=("run/*",) if rank else (),
    )
