"""The protobuf wire format, as far as is needed to tell messages apart before a schema is chosen.

See https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations


def first_fields(data: bytes, limit: int = 4) -> list[tuple[int, int, bytes]]:
    """The first fields of a message: (field number, wire type, payload); empty if ``data`` opens no message.

    ``data`` may be cut off: a payload that runs past its end is given as far as it goes.
    """
    fields: list[tuple[int, int, bytes]] = []
    position = 0
    while position < len(data) and len(fields) < limit:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if number == 0 or wire not in (0, 1, 2, 5) or position > len(data):
            return []
        if wire == 0:
            start = position
            _, position = _varint(data, position)
        elif wire == 2:
            length, start = _varint(data, position)
            position = start + length
        else:
            start = position
            position += 8 if wire == 1 else 4
        fields.append((number, wire, data[start:position]))
    return fields


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            return 0, len(data) + 1
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, position
