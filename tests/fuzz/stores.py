"""Converted datasets and unfinished collections: manifests, arrays, labels, progress, parts."""

import io
import json
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import mutations as m
from tests.fuzz.case import Case, Group, Must
from tests.fuzz.data import Payload, archive, header, members
from tests.fuzz.harness import EXECUTED
from tests.fuzz.sound import ENV, GENERATE, MAZE_FLAGS, NAME, NEW, arrays, trained

GROUP = Group("stores")
kind = GROUP.kind

STORE = "own.store"
KEYS = ("observations", "actions", "rewards", "masks", "ends")


# -- commands ------------------------------------------------------------------------------------


def fit(folder: Path, about: str, *places: str, must: Must = "end well", **more: Any) -> Case:
    more.setdefault("check", lambda f, _: trained(f) or store_is_sound(f))
    return Case(NEW, about, (STORE, *places), must, **more)


def verify(folder: Path, about: str, *places: str, must: Must = "end well", **more: Any) -> Case:
    command = ["data", "verify", f"--env={ENV}", "--path=own.npz"]
    more.setdefault(
        "check",
        lambda f, out: (
            store_is_sound(f)
            if "fails" not in out and "differs" not in out and "changed" not in out
            else None
        ),
    )
    return Case(command, about, (STORE, *places), must, codes=(1,), **more)


def any_command(rng: random.Random, folder: Path, about: str, *places: str, **more: Any) -> Case:
    """Training, or verifying; with or without the npz file that the store came from."""
    if rng.random() < 0.4:
        (folder / "own.npz").unlink()
        about += ", the npz file is gone"
    return (fit if rng.random() < 0.7 else verify)(folder, about, *places, **more)


def store_is_sound(folder: Path) -> str | None:
    """Check that the store holds the sound arrays, whatever was done to it."""
    expected = arrays()
    inner = ~expected["terminals"]
    for key in KEYS:
        wanted = np.flatnonzero(~inner) if key == "ends" else expected[key]
        wanted = wanted if key in ("observations", "ends") else wanted[inner]
        if not np.array_equal(np.load(folder / f"{STORE}/{key}.npy"), wanted):
            return f"{key} of the store are not the sound ones"
    return None


# -- the manifest --------------------------------------------------------------------------------


def change_json(folder: Path, path: str, change: Callable[[Any], Any]) -> None:
    file = folder / path
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@kind(times=7)
def manifest_value(rng: random.Random, folder: Path) -> Case:
    tree = json.loads((folder / STORE / "manifest.json").read_text())
    keys = rng.choice([k for k in m.keys_of(tree) if k[0] != "versions" or rng.random() < 0.2])
    value = rng.choice(
        [m.wrong(rng, m.value_at(tree, keys)), m.value_at(tree, rng.choice(list(m.keys_of(tree))))]
    )
    change_json(folder, f"{STORE}/manifest.json", lambda t: m.put(t, keys, value))
    return any_command(
        rng, folder, f"manifest: {m.dotted(keys)} is {m.short(value)}", "manifest.json"
    )


@kind(times=3)
def manifest_key(rng: random.Random, folder: Path) -> Case:
    tree = json.loads((folder / STORE / "manifest.json").read_text())
    keys = rng.choice([k for k in m.keys_of(tree) if k[0] != "versions" and isinstance(k[-1], str)])
    tricks = [
        "../../../EVIL", "/tmp/EVIL", "a\x00b", "a\nb", "", ".", "../own", "x" * 5000, "ñ",
        "__class__",
    ]  # fmt: skip
    spelt = rng.choice([None, None, *tricks])
    value, rest = m.value_at(tree, keys), m.without(tree, keys)
    if spelt is not None:
        rest = m.put(rest, keys[:-1], {**m.value_at(rest, keys[:-1]), spelt: value})
    change_json(folder, f"{STORE}/manifest.json", lambda _: rest)
    return any_command(
        rng,
        folder,
        f"manifest: {m.dotted(keys)} is {'missing' if spelt is None else f'spelt {spelt[:40]!r}'}",
        "manifest.json",
    )


@kind(times=2)
def manifest_lies(rng: random.Random, folder: Path) -> Case:
    """Values of the right type that cannot be true."""
    keys, value = rng.choice(
        [
            (("source", 0, "rows"), -66), (("source", 0, "rows"), 10**6),
            (("source", 0, "rows"), 65), (("source", 0, "trajectories"), 0),
            (("source", 0, "trajectories"), 60), (("source", 0, "name"), "../../EVIL.npz"),
            (("source", 0, "name"), "/etc/passwd"), (("source",), []),
            (("layout", "observations"), [5, "float32", True]),
            (("layout", "observations"), [4, "float64", True]),
            (("layout", "observations"), [4, "O", True]),
            (("layout", "actions"), [-1, "float32", False]),
            (("layout", "actions"), [1, "float32", True]), (("layout",), {}),
            (("crc32", "ends"), 0), (("crc32", "actions"), -1), (("crc32", "extra"), 5),
            (("format",), 1), (("format",), 3), (("format",), True),
        ]
    )  # fmt: skip
    change_json(
        folder,
        f"{STORE}/manifest.json",
        lambda t: (
            m.put(t, keys, value)
            if keys[-1] != "extra"
            else {**t, "crc32": {**t["crc32"], "extra": 5}}
        ),
    )
    return any_command(rng, folder, f"manifest: {m.dotted(keys)} is {value!r}", "manifest.json")


@kind(times=4)
def manifest_text(rng: random.Random, folder: Path) -> Case:
    path = folder / STORE / "manifest.json"
    raw = path.read_bytes()
    hostile = {
        "empty": b"",
        "null": b"null",
        "a list": b"[]",
        "a number": b"5",
        "a string": b'"x"',
        "deep": b"[" * 100_000,
        "deep within": raw[:-2] + b', "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "NaN": raw.replace(b'"format": 2', b'"format": NaN'),
        "a huge number": raw.replace(b'"format": 2', b'"format": ' + b"9" * 10_000),
        "a key twice": raw.replace(b'"format": 2', b'"format": 1, "format": 2'),
        "UTF-16": raw.decode().encode("utf-16"),
        "with BOM": b"\xef\xbb\xbf" + raw,
        "a surrogate": raw.replace(b'"own.npz"', b'"\\ud800.npz"'),
        "100 MB": b" " * 100_000_000 + raw,
    }
    if rng.random() < 0.5:
        name = rng.choice(list(hostile))
        path.write_bytes(hostile[name])
    else:
        name, damage = rng.choice(list(m.TEXT_DAMAGE.items()))
        path.write_bytes(damage(rng, raw))
    return any_command(rng, folder, f"manifest: {name}", "manifest.json")


@kind(times=2)
def no_member(rng: random.Random, folder: Path) -> Case:
    member = rng.choice(["manifest.json", *(f"{key}.npy" for key in KEYS)])
    name, make = rng.choice([*m.NOT_FILES.items(), ("gone", m.gone)])
    make(folder / STORE / member)
    return any_command(rng, folder, f"{member} is {name}", member)


@kind(times=2)
def no_store(rng: random.Random, folder: Path) -> Case:
    name, make = rng.choice(
        [
            *m.NOT_FOLDERS.items(),
            ("an empty folder", m.an_empty_folder),
            ("another folder", m.a_folder),
            ("sparse", m.sparse),
        ]
    )
    make(folder / STORE)
    return any_command(rng, folder, f"the store is {name}", "own")


@kind()
def beside_the_store(rng: random.Random, folder: Path) -> Case:
    """Leftovers, and things in the way of a new conversion."""
    suffix = rng.choice([".tmp", ".lock", ".old"])
    name, make = rng.choice([*m.NOT_FILES.items(), ("a_file", m.a_file)])
    m.gone(folder / STORE)
    make(folder / f"{STORE}{suffix}")
    return fit(
        folder,
        f"{STORE}{suffix} is {name}, the store is gone",
        must="end well",
        writes=(f"{STORE}*",),
    )


# -- arrays --------------------------------------------------------------------------------------


def put_array(folder: Path, key: str, raw: bytes, honest: bool) -> None:
    """Replace an array; ``honest`` corrects its checksum, as somebody would who means it."""
    (folder / STORE / f"{key}.npy").write_bytes(raw)
    if honest:
        change_json(
            folder, f"{STORE}/manifest.json", lambda t: m.put(t, ("crc32", key), zlib.crc32(raw))
        )


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@kind(times=4)
def array_of_another_kind(rng: random.Random, folder: Path) -> Case:
    key = rng.choice(KEYS)
    a = np.load(folder / STORE / f"{key}.npy")
    other = rng.choice([k for k in KEYS if k != key])
    changes = [
        ("float64" if a.dtype != np.float64 else "int8", lambda: a.astype("float64")),
        ("int16", lambda: a.astype("int16")),
        ("complex", lambda: a.astype("complex64")),
        ("text", lambda: a.astype("U5")),
        ("objects", lambda: np.array([Payload()] * len(a), object)),
        ("big endian", lambda: a.astype(a.dtype.newbyteorder(">"))),
        ("0-d", lambda: a.flat[0].reshape(())),
        ("empty", lambda: a[:0]),
        ("one row less", lambda: a[:-1]),
        ("one row more", lambda: np.concatenate([a, a[-1:]])),
        ("twice as long", lambda: np.concatenate([a, a])),
        ("(N, 1)" if a.ndim == 1 else "flat", lambda: a[:, None] if a.ndim == 1 else a.reshape(-1)),
        ("one column more", lambda: np.concatenate([a.reshape(len(a), -1)] * 2, 1)),
        (
            "Fortran order, 2-d",
            lambda: np.asfortranarray(np.stack([a.reshape(len(a), -1)[:, 0]] * 3, 1)),
        ),
        (f"those of {other}", lambda: np.load(folder / STORE / f"{other}.npy")),
    ]
    name, make = rng.choice(changes)
    honest = rng.random() < 0.7
    put_array(folder, key, npy(make()), honest)
    about = f"{key}.npy: {name}{', checksum corrected' if honest else ''}"
    same = name in ("big endian", "float64")  # the values are the same
    return _bad(any_command(rng, folder, about, key, must="end well" if same else "be refused"))


def _bad(case: Case) -> Case:
    """A verification may also find the fault, with exit code 1."""
    if case.command[1] == "verify":
        case.must = "end well"
    return case


@kind(times=3)
def impossible_ends(rng: random.Random, folder: Path) -> Case:
    ends = np.load(folder / STORE / "ends.npy")
    name = rng.choice(
        [
            "beyond the rows", "before the rows", "negative", "falling", "equal", "last short",
            "of one row", "huge", "empty", "one too many", "first missing", "last missing",
            "shuffled",
        ]
    )  # fmt: skip
    e = ends.copy()
    if name == "beyond the rows":
        e[-1] = 500
    elif name == "before the rows":
        e[-1] = 60
    elif name == "negative":
        e[0] = -5
    elif name == "falling":
        e[2] = 3
    elif name == "equal":
        e[2] = e[1]
    elif name == "last short":
        e[-1] -= 1
    elif name == "of one row":
        e[1] = e[0] + 1
    elif name == "huge":
        e[-1] = 2**62
    elif name == "empty":
        e = e[:0]
    elif name == "one too many":
        e = np.append(e, 70)
    elif name == "first missing":
        e = e[1:]
    elif name == "last missing":
        e = e[:-1]
    else:
        e = e[::-1].copy()
    put_array(folder, "ends", npy(e), True)
    about = f"ends: {name}: {e.tolist()}"
    if rng.random() < 0.5:
        (folder / "own.npz").unlink()
        about += ", the npz file is gone"
    return fit(folder, about, "ends", must="be refused")


@kind(times=2)
def impossible_values(rng: random.Random, folder: Path) -> Case:
    """Values that no conversion would let through, with the right checksum."""
    key, value = rng.choice(
        [
            ("observations", np.nan),
            ("observations", np.inf),
            ("actions", np.nan),
            ("actions", 50.0),
            ("rewards", np.nan),
            ("rewards", -np.inf),
            ("masks", 7),
        ]
    )
    a = np.load(folder / STORE / f"{key}.npy")
    a[rng.randrange(len(a))] = value
    put_array(folder, key, npy(a), True)
    # Reading every value of a store at every start would take minutes: an update that is not finite
    # is refused where it shows, and `data verify` finds the rest.
    return Case(
        NEW,
        f"{key} hold {value}",
        (STORE, key, "diverged"),
        "end well",
        None,
        writes=("new", "new/*"),
    )


@kind(times=3)
def array_damaged(rng: random.Random, folder: Path) -> Case:
    """`data verify` finds every changed byte."""
    key = rng.choice(KEYS)
    path = folder / STORE / f"{key}.npy"
    raw = path.read_bytes()
    name, damage = rng.choice(list(m.DAMAGE.items()))
    path.write_bytes(damage(rng, raw))
    unchanged = path.read_bytes() == raw
    about = f"{key}.npy, {name}{' (unchanged)' if unchanged else ''}"
    if rng.random() < 0.5:
        check = (
            None if unchanged else lambda _, out: None if key in out else "the damage is not found"
        )
        return verify(folder, about, key, check=check)
    return fit(folder, about, key, check=None, writes=("new", "new/*"))


@kind()
def array_with_code(rng: random.Random, folder: Path) -> Case:
    key = rng.choice(KEYS)
    code = f"__import__('os').system('touch ../{EXECUTED}')"
    text, raw = rng.choice(
        [
            ("code in the header", header((60,), text=code)),
            (
                "code for a shape",
                header((60,), text=f"{{'descr': '<f4', 'fortran_order': False, 'shape': {code}}}"),
            ),
            ("a terabyte", header((2**38,)) + bytes(100)),
            ("negative rows", header((-5,)) + bytes(100)),
            ("2^62 rows", header((2**62, 4)) + bytes(100)),
            ("an archive", b"PK\x03\x04" + bytes(100)),
            ("items of a terabyte", header((60,), "|V1099511627776") + bytes(100)),
        ]
    )
    put_array(folder, key, raw, rng.random() < 0.5)
    return _bad(any_command(rng, folder, f"{key}.npy: {text}", key, must="be refused", check=None))


# -- an interrupted conversion -------------------------------------------------------------------


def interrupted(folder: Path) -> Path:
    """Turn the store into a conversion that was interrupted after everything was written."""
    made = folder / STORE
    temporary = folder / f"{STORE}.tmp"
    made.rename(temporary)
    manifest = json.loads((temporary / "manifest.json").read_text())
    (temporary / "manifest.json").unlink()
    sizes = {key: (temporary / f"{key}.npy").stat().st_size for key in KEYS}
    progress = {
        "layout": manifest["layout"],
        "source": manifest["source"],
        "done": 1,
        "bytes": sizes,
        "crc32": manifest["crc32"],
    }
    (temporary / "progress.json").write_text(json.dumps(progress))
    return temporary


@kind(times=3)
def progress_value(rng: random.Random, folder: Path) -> Case:
    temporary = interrupted(folder)
    tree = json.loads((temporary / "progress.json").read_text())
    keys = rng.choice(list(m.keys_of(tree)))
    if rng.random() < 0.3:
        change_json(folder, f"{STORE}.tmp/progress.json", lambda t: m.without(t, keys))
        about = "missing"
    else:
        value = m.wrong(rng, m.value_at(tree, keys))
        change_json(folder, f"{STORE}.tmp/progress.json", lambda t: m.put(t, keys, value))
        about = f"is {m.short(value)}"
    return fit(
        folder, f"progress: {m.dotted(keys)} {about}", "progress.json", writes=(f"{STORE}*",)
    )


@kind(times=2)
def progress_lies(rng: random.Random, folder: Path) -> Case:
    interrupted(folder)
    keys, value = rng.choice(
        [
            (("done",), 0),
            (("done",), -1),
            (("done",), 5),
            (("bytes", "actions"), 130),
            (("bytes", "ends"), 128),
            (("bytes", "actions"), 0),
            (("bytes", "actions"), -1),
            (("crc32", "actions"), 5),
        ]
    )
    change_json(folder, f"{STORE}.tmp/progress.json", lambda t: m.put(t, keys, value))
    return fit(
        folder, f"progress: {m.dotted(keys)} is {value}", "progress.json", writes=(f"{STORE}*",)
    )


@kind()
def progress_text(rng: random.Random, folder: Path) -> Case:
    path = interrupted(folder) / "progress.json"
    name, damage = rng.choice(list(m.TEXT_DAMAGE.items()))
    path.write_bytes(damage(rng, path.read_bytes()))
    return fit(folder, f"progress: {name}", "progress.json", writes=(f"{STORE}*",))


@kind()
def progress_arrays(rng: random.Random, folder: Path) -> Case:
    temporary = interrupted(folder)
    key = rng.choice(KEYS)
    path = temporary / f"{key}.npy"
    name, change = rng.choice(
        [
            *m.NOT_FILES.items(),
            ("gone", m.gone),
            ("cut", lambda p: p.write_bytes(p.read_bytes()[:-9])),
            ("longer", lambda p: p.write_bytes(p.read_bytes() + b"x" * 9)),
        ]
    )
    change(path)
    return fit(folder, f"{STORE}.tmp/{key}.npy: {name}", key, writes=(f"{STORE}*",))


# -- labels --------------------------------------------------------------------------------------

LABELS = f"maze/{NAME}.store/task1"


def labelled(folder: Path, about: str, *places: str, must: Must = "end well") -> Case:
    """Describing the maze, which computes labels again where they are not sound."""
    sound = {name: np.load(folder / "sound" / name) for name in ("rewards.npy", "masks.npy")}
    shutil.rmtree(folder / "sound")

    def check(folder: Path, out: str) -> str | None:
        for name, array in sound.items():
            if not np.array_equal(np.load(folder / LABELS / name), array):
                return f"{name} of the task are not the sound ones"
        return None

    return Case(
        ["data", "info", *MAZE_FLAGS],
        about,
        ("task1", *places),
        must,
        check,
        writes=(f"{LABELS}*", "maze/*.png"),
    )


@kind(times=4)
def labels(rng: random.Random, folder: Path) -> Case:
    place = folder / LABELS
    shutil.copytree(place, folder / "sound")
    file = rng.choice(["record.json", "rewards.npy", "masks.npy"])
    path = place / file
    raw = path.read_bytes()
    way = rng.choice(["damage", "not a file", "other", "not a folder"])
    if way == "damage":
        name, damage = rng.choice(list(m.DAMAGE.items()))
        if file != "record.json":  # a changed byte shows only where checksums are compared
            name, damage = rng.choice([("cut", m.cut), ("nothing", m.nothing), ("noise", m.noise)])
        path.write_bytes(damage(rng, raw))
    elif way == "not a file":
        name, make = rng.choice([*m.NOT_FILES.items(), ("gone", m.gone)])
        make(path)
    elif way == "not a folder":
        file = "task1"
        name, make = rng.choice(list(m.NOT_FOLDERS.items()))
        make(place)
    elif file == "record.json":
        tree = json.loads(raw)
        keys = rng.choice(list(m.keys_of(tree)))
        value = m.wrong(rng, m.value_at(tree, keys))
        name = f"{m.dotted(keys)} is {m.short(value)}"
        path.write_text(json.dumps(m.put(tree, keys, value)))
    else:
        a = np.load(path)
        name, array = rng.choice(
            [
                ("one less", a[:-1]),
                ("text", a.astype("U4")),
                ("objects", np.array([Payload()] * len(a), object)),
                ("0-d", np.array(1.0)),
                ("(N, 2)", np.stack([a, a], 1)),
                ("complex", a.astype("complex64")),
                ("int16", a.astype("int16")),
            ]
        )
        path.write_bytes(npy(array))
    return labelled(folder, f"{file}: {name}", file)


# -- unfinished collections ----------------------------------------------------------------------

PARTS = f"collection/{NAME}.parts"


def generated(folder: Path, about: str, *places: str, must: Must = "end well") -> Case:
    """Finishing the collection: refused, or the file that sound parts make."""
    with np.load(folder / f"maze/{NAME}.npz") as file:
        sound = {key: file[key] for key in file.files}

    def check(folder: Path, _: str) -> str | None:
        with np.load(folder / f"collection/{NAME}.npz", allow_pickle=False) as file:
            if set(file.files) != set(sound):
                return f"the file holds {file.files}"
            for key, array in sound.items():
                if not np.array_equal(file[key], array) or file[key].dtype != array.dtype:
                    return f"{key} are not those of sound parts"
        return None

    return Case(GENERATE, about, (NAME, *places), must, check)


@kind(times=4)
def part_of_other_arrays(rng: random.Random, folder: Path) -> Case:
    path = folder / PARTS / f"{rng.randrange(3):06d}.npz"
    with np.load(path) as file:
        found = {key: file[key] for key in file.files}
    key = rng.choice(list(found))
    a = found[key]
    wide = a.reshape(len(a), -1)
    name, made = rng.choice(
        [
            ("missing", None),
            ("float64", a.astype("float64") if a.dtype != np.float64 else a.astype("float32")),
            ("text", a.astype("U9")),
            ("objects", np.array([Payload()] * len(a), object)),
            ("one row less", a[:-1]),
            ("one row more", np.concatenate([a, a[-1:]])),
            ("0-d", np.array(1.0)),
            ("empty", a[:0]),
            ("one column more", np.concatenate([wide, wide], 1)),
            ("(N, 1, 1)", wide[:, :1, None]),
            ("NaN", np.full_like(a, np.nan) if a.dtype.kind == "f" else ~a.astype(bool)),
            ("complex", a.astype("complex64")),
        ]
    )
    found = {k: v for k, v in {**found, key: made}.items() if v is not None}
    if rng.random() < 0.1:
        found["more"] = a
        name += ", and one more array"
    archive(path, members(found))
    return generated(folder, f"{path.name}: {key}: {name}", path.name, key)


@kind(times=3)
def part_damaged(rng: random.Random, folder: Path) -> Case:
    path = folder / PARTS / f"{rng.randrange(3):06d}.npz"
    raw = path.read_bytes()
    way = rng.random()
    if way < 0.6:
        name, damage = rng.choice(list(m.DAMAGE.items()))
        path.write_bytes(damage(rng, raw))
    elif way < 0.8:
        name, make = rng.choice(list(m.NOT_FILES.items()))
        if name == "dangling":
            name, make = "a_folder", m.a_folder  # a dangling link is a missing part: collected
        make(path)
    else:
        name, content = rng.choice(
            [
                ("no members", {}),
                ("one text", {"a.txt": b"x"}),
                ("outside", {"../../EVIL.npy": b"x"}),
                ("not an array", {"observations.npy": b"x"}),
                ("another part twice", None),
            ]
        )
        if content is None:
            path.write_bytes((folder / "own.npz").read_bytes())
        else:
            archive(path, content)
    return generated(folder, f"{path.name}: {name}", path.name)


@kind(times=2)
def settings_of_parts(rng: random.Random, folder: Path) -> Case:
    path = folder / PARTS / "settings.json"
    tree = json.loads(path.read_text())
    way = rng.random()
    if way < 0.4:
        keys = rng.choice(list(m.keys_of(tree)))
        value = m.wrong(rng, m.value_at(tree, keys))
        path.write_text(json.dumps(m.put(tree, keys, value)))
        about = f"{m.dotted(keys)} is {m.short(value)}"
    elif way < 0.8:
        about, damage = rng.choice(list(m.TEXT_DAMAGE.items()))
        path.write_bytes(damage(rng, path.read_bytes()))
    elif way < 0.9:
        about, make = rng.choice([x for x in m.NOT_FILES.items()])
        make(path)
    else:
        about = rng.choice(["null", "[]", "5", '"x"', "[" * 50_000, "{}"])
        path.write_text(about)
    return generated(folder, f"settings.json: {about[:80]}", "settings.json", "parts")


@kind(times=2)
def in_the_way(rng: random.Random, folder: Path) -> Case:
    place = folder / "collection"
    what = rng.choice(
        [f"{NAME}.parts", f"{NAME}.npz", f"{NAME}-val.npz", f"{NAME}.json", "collection"]
    )
    name, make = rng.choice([*m.NOT_FILES.items(), ("a_file", m.a_file)])
    make(place if what == "collection" else place / what)
    case = generated(folder, f"{what} is {name}", what, "directory")
    if what in (f"{NAME}.parts", "collection") and name in ("an_empty_folder", "a_folder"):
        case.command = [*case.command, "--env=nothing"]  # else it collects, which takes processes
        case.places = ("env",)
    return case


@kind()
def more_parts(rng: random.Random, folder: Path) -> Case:
    """Files in the folder of parts that are none of its parts."""
    place = folder / PARTS
    name = rng.choice(
        ["000003.npz", "x.npz", ".000001.npz.77.tmp", "000001.npz~", "readme.txt", "-1.npz"]
    )
    (place / name).write_bytes(rng.choice([b"", b"x", (place / "000000.npz").read_bytes()]))
    return generated(folder, f"{name} beside the parts", name, must="be accepted")
