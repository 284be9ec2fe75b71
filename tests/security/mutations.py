"""Damage by chance: what bit rot, broken transfers and blind attackers do to a file."""

from __future__ import annotations

import random
from collections.abc import Callable

_EDGES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\x80",
    b"\xff\xff\xff\x7f",
    b"\1\0\0\0",
)


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _edge(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 4))):
        place = rng.randrange(len(data))
        data[place : place + 4] = rng.choice(_EDGES)
    return data


def _splice(data: bytearray, rng: random.Random) -> bytearray:
    start, length, place = rng.randrange(len(data)), rng.randrange(1, 256), rng.randrange(len(data))
    data[place : place + rng.choice((0, length))] = data[start : start + length]
    return data


def _drop(data: bytearray, rng: random.Random) -> bytearray:
    place = rng.randrange(len(data))
    del data[place : place + rng.randrange(1, 64)]
    return data


def _blank(data: bytearray, rng: random.Random) -> bytearray:
    place, length = rng.randrange(len(data)), rng.randrange(1, 512)
    data[place : place + length] = bytes([rng.choice((0, 255, 0x20))]) * min(length, len(data) - place)
    return data


_KINDS: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    _cut,
    _flip,
    _edge,
    _splice,
    _drop,
    _blank,
)


def damaged(data: bytes, seed: int, start: int = 0) -> bytes:
    """A damaged copy; what it is follows from ``seed``. Half of the damage is near the beginning.

    Args:
        data: The file.
        seed: Which damage.
        start: Where the file's own content begins (a database has nothing in front of it).
    """
    rng = random.Random(seed)
    head, body = bytearray(data[:start]), bytearray(data[start:])
    near = rng.random() < 0.5 and len(body) > 512
    tail = body[512:] if near else bytearray()
    body = body[:512] if near else body
    kind = rng.choice(_KINDS)
    return bytes(head + kind(body, rng) + (b"" if kind is _cut else tail))
