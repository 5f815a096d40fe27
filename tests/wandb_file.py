"""Reads what W&B's client wrote offline: a log in LevelDB's format of protobuf records."""

import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 32768
_FIRST = 2
_FULL = 1
_LAST = 4


def records(path: Path) -> Iterator:
    """The records of a .wandb file, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    place = 7
    parts = b""
    assert content[:4] == b":W&B", path
    while place + 7 <= len(content):
        if _BLOCK - place % _BLOCK < 7:  # no room for a header: the rest of the block is padding
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        if not kind:
            break
        parts = (b"" if kind in (_FIRST, _FULL) else parts) + content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record
