"""Configuration files: shipped, stored, written by hand; spoilt as text and as trees; hostile."""

import base64
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import yaml

from qam_lightning.util.configs import CONFIGS
from tests.fuzz import mutations as m
from tests.fuzz.case import Case, Group, Must
from tests.fuzz.harness import EXECUTED
from tests.fuzz.sound import TINY, trained

GROUP = Group("configurations")
kind = GROUP.kind

Tree = dict[str, Any]

SIZES = [
    "model.init_args.width", "model.init_args.depth", "model.init_args.num_critics",
    "model.init_args.flow_steps", "model.init_args.best_of_n", "data.horizon",
    "data.batch_size", "evaluation.num_envs", "online.num_envs", "threads",
]  # fmt: skip
"""Settings whose size is memory or threads."""

WORK = ["trainer.max_steps", "evaluation.episodes", "online.steps", "data.prefetch"]
"""Settings whose size is time."""


# -- files ---------------------------------------------------------------------------------------


def stored(folder: Path) -> Tree:
    """The configuration that the sound run stored, with every setting."""
    tree: Tree = yaml.safe_load((folder / "run/config.yaml").read_text())
    return tree


def base(rng: random.Random, folder: Path) -> Tree:
    """The stored configuration, or the short one from which it came."""
    return stored(folder) if rng.random() < 0.7 else json.loads(json.dumps(TINY))


def save(folder: Path, content: Any, name: str = "mine.yaml") -> Path:
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def case(
    about: str,
    *places: str,
    must: Must = "end well",
    file: str = "mine.yaml",
    tiny: bool = False,
    **more: Any,
) -> Case:
    """A run with the file ``mine.yaml``; with ``tiny``, the sound file overrides it."""
    command = [
        "fit",
        f"--config={file}",
        *(["--config=tiny.yaml"] if tiny else []),
        "--run_dir=new",
    ]
    more.setdefault("check", lambda folder, _: as_asked(folder, file, tiny))
    return Case(command, about, (*places, Path(file).name or "config"), must, **more)


# -- the result ----------------------------------------------------------------------------------


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Values by key as on the command line."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def same(asked: Any, found: Any) -> bool:
    """Whether two values mean the same: 4, 4.0 and '4e0' do."""
    if asked == found or str(asked) == str(found):
        return True
    try:
        return math.isclose(float(asked), float(found), rel_tol=1e-12)
    except (TypeError, ValueError):
        return isinstance(asked, float) and math.isnan(asked) and str(found) in (".nan", "nan")


def as_asked(folder: Path, file: str, tiny: bool) -> str | None:
    """Check that the run has every value of its file, and that it is complete."""
    asked = flat(yaml.safe_load((folder / file).read_text(encoding="utf-8-sig")) or {})
    if tiny:
        asked |= flat(TINY)
    used = flat(yaml.safe_load((folder / "new/config.yaml").read_text()))
    for key, value in asked.items():
        derived = key in ("include", "run_dir", "ckpt_path", "model") or value in (None, {})
        if derived or "${" in str(value):
            continue
        if key not in used:
            return f"{key} is left out"
        if not same(value, used[key]):
            return f"{key} is {m.short(used[key])}, asked for {m.short(value)}"
    steps = used["trainer.max_steps"]
    if used["online.steps"]:
        steps += (
            max(0, used["online.steps"] - used["online.learning_starts"]) * used["online.utd_ratio"]
        )
    return trained(folder, steps=int(steps))


# -- trees ---------------------------------------------------------------------------------------


def leaf(rng: random.Random, tree: Tree) -> m.Keys:
    """The keys of a value that is no section; tuned values of other domains matter to nobody."""
    out = ("tuned", "compile")  # compiling takes a minute
    found = [
        k
        for k in m.keys_of(tree)
        if not {k[0], k[-1]} & {*out} and not isinstance(m.value_at(tree, k), dict)
    ]
    return rng.choice(found)


@kind(times=5)
def wrong_value(rng: random.Random, folder: Path) -> Case:
    tree = base(rng, folder)
    keys = leaf(rng, tree)
    value = m.wrong(rng, m.value_at(tree, keys))
    if keys[-1] == "store" and "EVIL" in str(value):
        value = "new/store"  # the user's own word decides where that is
    if m.dotted(keys) in (*SIZES, *WORK) and isinstance(value, int) and value > 1000:
        value = -value
    save(folder, m.put(tree, keys, value))
    return case(f"{m.dotted(keys)}: {m.short(value)}", str(keys[-1]), "mine.yaml")


@kind(times=2)
def huge_size(rng: random.Random, folder: Path) -> Case:
    tree, key = stored(folder), rng.choice(SIZES)
    value = rng.choice([10**5, 10**7, 2**31 - 1, 2**31, 10**9, 2**40, 10**15, 2**63, 10**400])
    keys = tuple(key.split("."))
    save(folder, m.put(tree, keys, value))
    slow = keys[-1] in ("flow_steps", "best_of_n", "num_envs")  # the rest is built first
    return case(f"{key}: {m.short(value)}", keys[-1], "memory", endless=slow)


@kind()
def huge_work(rng: random.Random, folder: Path) -> Case:
    tree, key = stored(folder), rng.choice(WORK)
    value = rng.choice([10**7, 2**31, 10**12, 2**63, 10**400])
    keys = tuple(key.split("."))
    save(folder, m.put(tree, keys, value))
    return case(f"{key}: {m.short(value)}", keys[-1], endless=True)


@kind(times=2)
def section_of_another_type(rng: random.Random, folder: Path) -> Case:
    tree = base(rng, folder)
    keys = rng.choice([k for k in m.keys_of(tree) if isinstance(m.value_at(tree, k), dict)])
    value = rng.choice([5, "text", True, [], [1, {"a": 2}], 1.5, {}, None, ""])
    save(folder, m.put(tree, keys, value))
    empty = value in (None, {}) and keys[-1] in ("evaluation", "progress", "checkpoints", "log")
    return case(
        f"{m.dotted(keys)}: {value!r}", *map(str, keys), must="be accepted" if empty else "end well"
    )


@kind(times=2)
def misspelt_key(rng: random.Random, folder: Path) -> Case:
    tree = base(rng, folder)
    keys = leaf(rng, tree)
    name = str(keys[-1])
    i = rng.randrange(len(name))
    spelt = rng.choice(
        [
            name[:i] + name[i + 1 :] + "q", name + "s", name.upper() + "X", f" {name}",
            name + "\u200b", name.replace("e", "\u0435") + "\u0435", f"__{name}__",
            f"{name}.{name}", f"{name}+", f"--{name}", "__class__", "class_path", "dict_kwargs",
            "x" * 3000, "a\nb", "a\x00b", "\x1b[2J",
        ]
    )  # fmt: skip
    value = m.value_at(tree, keys)
    save(
        folder,
        m.put(
            m.without(tree, keys),
            keys[:-1],
            {**m.value_at(m.without(tree, keys), keys[:-1]), spelt: value},
        ),
    )
    return case(f"{m.dotted(keys)} is spelt {spelt[:40]!r}", must="be refused")


@kind(times=2)
def key_of_another_type(rng: random.Random, folder: Path) -> Case:
    tree = stored(folder)
    sections = [(), *(k for k in m.keys_of(tree) if isinstance(m.value_at(tree, k), dict))]
    keys = rng.choice(sections)
    key = rng.choice(
        [
            "5", "null", "~", "true", "1.5", ".nan", "''", "2020-01-01", "? [a, b]\n",
            "? {a: b}\n", "!!binary aGk=", "<<", "-1", "0x1F", "''''", "!!set {a}",
        ]
    )  # fmt: skip
    text = yaml.safe_dump(tree, sort_keys=False)
    indent = "  " * len(keys)
    entry = f"{indent}{key}: 1\n" if not key.startswith("?") else f"{indent}{key}{indent}: 1\n"
    if keys:
        pattern = "".join(
            rf"(?:.*\n)*?{'  ' * i}{re.escape(str(k))}:\n" for i, k in enumerate(keys)
        )
        place = re.match(pattern, text)
        assert place, keys
        text = text[: place.end()] + entry + text[place.end() :]
    else:
        text = entry + text
    save(folder, text)
    return case(
        f"{key!r} is a key of {m.dotted(keys) or 'the file'}", "mine.yaml", must="be refused"
    )


@kind()
def key_missing(rng: random.Random, folder: Path) -> Case:
    tree = base(rng, folder)
    keys = rng.choice([k for k in m.keys_of(tree) if k[0] not in ("tuned", "online", "trainer")])
    save(folder, m.without(tree, keys))
    about = f"{m.dotted(keys)} is missing"
    # The rest decides: the file says what env the data are of, and so on.
    return case(
        about,
        str(keys[-1]),
        "mine.yaml",
        "env",
        "horizon",
        "domain",
        endless=keys == ("evaluation",),
    )


@kind()
def key_moved(rng: random.Random, folder: Path) -> Case:
    tree = stored(folder)
    keys = rng.choice(
        [k for k in m.keys_of(tree) if len(k) == 2 and k[0] not in ("tuned", "model")]
    )
    value = m.value_at(tree, keys)
    to = rng.choice(
        [
            k
            for k in ("trainer", "data", "log", "evaluation", "progress", "online")
            if keys[1] not in tree[k]
        ]
    )
    tree = m.without(tree, keys)
    save(folder, {**tree, to: {**tree[to], keys[1]: value}})
    return case(f"{m.dotted(keys)} stands in {to}", keys[1], must="be refused")


@kind()
def twice(rng: random.Random, folder: Path) -> Case:
    lines = yaml.safe_dump(base(rng, folder), sort_keys=False).splitlines()
    i = rng.choice([i for i, line in enumerate(lines) if re.match(r" *\w+:", line)])
    indent = len(lines[i]) - len(lines[i].lstrip())
    # At the end of its own section, so that the structure is unchanged.
    j = next(
        (
            j
            for j in range(i + 1, len(lines))
            if len(lines[j]) - len(lines[j].lstrip()) < indent
            and not lines[j].lstrip().startswith("- ")
        ),
        len(lines),
    )
    key = lines[i].strip().partition(":")[0]
    form = rng.choice([key, f'"{key}"', f"'{key}'"])
    save(folder, "\n".join([*lines[:j], f"{' ' * indent}{form}: 1", *lines[j:]]) + "\n")
    return case(f"{key} stands on lines {i + 1} and {j + 1}", key, must="be refused")


@kind()
def dotted_key(rng: random.Random, folder: Path) -> Case:
    """Flags are dotted; keys of files may not be, or mean the same."""
    save(folder, {**json.loads(json.dumps(TINY)), "trainer.max_steps": 5})
    return case(
        "the key trainer.max_steps beside the section trainer",
        "trainer.max_steps",
        must="be refused",
    )


@kind(times=2)
def interpolation(rng: random.Random, folder: Path) -> Case:
    tree = stored(folder)
    keys = leaf(rng, tree)
    text = rng.choice(
        [
            "${nothing}", "${nothing.at.all}", "${data}", "${.}", "${..}", "${", "$}", "${}",
            "${${domain}}", "${oc.env:HOME}", "${oc.env:NOTHING_SET}", "${oc.create:{a: 1}}",
            "${eval:1+1}", "${oc.decode:'!!python/object/apply:os.system [ls]'}",
            f"${{{m.dotted(keys)}}}", "${trainer.max_steps", "${seed:1}",
            "${tuned.${domain}.tau}", "$${x}", "\\${x}", "${a b}", "${data.env}", "${tuned}",
            "${" * 500 + "}" * 500,
        ]
    )  # fmt: skip
    save(folder, m.put(tree, keys, text))
    return case(
        f"{m.dotted(keys)}: {text[:60]}",
        str(keys[-1]),
        "mine.yaml",
        "domain",
        check=None,
        endless="max_steps" in keys or "steps" in keys,
    )


@kind(times=2)
def label(rng: random.Random, folder: Path) -> Case:
    tree, key = json.loads(json.dumps(TINY)), rng.choice(["domain", "method", "tuned_as"])
    value = rng.choice(
        [
            5, True, 1.5, [], ["scene"], {}, {"a": 1}, "", " ", "Scene", "scene ",
            "../configs/scene", "/etc/passwd", "methods/qam", "QAM", "qam.yaml", "base",
            "scene\nqam", "sc\x00ne", "x" * 4000, "\u202escene", "-", "--", "*",
            "qam_lightning.methods.qam.QAM", "null", "quickstart_cube",
        ]
    )  # fmt: skip
    save(folder, tree | {key: value})
    return case(f"{key}: {value!r:.60}", key, "tau", check=None)


@kind(times=2)
def class_path(rng: random.Random, folder: Path) -> Case:
    tree = stored(folder)
    value = rng.choice(
        [
            "", "QAM", "qam", "qam_lightning", "qam_lightning.methods.base.Method",
            "qam_lightning.Method", "torch.nn.Linear", "os.system", "builtins.eval",
            "builtins.dict", "json.JSONDecoder", "no.such.Class", "qam_lightning.methods.qam",
            "qam_lightning.methods.qam.QAM.losses", "qam_lightning.methods.qam.Batch", ".",
            "..", "a..b", ".qam.QAM", "qam_lightning.methods.fql.FQL",
            "qam_lightning.methods.qam.qam", "qam_lightning.methods.qam.QAM ",
            "subprocess.Popen", "x" * 3000, "a\nb.C", "a\x00b.C", "posixpath.join",
            "typing.Any", "sys.exit", "antigravity.x",
        ]
    )  # fmt: skip
    if rng.random() < 0.7:
        del tree["method"]  # which names another class
    save(folder, m.put(tree, ("model", "class_path"), value))
    return case(
        f"model.class_path: {value[:60]!r}",
        "model",
        must="end well" if "qam_lightning." in value or value.lower() == "qam" else "be refused",
        check=None,
    )


@kind(times=2)
def lightning_part(rng: random.Random, folder: Path) -> Case:
    tree = stored(folder)
    key, value = rng.choice(
        [
            (
                "callbacks",
                [
                    {
                        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
                        "init_args": {"monitor": "nothing"},
                    }
                ],
            ),
            (
                "callbacks",
                [
                    {
                        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                        "init_args": {"monitor": "nothing", "dirpath": "new/other"},
                    }
                ],
            ),
            (
                "callbacks",
                [
                    {
                        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                        "init_args": {"save_top_k": -5},
                    }
                ],
            ),
            (
                "callbacks",
                [
                    {
                        "class_path": "lightning.pytorch.callbacks.GradientAccumulationScheduler",
                        "init_args": {"scheduling": {0: 2}},
                    }
                ],
            ),
            (
                "callbacks",
                [
                    {
                        "class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging",
                        "init_args": {"swa_lrs": 0.1},
                    }
                ],
            ),
            ("callbacks", [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]),
            ("callbacks", [{"class_path": "lightning.pytorch.callbacks.DeviceStatsMonitor"}]),
            (
                "callbacks",
                [
                    {
                        "class_path": "lightning.pytorch.callbacks.Timer",
                        "init_args": {"duration": "nonsense"},
                    }
                ],
            ),
            ("callbacks", [{"class_path": "no.such.Callback"}]),
            (
                "callbacks",
                [{"class_path": "os.system", "init_args": {"command": f"touch ../{EXECUTED}"}}],
            ),
            (
                "callbacks",
                [
                    {
                        "class_path": "qam_lightning.callbacks.checkpoints.Checkpoints",
                        "init_args": {"run_dir": "other"},
                    }
                ],
            ),
            ("callbacks", [5]),
            ("callbacks", {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}),
            ("callbacks", "LearningRateMonitor"),
            (
                "logger",
                [
                    {
                        "class_path": "lightning.pytorch.loggers.CSVLogger",
                        "init_args": {"save_dir": "tiny.yaml"},
                    }
                ],
            ),
            ("logger", [{"class_path": "lightning.pytorch.loggers.NeptuneLogger"}]),
            (
                "logger",
                [
                    {
                        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                        "init_args": {"save_dir": "new/tb"},
                    }
                ],
            ),
            ("logger", {"class_path": "builtins.print"}),
            ("logger", True),
            (
                "accelerator",
                rng.choice(["tpu", "hpu", "mps", "gpu", "cuda", "CPU", "quantum", "auto"]),
            ),
            ("devices", rng.choice([0, -1, "", "0,", [0, 1], [], "auto", [5], "many", 10**6])),
            (
                "strategy",
                rng.choice(["ddp_spawn", "fsdp", "deepspeed", "xla", "nonsense", "single_tpu"]),
            ),
            (
                "precision",
                rng.choice(
                    [
                        "16-mixed",
                        "bf16-true",
                        "8-bit",
                        "64",
                        "32",
                        "transformer-engine",
                        "16-true",
                        "",
                    ]
                ),
            ),
            ("deterministic", rng.choice(["warn", "maybe", 2, "true"])),
            ("num_nodes", rng.choice([0, -1, 3])),
        ]
    )
    save(folder, m.put(tree, ("trainer", key), value))
    inner = (
        str(value[0].get("class_path", "")).rpartition(".")[2]
        if isinstance(value, list) and value and isinstance(value[0], dict)
        else key
    )
    # A mistake that only training shows may leave the run's own files.
    return case(
        f"trainer.{key}: {m.short(value)}",
        key,
        inner,
        "trainer",
        "tiny.yaml",
        check=None,
        writes=("new", "new/*"),
    )


# -- text ----------------------------------------------------------------------------------------


@kind(times=5)
def damaged_text(rng: random.Random, folder: Path) -> Case:
    shipped = sorted(CONFIGS.rglob("*.yaml"))
    source = rng.choice([folder / "run/config.yaml", folder / "tiny.yaml", *rng.sample(shipped, 2)])
    name, damage = rng.choice(list(m.TEXT_DAMAGE.items()))
    content = damage(rng, source.read_bytes())
    (folder / "mine.yaml").write_bytes(content)
    keys = set(re.findall(r"[A-Za-z_]{3,}", content.decode("latin-1")))
    return case(f"{source.name}, {name}: {m.short(content)}", *keys, tiny=True, check=None)


@kind(times=2)
def other_spelling(rng: random.Random, folder: Path) -> Case:
    """Texts that mean what the sound file means."""
    tree = json.loads(json.dumps(TINY))
    text = yaml.safe_dump(tree, sort_keys=False)
    name, made = rng.choice(
        [
            ("comments", re.sub(r"\n", "  # a: comment\n", text)),
            ("empty lines", text.replace("\n", "\n\n")),
            ("CRLF", text.replace("\n", "\r\n")),
            ("no line end", text.rstrip("\n")),
            ("byte order mark", "\ufeff" + text),
            ("JSON", json.dumps(tree)),
            ("JSON on lines", json.dumps(tree, indent=4)),
            ("keys in order", yaml.safe_dump(tree)),
            ("flow style", yaml.safe_dump(tree, default_flow_style=True, width=10**6)),
            ("quoted keys", re.sub(r"(\w+):", r'"\1":', text)),
            ("wide indentation", yaml.safe_dump(tree, sort_keys=False, indent=7)),
            ("document marks", f"---\n{text}...\n"),
            ("a directive", f"%YAML 1.1\n---\n{text}"),
            ("spaces at line ends", text.replace("\n", "   \n")),
            ("an exponent", text.replace("max_steps: 4", "max_steps: 4e0")),
            ("a float", text.replace("max_steps: 4", "max_steps: 4.0")),
            ("an anchor", text.replace("horizon: 3", "horizon: &h 3")),
            ("non-ASCII comment", "# Größe 尺寸 \U0001f600\n" + text),
            ("tags of the standard", text.replace("max_steps: 4", "max_steps: !!int 4")),
        ]
    )
    (folder / "mine.yaml").write_bytes(made.encode())
    return case(name, must="be accepted")


@kind(times=2)
def no_mapping(rng: random.Random, folder: Path) -> Case:
    text = rng.choice(
        [
            "", "\n\n", "# only\n# comments\n", "null\n", "~", "5", "text", "- a\n- b\n",
            "'quoted'", "---\n---\n", "a: 1\n---\nb: 2\n", "...", "\x00", "\ufeff",
            "2020-01-01", "true", "[]", "{}", "!!null", "? a", ": b", "!!set {data}", "&a *a",
            "%", "@", "`", "|\n block", "- domain: scene",
        ]
    )  # fmt: skip
    save(folder, text)
    # Nothing at all is a file that sets nothing; it may be accepted, as the sound file follows.
    return case(f"the file is {text!r}", tiny=True, check=None)


# -- hostile -------------------------------------------------------------------------------------


@kind(times=2)
def payload(rng: random.Random, folder: Path) -> Case:
    touch = f"touch ../{EXECUTED}"
    code = rng.choice(
        [
            f"!!python/object/apply:os.system ['{touch}']",
            f"!!python/object/new:os.system ['{touch}']",
            f"!!python/object/apply:subprocess.check_output [['touch', '../{EXECUTED}']]",
            "!!python/name:os.system",
            "!!python/module:canary",
            "!!python/object:canary.Thing {}",
            f"!<tag:yaml.org,2002:python/object/apply:os.system> ['{touch}']",
            f"${{oc.env:X,'{touch}'}}",
            "!!binary " + base64.b64encode(b"touch").decode(),
            "!custom {a: 1}",
            "!!timestamp nonsense",
            "!!int nonsense",
            "!!float {}",
            "!!omap [a: 1]",
        ]
    )
    (folder / "canary.py").write_text(f"open('../{EXECUTED}', 'w')\nclass Thing: pass\n")
    keys = leaf(rng, TINY)
    text = yaml.safe_dump(m.put(TINY, keys, "PAYLOAD"), sort_keys=False).replace("PAYLOAD", code)
    save(folder, text)
    return case(f"{m.dotted(keys)}: {code}", str(keys[-1]), check=None)


@kind(times=2)
def expansion(rng: random.Random, folder: Path) -> Case:
    """Texts of few bytes that take much time, memory or depth."""
    harmless = ("a megabyte of spaces", "20,000 tuned domains", "a value of a megabyte")
    depth = rng.choice([200, 1000, 5000, 50_000])
    where = rng.choice(
        [
            "",
            "data: ",
            "tuned: ",
            "trainer:\n  callbacks: ",
            "model:\n  init_args:\n    tau: ",
            "domain: ",
        ]
    )
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 28)]
    maps = ["a0: &a0 {x: 1}"] + [
        f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 28)
    ]
    merges = ["a0: &a0 {x: 1}"] + [
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 28)
    ]
    about, text = rng.choice(
        [
            (f"{depth} lists in each other", f"{where}{'[' * depth}{']' * depth}"),
            (f"{depth} mappings in each other", f"{where}{'{a: ' * depth}1{'}' * depth}"),
            (f"{depth} open brackets", f"{where}{'[' * depth}"),
            (f"{depth} sequences in each other", f"{where}\n" + "- " * depth + "x"),
            ("lists that double", "\n".join(lines) + "\ndata: *a27\n"),
            ("mappings that double", "\n".join(maps) + "\ndata: *a27\n"),
            ("merges that double", "\n".join(merges) + "\ndata: *a27\n"),
            ("doubling within a section", "data:\n" + "".join(f"  {line}\n" for line in lines)),
            ("a list that holds itself", "tuned: &a [*a]\n"),
            ("a mapping that holds itself", "data: &a {b: *a}\n"),
            ("a file that holds itself", "&a\ndata: *a\n"),
            ("a value that holds itself", "trainer:\n  callbacks: &a [*a]\n"),
            ("a merge with itself", "data: &a {<<: *a}\n"),
            ("100,000 keys", "".join(f"k{i}: {i}\n" for i in range(100_000))),
            (
                "20,000 tuned domains",
                "tuned:\n" + "".join(f"  k{i}: {{tau: 1}}\n" for i in range(20_000)),
            ),
            ("a key of a megabyte", "x" * 1_000_000 + ": 1\n"),
            ("a value of a megabyte", "run_dir: " + "x" * 1_000_000 + "\n"),
            ("a megabyte of spaces", "domain: scene" + " " * 1_000_000 + "\n"),
            ("a number of 100,000 digits", "seed: " + "9" * 100_000 + "\n"),
            ("sexagesimal digits", "seed: " + "1:" * 50_000 + "1\n"),
            ("a long exponent", "seed: 1e999999999\n"),
            ("a megabyte of quotes", "domain: '" + "''" * 500_000 + "'\n"),
        ]
    )
    save(folder, text)
    return case(
        about,
        "mine.yaml",
        must="end well" if about in harmless else "be refused",
        tiny=True,
        check=None,
    )


@kind(times=3)
def include(rng: random.Random, folder: Path) -> Case:
    tree = json.loads(json.dumps(TINY))
    value: Any = rng.choice(
        [
            "mine.yaml", "other.yaml", "missing.yaml", "", ".", "run", "/dev/zero", "/dev/null",
            "own.npz", "loop.yaml", "dangling.yaml", "pipe.yaml", "empty.yaml",
            "../../EVIL.yaml", "sparse.yaml", 5, True, {}, {"a": 1}, [1], [None],
            [["tiny.yaml"]], [], "tiny.yaml", ["tiny.yaml", "tiny.yaml"], "./tiny.yaml", "tiny",
            "~", "a\nb", "a\x00b", "x" * 5000, "doubling0.yaml", "chain0.yaml",
            "http://127.0.0.1:9/x.yaml", "quickstart", "methods/qam.yaml", "base.yaml",
        ]
    )  # fmt: skip
    save(folder, {"include": "mine.yaml"}, "other.yaml")
    m.loop(folder / "loop.yaml")
    m.dangling(folder / "dangling.yaml")
    m.pipe(folder / "pipe.yaml")
    m.sparse(folder / "sparse.yaml")
    save(folder, "", "empty.yaml")
    if value == "doubling0.yaml":
        for i in range(28):
            save(
                folder,
                {"include": [f"doubling{i + 1}.yaml"] * 2} if i < 27 else {"seed": 1},
                f"doubling{i}.yaml",
            )
    if value == "chain0.yaml":
        for i in range(2000):
            save(
                folder,
                {"include": f"chain{i + 1}.yaml"} if i < 1999 else {"seed": 1},
                f"chain{i}.yaml",
            )
    save(folder, {"include": value} | tree)
    right = value in ([], "tiny.yaml", ["tiny.yaml", "tiny.yaml"], "./tiny.yaml", "tiny")
    either = right or value in (
        "quickstart",
        "methods/qam.yaml",
        "base.yaml",
        "empty.yaml",
        "chain0.yaml",
    )
    names = (
        ("include", "other.yaml", "doubling", "chain", "home", str(value))
        if value and isinstance(value, str)
        else ("include",)
    )
    return case(
        f"include: {m.short(value)}",
        *(n for n in names if len(n) < 80),
        must="be accepted" if right else "end well" if either else "be refused",
        check=None,
        tiny=True,
    )


@kind(times=3)
def file_name(rng: random.Random, folder: Path) -> Case:
    text = yaml.safe_dump(TINY, sort_keys=False)
    good = rng.random() < 0.4
    if good:
        name = rng.choice(
            [
                "my config.yaml", "größe.yaml", "gro\u0308sse.yaml", "尺寸.yaml", "100%.yaml",
                "a=b.yaml", "-x.yaml", "a.b.yaml", "UPPER.YAML", "noextension", "a'b\".yaml",
                "a;b.yaml", "{x}.yaml", "$HOME.yaml", "a#b.yaml", "a,b.yaml", "\u202eevil.yaml",
                "new\nline.yaml", "tab\t.yaml", "link.yaml", "[1].yaml", "*.yaml",
                "x" * 200 + ".yaml",
            ]
        )  # fmt: skip
        if name == "link.yaml":
            (folder / name).symlink_to("tiny.yaml")
        else:
            (folder / name).write_text(text)
        made = case(f"a sound file is named {name[:60]!r}", "config", must="be accepted", file=name)
    else:
        name = rng.choice(
            [
                "", " ", ".", "..", "/", "run", "own.npz", "missing.yaml", "x" * 300,
                "x" * 5000, "a\x00b", "a\nb", "\x1b[31m", "pipe", "loop", "dangling", "null",
                "zero", "sparse", "folder", "~no_such_user/x.yaml", "~", "/proc/self/mem",
                "\udcff.yaml", "tiny.yaml/", "tiny.yaml/x", "-", "--run_dir=x",
                "http://127.0.0.1:9/a.yaml", "run/checkpoints/last.ckpt", "scene,qam",
                "tiny.yaml,tiny.yaml",
            ]
        )  # fmt: skip
        for what, make in (
            ("pipe", m.pipe),
            ("loop", m.loop),
            ("dangling", m.dangling),
            ("null", m.null_device),
            ("zero", m.endless_device),
            ("sparse", m.sparse),
            ("folder", m.a_folder),
        ):
            make(folder / what)
        made = case(
            f"--config {m.short(name)}",
            "config",
            *([name] if 2 < len(name) < 60 and name.isprintable() else []),
            must="be refused",
            file=name,
            check=None,
        )
    if rng.random() < 0.5 and not name.startswith("-") and name:
        made.command[1:2] = ["--config", name]
    return made


@kind()
def order_of_files(rng: random.Random, folder: Path) -> Case:
    """Flags win over files, and later files over earlier ones, wherever the flags stand."""
    save(folder, {"seed": 1, "model": {"init_args": {"width": 8}}}, "first.yaml")
    save(folder, {"seed": 2}, "second.yaml")
    files = ["--config=tiny.yaml", "--config=first.yaml", "--config=second.yaml"]
    words = [*files, "--run_dir=new"]
    words.insert(rng.randrange(len(words) + 1), "--model.depth=2")

    def check(folder: Path, _: str) -> str | None:
        used = flat(yaml.safe_load((folder / "new/config.yaml").read_text()))
        found = [used[k] for k in ("seed", "model.width", "model.depth")]
        return None if found == [2, 8, 2] else f"seed, width, depth are {found}"

    return Case(["fit", *words], "three files and a flag", ("config",), "be accepted", check)
