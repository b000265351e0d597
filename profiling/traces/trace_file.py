"""Reads the file of a chrome trace, plain or gzipped, into typed events.

Only the fields of :class:`Event` are built; the rest of the file, most of it, is checked for syntax and skipped. Lists
that few readers want (shapes, types, values of arguments) stay slices of the file until someone asks for them.
"""

from __future__ import annotations

import gzip
import mmap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from profiling.output.exits import Exit, Failure

_NONE = msgspec.Raw(b"[]")


class Arguments(msgspec.Struct, gc=False):
    """What torch.profiler says about an event. Numbers are ``Any``: what odd producers write there is no error."""

    correlation: Any = None
    sequence: Any = msgspec.field(name="Sequence number", default=None)
    dims: msgspec.Raw = msgspec.field(name="Input Dims", default=_NONE)
    types: msgspec.Raw = msgspec.field(name="Input type", default=_NONE)
    values: msgspec.Raw = msgspec.field(name="Concrete Inputs", default=_NONE)
    bytes: Any = msgspec.field(name="Bytes", default=None)
    total_allocated: Any = msgspec.field(name="Total Allocated", default=None)
    device_type: Any = msgspec.field(name="Device Type", default=0)
    stream: Any = None


class Event(msgspec.Struct, gc=False):
    """One event of the file; ``ts`` and ``dur`` in microseconds."""

    name: str = ""
    ph: str = ""
    cat: str = ""
    pid: Any = 0
    tid: Any = 0
    ts: Any = 0
    dur: Any = 0
    args: Arguments | None = None


@dataclass(frozen=True)
class Record:
    """What ``capture`` writes into a trace about its run; empty in any other trace."""

    run: str = ""  # the same in both traces of a run
    name: str = ""  # of the trace
    model: str = ""
    mode: str = ""  # "training" or "inference"
    inputs: list[list[int]] = field(default_factory=list)  # shapes
    step_seconds: list[float] = field(default_factory=list)  # of steps without the profiler
    machine: dict[str, Any] = field(default_factory=dict)


class File(msgspec.Struct):
    events: list[Event] = msgspec.field(name="traceEvents")
    my_ops: Record = Record()


def read(path: Path) -> File:
    """Raises Failure, with a code of its own for a missing file, a broken gzip and anything but a chrome trace."""
    text = _text(path)
    try:
        if bytes(text[:64]).lstrip()[:1] == b"[":  # the format's other form: a list of events
            return File(msgspec.json.decode(text, type=list[Event]))
        return msgspec.json.decode(text, type=File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failure(
            Exit.NO_TRACE, f"{path}: expected a chrome trace of torch.profiler, got a broken or other file ({error})"
        ) from error


def decoded(raw: msgspec.Raw) -> list[Any]:
    """A list that was left as it stands in the file; empty if it is none."""
    try:
        found = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return []
    return found if isinstance(found, list) else []


def encode(events: Sequence[object]) -> bytes:
    """Events as a trace file holds them."""
    return msgspec.json.encode({"traceEvents": events})


def _text(path: Path) -> Any:
    """The file's text as a buffer: mapped where it is plain, so that it costs no memory of this process's own."""
    try:
        with path.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                file.seek(0)
                size = file.seek(0, 2)
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Failure(Exit.BROKEN_GZIP, f"{path}: expected a whole gzip file, got a broken one ({error})") from error
    except FileNotFoundError as error:
        raise Failure(Exit.NO_FILE, f"{path}: expected a trace file, got none there") from error
    except OSError as error:
        raise Failure(Exit.NO_FILE, f"{path}: expected a readable file ({error.strerror})") from error
