"""Ways to spoil values, trees of values, bytes and files that every group uses."""

import copy
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Keys = tuple[Any, ...]

CONTROL = [
    "a\x00b",
    "a\nb",
    "\x1b[31mred",
    "a\r\nerror: b",
    "\u202eevil",
    "\x7f",
    "\u2028",
    "\ud800",
]
"""Texts that must not reach a terminal as they are."""

STRINGS = [
    "", " ", "x" * 5000, "${", "${nothing}", "%s%d{0}", "../../EVIL", "nan", "ñ" * 9, "٣",
    *CONTROL,
]  # fmt: skip
NUMBERS = [
    -1, 0, 1.5, -2.5e300, 1e308, float("nan"), float("inf"), -float("inf"), 2**31, 2**63,
    10**30, 10**400,
]  # fmt: skip
OTHERS = [None, True, [], {}, [1], ["a", 2], {"a": 1}, {"": None}, [[[]]]]


def wrong(rng: random.Random, than: object = None) -> Any:
    """Return a value of another type, or of the same type and out of any range."""
    while True:
        value = rng.choice(rng.choice([STRINGS, NUMBERS, OTHERS]))
        if value != than or type(value) is not type(than):
            return copy.deepcopy(value)


def keys_of(tree: Any, above: Keys = ()) -> Iterator[Keys]:
    """Yield the keys that lead to every value below the top, sections included."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield (*above, key)
        yield from keys_of(value, (*above, key))


def value_at(tree: Any, keys: Keys) -> Any:
    """Return the value that ``keys`` lead to."""
    for key in keys:
        tree = tree[key]
    return tree


def put(tree: Any, keys: Keys, value: Any) -> Any:
    """Return the tree with another value; lists and dicts on the way are copied."""
    if not keys:
        return value
    made = copy.copy(tree)
    made[keys[0]] = put(tree[keys[0]], keys[1:], value)
    return made


def without(tree: Any, keys: Keys) -> Any:
    """Return the tree without a value."""
    parent = copy.copy(value_at(tree, keys[:-1]))
    del parent[keys[-1]]
    return put(tree, keys[:-1], parent)


def dotted(keys: Keys) -> str:
    """Return the keys in one word, as messages name them."""
    return ".".join(str(key) for key in keys)


def short(value: object) -> str:
    """Return a value for a person, at most 60 characters long."""
    digits = isinstance(value, int) and abs(value) > 10**50
    text = "a number of 400 digits" if digits else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown_as(text: str) -> tuple[str, ...]:
    """Return how a message may show the beginning of a text: as it is, or escaped."""
    return tuple(x for x in (text[:20], ascii(text[:20])[1:-1]) if x.strip())


# -- bytes ---------------------------------------------------------------------------------------


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def flipped(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zeroed(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    length = min(rng.randint(1, 512), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def longer(rng: random.Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.randint(1, 64))


def gap(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randint(1, 64) :]


def noise(rng: random.Random, content: bytes) -> bytes:
    return rng.randbytes(rng.randint(1, 2000))


def nothing(rng: random.Random, content: bytes) -> bytes:
    return b""


def twice(rng: random.Random, content: bytes) -> bytes:
    return content + content


DAMAGE = {f.__name__: f for f in (cut, flipped, zeroed, longer, gap, noise, nothing, twice)}


def utf16(rng: random.Random, content: bytes) -> bytes:
    return content.decode("latin-1").encode("utf-16")


def latin(rng: random.Random, content: bytes) -> bytes:
    return _inserted(rng, content, b"\xe9\xff")


def nul(rng: random.Random, content: bytes) -> bytes:
    return _inserted(rng, content, b"\x00")


def sign(rng: random.Random, content: bytes) -> bytes:
    return _inserted(
        rng,
        content,
        rng.choice(
            [
                b"\t", b'"', b"'", b"{", b"]", b":", b"&", b"*", b"%", b"#", b"\x1b", b"-",
                b"9", b"\n",
            ]
        ),
    )  # fmt: skip


def _inserted(rng: random.Random, content: bytes, what: bytes) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + what + content[place:]


def line_twice(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    return b"".join([*lines[: number + 1], *lines[number:]])


def line_gone(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def lines_swapped(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


def indented(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    lines[number] = rng.choice([b" ", b"   ", b"\t"]) + lines[number]
    return b"".join(lines)


TEXT_DAMAGE = DAMAGE | {
    f.__name__: f for f in (utf16, latin, nul, sign, line_twice, line_gone, lines_swapped, indented)
}


# -- files ---------------------------------------------------------------------------------------


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def gone(path: Path) -> None:
    _clear(path)


def a_folder(path: Path) -> None:
    _clear(path)
    (path / "inside").mkdir(parents=True)


def an_empty_folder(path: Path) -> None:
    _clear(path)
    path.mkdir()


def a_file(path: Path) -> None:
    _clear(path)
    path.write_text("a file\n")


def dangling(path: Path) -> None:
    _clear(path)
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    _clear(path)
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    _clear(path)
    os.mkfifo(path)


def null_device(path: Path) -> None:
    _clear(path)
    path.symlink_to("/dev/null")


def endless_device(path: Path) -> None:
    _clear(path)
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    """A file of a terabyte, of which nothing is on disk."""
    _clear(path)
    with path.open("wb") as file:
        file.truncate(1 << 40)


NOT_FILES = {
    f.__name__: f
    for f in (a_folder, an_empty_folder, dangling, loop, pipe, null_device, endless_device, sparse)
}
NOT_FOLDERS = {f.__name__: f for f in (a_file, dangling, loop, pipe, null_device)}
