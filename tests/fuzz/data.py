"""Data files: arrays of other types and values, archives and headers that lie, odd folders."""

import io
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import mutations as m
from tests.fuzz.case import Case, Group, Must
from tests.fuzz.harness import EXECUTED
from tests.fuzz.sound import ENV, MAZE_FLAGS, NAME, NEW, arrays, trained

GROUP = Group("data")
kind = GROUP.kind

Arrays = dict[str, np.ndarray]

STORE = ("own.store*", "halves/*.store*")
"""What conversion leaves beside the files, where the files are sound."""


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch ../{EXECUTED}",)


# -- files ---------------------------------------------------------------------------------------


def header(
    shape: object,
    descr: object = "<f4",
    fortran: bool = False,
    version: bytes = b"\x01\x00",
    text: str | None = None,
) -> bytes:
    """The beginning of an npy file, true or not."""
    text = text or repr({"descr": descr, "fortran_order": fortran, "shape": shape})
    content = text.encode("latin-1") + b"\n"
    size = struct.pack(
        "<H" if version[0] == 1 else "<I",
        len(content) & 0xFFFF if version[0] == 1 else len(content),
    )
    return b"\x93NUMPY" + version + size + content


def members(found: Arrays) -> dict[str, bytes]:
    """The members of an npz file."""
    result = {}
    for key, array in found.items():
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=True)
        result[f"{key}.npy"] = stream.getvalue()
    return result


def archive(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in content.items():
            file.writestr(name, data)


def bomb(path: Path, name: str, beginning: bytes, size: int) -> None:
    """An archive whose member inflates to ``size`` zeros after its beginning."""
    content = members(arrays())
    content.pop(name, None)
    archive(path, content, zipfile.ZIP_DEFLATED)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open(name, "w", force_zip64=True) as member,
    ):
        member.write(beginning)
        block = bytes(1 << 24)
        for _ in range(size >> 24):
            member.write(block)


def store_is(expected: Arrays, rows: int | None = None) -> Callable[[Path, str], str | None]:
    """Check that the store holds exactly the arrays of the file."""

    def check(folder: Path, _: str) -> str | None:
        found = {
            key: np.load(folder / f"own.store/{key}.npy")
            for key in ("observations", "actions", "rewards", "masks", "ends")
        }
        inner = ~expected["terminals"].astype(bool).reshape(-1)
        wanted = {
            "observations": expected["observations"].astype(np.float32),
            "ends": np.flatnonzero(~inner),
        }
        for key in ("actions", "rewards", "masks"):
            wanted[key] = expected[key][inner].astype(found[key].dtype)
        for key, array in wanted.items():
            if not np.array_equal(found[key], array):
                return f"the store's {key} are not those of the file"
        return trained(folder) if (folder / "new").exists() else None

    return check


def case(
    rng: random.Random,
    about: str,
    *places: str,
    must: Must = "end well",
    path: str = "own.npz",
    check: Any = None,
    **more: Any,
) -> Case:
    """Training on the file, or describing it."""
    if rng.random() < 0.75:
        command = [*NEW, f"--data.path={path}"]
        check = check or (lambda folder, _: trained(folder))
    else:
        command = ["data", "info", f"--env={ENV}", f"--path={path}"]
    return Case(command, about, (Path(path).name, *places), must, check, **more)


def fresh(folder: Path) -> Arrays:
    """The sound arrays; their store is gone."""
    m.gone(folder / "own.store")
    return arrays()


def save(folder: Path, found: Arrays, compressed: bool = False) -> None:
    archive(
        folder / "own.npz",
        members(found),
        zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED,
    )


# -- arrays --------------------------------------------------------------------------------------

TYPES = [
    "float64", "float16", "int8", "int64", "uint8", "uint64", "bool", "complex64", "U5", "S5",
    "V4", "M8[s]", "m8[s]", ">f4", "longdouble", "object",
]  # fmt: skip
GOOD_TYPES = {
    "observations": {"float64", "float16", ">f4", "longdouble"},
    "actions": {"float64", "float16", ">f4", "longdouble"},
    "rewards": {"float64", "float16", ">f4", "longdouble", "int8", "int64", "uint8", "uint64"},
    "masks": {
        "float64",
        "float16",
        "int8",
        "int64",
        "uint8",
        "uint64",
        "bool",
        ">f4",
        "longdouble",
    },
    "terminals": {
        "float64",
        "float16",
        "int8",
        "int64",
        "uint8",
        "uint64",
        "bool",
        ">f4",
        "longdouble",
    },
}
"""Types whose values fit; the page on data says which."""


@kind(times=4)
def other_type(rng: random.Random, folder: Path) -> Case:
    found = fresh(folder)
    key, dtype = rng.choice(list(found)), rng.choice(TYPES)
    array = found[key]
    if dtype == "V4":
        array = np.zeros(array.shape, "V4")
    elif dtype in ("M8[s]", "m8[s]"):
        array = array.astype(np.int64).astype(dtype)
    else:
        array = array.astype(dtype)
    found[key] = array
    save(folder, found)
    good = dtype in GOOD_TYPES[key]
    whole = key == "actions" and array.dtype.kind in "iu"  # zeros, mostly
    odd = (
        whole
        or dtype == "longdouble"
        or (key == "rewards" and dtype == "bool")
        or (key == "terminals" and dtype == "float16")
    )
    return case(
        rng,
        f"{key} are {dtype}",
        key,
        must="end well" if odd else "be accepted" if good else "be refused",
        check=store_is(found) if good or odd else None,
    )


@kind(times=4)
def other_shape(rng: random.Random, folder: Path) -> Case:
    found = fresh(folder)
    key = rng.choice(list(found))
    a = found[key]
    name, array = rng.choice(
        [
            ("no rows", a[:0]),
            ("one row less", a[:-1]),
            ("one row more", np.concatenate([a, a[-1:]])),
            ("0-d", a.flat[0].reshape(())),
            ("one row", a[:1]),
            ("(N, 1, 1)", a.reshape(len(a), -1)[:, :1, None]),
            ("(1, N)", a.reshape(1, -1)),
            ("transposed", a.reshape(len(a), -1).T),
            ("one column more", np.concatenate([a.reshape(len(a), -1)] * 2, 1)),
            ("no columns", a.reshape(len(a), -1)[:, :0]),
            ("32 dimensions", a.reshape(len(a), *(1,) * 30, -1)),
            ("flat" if a.ndim > 1 else "(N, 1)", a.reshape(-1) if a.ndim > 1 else a[:, None]),
            ("twice as long", np.concatenate([a, a])),
            ("(N, 0, 5)", np.zeros((len(a), 0, 5), a.dtype)),
        ]
    )
    found[key] = array
    save(folder, found)
    # With terminals of other length, every other array has a row too many.
    return case(
        rng,
        f"{key}: {name}",
        key,
        *(found if key == "terminals" else ()),
        must="be refused" if array.shape != a.shape else "be accepted",
    )


@kind(times=3)
def other_values(rng: random.Random, folder: Path) -> Case:
    found = fresh(folder)
    row = rng.randrange(66)
    key, value = rng.choice(
        [
            *[
                (key, x)
                for key in ("observations", "actions", "rewards")
                for x in (np.nan, np.inf, -np.inf)
            ],
            *[("actions", x) for x in (1.5, -2, 1e30)],
            *[("masks", x) for x in (2, 255)],
            *[("terminals", x) for x in (2, -1, 0.5, np.nan)],
            ("observations", 1e38),
            ("rewards", 1e38),
        ]
    )
    if key == "terminals":
        found[key] = found[key].astype(np.float64)
    found[key][row] = value
    save(folder, found, rng.random() < 0.5)
    large = value == 1e38
    must: Must = "end well" if large else "be refused"
    return case(
        rng,
        f"{key}[{row}] is {value}",
        key,
        "diverged",
        "finite",
        must=must,
        writes=("new", "new/*", *STORE) if large else (),
    )


@kind()
def doubles_beyond_floats(rng: random.Random, folder: Path) -> Case:
    found, key = fresh(folder), rng.choice(["observations", "rewards"])
    found[key] = found[key].astype(np.float64)
    found[key][rng.randrange(66)] = rng.choice([1e39, -1e300])
    save(folder, found)
    return case(rng, f"{key} reach beyond float32", key, must="be refused")


@kind(times=2)
def other_ends(rng: random.Random, folder: Path) -> Case:
    found = fresh(folder)
    t = found["terminals"]
    name = rng.choice(
        ["none", "all", "last open", "first row", "two in a row", "one only", "short trajectories"]
    )
    if name == "none":
        t[:] = False
    elif name == "all":
        t[:] = True
    elif name == "last open":
        t[-1] = False
    elif name == "first row":
        t[0] = True
    elif name == "two in a row":
        t[20], t[21] = True, True
    elif name == "one only":
        t[:-1] = False
    else:
        t[:] = np.arange(1, 67) % 3 == 0
    save(folder, found)
    # Trajectories of two steps hold no whole chunk of three.
    if name == "short trajectories":
        return case(rng, name, "horizon", writes=STORE)
    return case(
        rng,
        f"terminals: {name}",
        "terminal",
        "trajectory",
        must="be accepted" if name == "one only" else "be refused",
    )


@kind()
def array_missing(rng: random.Random, folder: Path) -> Case:
    found = fresh(folder)
    key = rng.choice(list(found))
    array = found.pop(key)
    spelt = rng.choice([None, key.upper(), f"{key} ", key[:-1], f"data/{key}", f"{key}.npy"])
    if spelt:
        found[spelt] = array
    save(folder, found)
    return case(
        rng, f"{key} is {f'named {spelt!r}' if spelt else 'missing'}", key, must="be refused"
    )


@kind(times=2)
def array_unused(rng: random.Random, folder: Path) -> Case:
    """What is not asked for is not read."""
    found = fresh(folder)
    content = members(found)
    name, more = rng.choice(
        [
            ("a payload", {"infos.npy": members({"x": np.array([Payload()], object)})["x.npy"]}),
            ("text", {"readme.txt": b"hello"}),
            ("damaged", {"qpos.npy": b"\x93NUMPY\x01"}),
            ("empty", {"qpos.npy": b""}),
            ("a folder", {"folder/": b""}),
            ("outside", {"../../EVIL.npy": content["masks.npy"], "../EVIL": b"x"}),
            ("absolute", {"/tmp/EVIL.npy": b"x"}),
            ("a name with a line break", {"a\nb.npy": b"x"}),
            ("a name with NUL", {"a\x01b": b"x"}),
            ("no name", {".npy": b""}),
            ("10,000 members", {f"m{i}": b"" for i in range(10_000)}),
        ]
    )
    archive(folder / "own.npz", content | more)
    return case(rng, f"one more member: {name}", must="be accepted", check=store_is(found))


@kind(times=2)
def same_content(rng: random.Random, folder: Path) -> Case:
    """Other ways to write the same arrays."""
    found = fresh(folder)
    path = folder / "own.npz"
    name = rng.choice(
        [
            "Fortran order", "deflated", "bzip2", "lzma", "npy version 2", "npy version 3",
            "comment", "bytes before", "other order", "big endian", "a copy of a view", "zip64",
        ]
    )  # fmt: skip
    content = members(found)
    if name == "Fortran order":
        found["observations"] = np.asfortranarray(found["observations"])
        content = members(found)
    elif name.startswith("npy version"):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, found["actions"], version=(int(name[-1]), 0))
        content["actions.npy"] = stream.getvalue()
    elif name == "other order":
        content = dict(reversed(content.items()))
    elif name == "big endian":
        content = members({**found, "rewards": found["rewards"].astype(">f4")})
    elif name == "a copy of a view":
        content = members({**found, "observations": np.repeat(found["observations"], 2, 1)[:, ::2]})
    methods = {
        "deflated": zipfile.ZIP_DEFLATED,
        "bzip2": zipfile.ZIP_BZIP2,
        "lzma": zipfile.ZIP_LZMA,
    }
    archive(path, content, methods.get(name, zipfile.ZIP_STORED))
    if name == "comment":
        with zipfile.ZipFile(path, "a") as file:
            file.comment = b"hello " * 100
    elif name == "bytes before":
        path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    elif name == "zip64":
        with zipfile.ZipFile(path, "w") as file:
            for key, data in content.items():
                with file.open(key, "w", force_zip64=True) as member:
                    member.write(data)
    odd = name in ("npy version 3", "bytes before")
    return case(
        rng,
        f"the same arrays: {name}",
        must="end well" if odd else "be accepted",
        check=store_is(found),
    )


# -- headers and archives ------------------------------------------------------------------------


@kind(times=4)
def lying_header(rng: random.Random, folder: Path) -> Case:
    found = fresh(folder)
    content = members(found)
    key = rng.choice(["observations", "actions", "rewards", "terminals"])
    array = found[key]
    data, shape, descr = array.tobytes(), array.shape, array.dtype.str
    code = f"__import__('os').system('touch ../{EXECUTED}')"
    name, beginning = rng.choice(
        [
            ("more rows", header((10**6, *shape[1:]), descr)),
            ("2^62 rows", header((2**62, *shape[1:]), descr)),
            ("rows that overflow", header((2**63, 2**63), descr)),
            ("fewer rows", header((3, *shape[1:]), descr)),
            ("negative rows", header((-66, *shape[1:]), descr)),
            ("negative columns", header((66, -1), descr)),
            ("fractional rows", header((66.5, *shape[1:]), descr)),
            ("rows of text", header(("66",), descr)),
            ("no tuple", header(66, descr)),
            ("a list", header([66, *shape[1:]], descr)),
            ("Boolean rows", header((True, *shape[1:]), descr)),
            ("1,000 dimensions", header((66, *(1,) * 1000), descr)),
            ("Fortran, more rows", header((10**6, *shape[1:]), descr, True)),
            ("Fortran, 2^60 columns", header((66, 2**60), descr, True)),
            ("rows of a terabyte", header(shape, "|V1099511627776")),
            ("items of 2 GiB", header(shape, "|V2147483647")),
            ("items of no bytes", header(shape, "|V0")),
            ("objects", header(shape, "|O")),
            ("an unknown type", header(shape, "<q9")),
            ("a structure", header(shape, [("a", "<f4"), ("b", "<f4")])),
            ("a structure in itself", header(shape, [("a", [("b", "<f4")])])),
            ("a type that is a number", header(shape, 5)),
            ("code", header(shape, text=code)),
            (
                "code for a shape",
                header(shape, text=f"{{'descr': '<f4', 'fortran_order': False, 'shape': {code}}}"),
            ),
            ("no mapping", header(shape, text="[1, 2]")),
            ("no shape", header(shape, text="{'descr': '<f4', 'fortran_order': False}")),
            (
                "one key more",
                header(
                    shape, text="{'descr': '<f4', 'fortran_order': False, 'shape': (66,), 'x': 1}"
                ),
            ),
            ("deep brackets", header(shape, text="(" * 5000)),
            (
                "a huge header",
                header(
                    shape,
                    text="{'descr': '<f4', 'fortran_order': False, 'shape': (66,)}" + " " * 60_000,
                ),
            ),
            ("a header of 4 GiB", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"),
            ("npy version 9", header(shape, descr, version=b"\x09\x00")),
            ("another magic", b"\x94NUMPY" + header(shape, descr)[6:]),
            ("nothing", b""),
            ("NUL", header(shape, text="{\x00}")),
            (
                "Fortran is a text",
                header(shape, text=f"{{'descr': '<f4', 'fortran_order': 'yes', 'shape': {shape}}}"),
            ),
        ]
    )
    content[f"{key}.npy"] = beginning + data
    archive(folder / "own.npz", content, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    either = name in ("a huge header",)
    return case(
        rng, f"{key}: the header says {name}", key, must="end well" if either else "be refused"
    )


@kind()
def inflates(rng: random.Random, folder: Path) -> Case:
    """A megabyte that becomes gigabytes."""
    fresh(folder)
    key = rng.choice(["observations", "actions", "terminals", "rewards", "infos"])
    size = 3 << 29
    name, beginning = rng.choice(
        [
            ("Fortran, few rows", header((234, 3), fortran=True)),
            ("few rows", header((66, 4))),
            ("Fortran, as many as there are", header((size // 16, 4), fortran=True)),
            ("as many rows as there are", header((size // 16, 4))),
            ("one row", header((1, size // 4))),
            ("as many terminals", header((size,), "|b1")),
            ("one large item", header((1,), f"|V{size}")),
            ("no header", b""),
        ]
    )
    bomb(folder / "own.npz", f"{key}.npy", beginning, size)
    return case(
        rng,
        f"{key}: {name}, {size >> 20} MiB",
        key,
        *arrays(),
        must="be accepted" if key == "infos" else "be refused",
    )


@kind(times=4)
def damaged_file(rng: random.Random, folder: Path) -> Case:
    found = fresh(folder)
    path = folder / "own.npz"
    save(folder, found, rng.random() < 0.5)
    name, damage = rng.choice(list(m.DAMAGE.items()))
    path.write_bytes(damage(rng, path.read_bytes()))
    # A changed byte that no array depends on does no harm; one in an array fails its checksum.
    check = store_is(found)
    return case(
        rng,
        f"the file, {name}",
        must="be refused" if name in ("cut", "noise", "nothing") else "end well",
        check=check,
    )


@kind(times=3)
def odd_archive(rng: random.Random, folder: Path) -> Case:
    found = fresh(folder)
    path, content = folder / "own.npz", members(found)
    name = rng.choice(
        [
            "no members", "encrypted", "unknown compression", "wrong checksum", "wrong size",
            "member twice", "stored in folders", "an npy file", "a pickle",
            "a pickle of arrays", "text", "HDF5", "gzip", "tar", "zip in zip", "directory lies",
            "a disk of many", "upper-case names",
        ]
    )  # fmt: skip
    archive(path, content)
    raw = bytearray(path.read_bytes())
    central = raw.index(b"PK\x01\x02")
    if name == "no members":
        archive(path, {})
    elif name == "encrypted":
        for place in (6, central + 8):
            raw[place] |= 1
        path.write_bytes(raw)
    elif name == "unknown compression":
        for place in (8, central + 10):
            raw[place : place + 2] = struct.pack("<H", 99)
        path.write_bytes(raw)
    elif name == "wrong checksum":
        raw[central + 16] ^= 255
        path.write_bytes(raw)
    elif name == "wrong size":
        raw[central + 24 : central + 28] = struct.pack("<I", 0xFFFFFFF0)
        path.write_bytes(raw)
    elif name == "directory lies":
        end = raw.index(b"PK\x05\x06")
        raw[end + 10 : end + 12] = struct.pack("<H", 9)
        raw[end + 12 : end + 16] = struct.pack("<I", 10)
        path.write_bytes(raw)
    elif name == "a disk of many":
        end = raw.index(b"PK\x05\x06")
        raw[end + 4 : end + 6] = struct.pack("<H", 7)
        path.write_bytes(raw)
    elif name == "member twice":
        import warnings

        with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.writestr("rewards.npy", content["masks.npy"])
    elif name == "stored in folders":
        archive(path, {f"own/{key}": data for key, data in content.items()})
    elif name == "upper-case names":
        archive(path, {key.upper(): data for key, data in content.items()})
    elif name == "an npy file":
        path.write_bytes(content["observations.npy"])
    elif name == "a pickle":
        path.write_bytes(pickle.dumps(Payload()))
    elif name == "a pickle of arrays":
        archive(path, content | members({"observations": np.array([Payload()] * 66, object)}))
    elif name == "text":
        path.write_text("observations,actions\n1,2\n")
    elif name == "HDF5":
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2000))
    elif name == "gzip":
        path.write_bytes(b"\x1f\x8b\x08\x00" + bytes(6) + zlib.compress(bytes(raw)))
    elif name == "tar":
        path.write_bytes(b"own/".ljust(257, b"\0") + b"ustar\x0000" + bytes(1024))
    else:
        archive(path, {"own.npz": bytes(raw)})
    either = name in ("wrong size", "directory lies", "a disk of many")
    check = store_is(found) if either else None
    return case(
        rng, f"an archive: {name}", must="end well" if either else "be refused", check=check
    )


@kind(times=2)
def no_file(rng: random.Random, folder: Path) -> Case:
    fresh(folder)
    name, make = rng.choice([*m.NOT_FILES.items(), ("gone", m.gone)])
    make(folder / "own.npz")
    return case(rng, f"own.npz is {name}", must="be refused")


# -- folders and names ---------------------------------------------------------------------------


@kind(times=4)
def odd_folder(rng: random.Random, folder: Path) -> Case:
    place = folder / "halves"
    first, second = place / "half-000.npz", place / "half-001.npz"
    raw = second.read_bytes()
    found = arrays()
    half = {key: array[33:] for key, array in found.items()}
    good = {
        "a text beside",
        "a folder beside",
        "names without numbers",
        "validation beside",
        "hidden beside",
        "a link",
        "resource fork",
    }
    name = rng.choice(
        [
            "number missing", "first missing", "second damaged", "second empty",
            "other columns", "other type", "second a folder", "second dangling", "empty",
            "validation only", "only folders", "number twice", "a pipe", "second sparse",
            "upper-case ends", "a huge number", *good,
        ]
    )  # fmt: skip
    if name == "number missing":
        second.rename(place / "half-003.npz")
    elif name == "a huge number":
        second.rename(place / f"half-{'9' * 60}.npz")
    elif name == "first missing":
        first.unlink()
    elif name == "second damaged":
        second.write_bytes(m.cut(rng, raw))
    elif name == "second empty":
        second.write_bytes(b"")
    elif name == "other columns":
        archive(second, members(half | {"observations": half["observations"][:, :3]}))
    elif name == "other type":
        archive(second, members(half | {"observations": half["observations"].astype(np.float64)}))
    elif name == "second a folder":
        m.a_folder(second)
    elif name == "second dangling":
        m.dangling(second)
    elif name == "a pipe":
        m.pipe(second)
    elif name == "second sparse":
        m.sparse(second)
    elif name == "empty":
        m.an_empty_folder(place)
    elif name == "validation only":
        first.rename(place / "half-000-val.npz")
        second.rename(place / "half-001-val.npz")
    elif name == "only folders":
        m.a_folder(first)
        m.a_folder(second)
    elif name == "number twice":
        (place / "other-001.npz").write_bytes(raw)
    elif name == "upper-case ends":
        second.rename(place / "half-001.NPZ")
    elif name == "a text beside":
        (place / "readme.txt").write_text("hello")
    elif name == "a folder beside":
        (place / "old").mkdir()
        (place / "old" / "x.npz").write_bytes(b"x")
    elif name == "names without numbers":
        first.rename(place / "first half.npz")
        second.rename(place / "zweite Hälfte.npz")
    elif name == "validation beside":
        (place / "half-000-val.npz").write_bytes(raw)
    elif name in ("hidden beside", "resource fork"):
        (place / "._half-000.npz").write_bytes(b"Mac OS X")
    else:
        second.rename(folder / "elsewhere.npz")
        second.symlink_to(folder / "elsewhere.npz")
    either = name in ("number twice", "upper-case ends", "resource fork", "hidden beside")
    must: Must = "end well" if either else "be accepted" if name in good else "be refused"
    made = case(
        rng,
        f"a folder: {name}",
        "half",
        "._half",
        "other",
        "terminals",
        must=must,
        path="halves",
        check=None,
    )
    return made


@kind(times=2)
def path_name(rng: random.Random, folder: Path) -> Case:
    raw = (folder / "own.npz").read_bytes()
    fresh(folder)
    if rng.random() < 0.5:
        name = rng.choice(
            [
                "my data.npz", "größe.npz", "gro\u0308sse.npz", "a=b.npz", "100%.npz",
                "-own.npz", "data.v1.npz", "no_ending", "a'b\".npz", "{x}.npz", "$HOME.npz",
                "new\nline.npz", "\u202eevil.npz", "link.npz", "own.store.npz", "x-val.npz",
                "x-000.npz",
            ]
        )  # fmt: skip
        (folder / name).write_bytes(raw)
        if name == "link.npz":
            (folder / name).unlink()
            (folder / name).symlink_to("own.npz")
        made = Case(
            [*NEW, f"--data.path={name}"],
            f"sound data are named {name!r}",
            ("data.path", name),
            "end well" if name in ("no_ending", "x-val.npz") else "be accepted",
            lambda f, _: trained(f),
        )
        return made
    name = rng.choice(
        [
            "", " ", "missing.npz", "halves", "run", "/", "/dev/null", "/dev/zero", "x" * 300,
            "x" * 5000, "a\x00b", "a\nb", "\x1b[31m", "~no_such_user/x.npz", "minari:", "minari:x",
            "minari:../../EVIL", "minari:a\nb", "own.hdf5", "own.npz/", "own.npz/x",
            "http://127.0.0.1:9/x.npz", "file:///etc/passwd", "*.npz", "own.np", "tiny.yaml",
            "run/checkpoints/last.ckpt", "\udcff", "/proc/self/mem", "..", "own.npz,own.npz",
        ]
    )  # fmt: skip
    good = name in ("halves", "own.npz/")
    return Case(
        [*NEW, f"--data.path={name}"],
        f"data.path is {m.short(name)}",
        ("path", "minari", "Minari", *([name] if 2 < len(name) < 60 else [])),
        "end well" if good else "be refused",
    )


@kind(times=3)
def official_data(rng: random.Random, folder: Path) -> Case:
    """The file of an OGBench environment, whose rewards follow from states."""
    m.gone(folder / f"maze/{NAME}.store")
    path = folder / f"maze/{NAME}.npz"
    with np.load(path) as file:
        found = {key: file[key] for key in file.files}
    name = rng.choice(
        [
            "no qpos", "qpos short", "qpos NaN", "qpos of another", "observations of another",
            "no qvel", "damaged", "record damaged", "record lies", "gone", "a folder",
            "val gone", "val damaged",
        ]
    )  # fmt: skip
    record, val = path.with_suffix(".json"), path.with_name(f"{NAME}-val.npz")
    if name == "no qpos":
        del found["qpos"]
    elif name == "qpos short":
        found["qpos"] = found["qpos"][:-1]
    elif name == "qpos NaN":
        found["qpos"][3] = np.nan
    elif name == "qpos of another":
        found["qpos"] = np.concatenate([found["qpos"]] * 3, 1)
    elif name == "observations of another":
        found["observations"] = np.concatenate([found["observations"]] * 9, 1)
    elif name == "no qvel":
        del found["qvel"]
    archive(path, members(found))
    if name == "damaged":
        path.write_bytes(m.cut(rng, path.read_bytes()))
    elif name == "record damaged":
        record.write_bytes(
            rng.choice(
                [
                    b"", b"[]", b"{", b"5", b'{"versions": 5}',
                    b'{"versions": {"mujoco": [1]}}', b'{"versions": ["ab"]}', b"\xff",
                    b"[" * 5000,
                ]
            )
        )  # fmt: skip
    elif name == "record lies":
        record.write_text('{"versions": {"mujoco": "0.0\\n\\u001b[31m"}}')
    elif name == "gone":
        path.unlink()
    elif name == "a folder":
        m.a_folder(path)
    elif name == "val gone":
        val.unlink()
    elif name == "val damaged":
        val.write_bytes(b"x")
    good = name in ("record damaged", "record lies", "val gone", "val damaged", "no qvel")
    if rng.random() < 0.5:
        command = ["data", "info", *MAZE_FLAGS]
    else:
        command = [
            *NEW,
            "--data.env=pointmaze-medium",
            "--data.path=null",
            "--data.dataset=navigate",
            "--data.directory=maze",
            "--trainer.max_steps=2",
            "--online.steps=0",
            "--evaluation.every_n_steps=1000",
        ]
    return Case(command, f"maze: {name}", (NAME, "qpos"), "end well" if good else "be refused")


@kind(times=2)
def setting_against_data(rng: random.Random, folder: Path) -> Case:
    """Sound data, with which a setting does not go."""
    flag, good = rng.choice(
        [
            ("--data.horizon=11", False), ("--data.horizon=5", True),
            ("--data.horizon=1000000", False), ("--data.fraction=1e-9", True),
            ("--data.fraction=0", False), ("--data.fraction=nan", False),
            ("--data.env=Pendulum-v1", False), ("--data.env=CartPole-v1", False),
            ("--data.env=Nothing-v0", False), ("--data.env=os:Nothing-v0", False),
            ("--data.env=pointmaze-medium", False), ("--data.env=InvertedPendulum", False),
            ("--data.env=InvertedPendulum-v5\n", False), ("--data.env=", False),
            ("--data.task=2", False), ("--data.store=other", True),
            ("--data.store=tiny.yaml", False), ("--data.store=/dev/null/x", False),
            ("--data.store=/proc/x", False), ("--data.storage=device", True),
            ("--data.storage=ram", False), ("--data.batch_size=7", True),
            ("--data.prefetch=-1", False), ("--data.discount=0", False),
        ]
    )  # fmt: skip
    m.gone(folder / "own.store")
    key = flag[2:].partition("=")[0]
    return Case(
        [*NEW, flag],
        flag,
        (key.rpartition(".")[2],),
        "be accepted" if good else "be refused",
        lambda f, _: trained(f) if good else None,
        writes=STORE,
    )
