"""Events of a chrome trace, made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from profiling.traces import trace_file, traces


def event(name: str, start: float, duration: float, tid: int = 1, cat: str = "cpu_op", **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": start, "dur": duration, "args": args}


def memory(start: float, bytes: int, total: int, tid: int = 1, device: int = 0) -> dict[str, Any]:
    args = {"Bytes": bytes, "Total Allocated": total, "Device Type": device}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 1, "tid": tid, "ts": start, "args": args}


def trace_of(events: list[dict[str, Any]], **record: Any) -> traces.Trace:
    """As it would be read from a file."""
    return traces.of(
        msgspec.json.decode(trace_file.encode(events), type=trace_file.File).events, trace_file.Record(**record)
    )


def write(path: Path, events: list[dict[str, Any]], **more: Any) -> Path:
    path.write_bytes(msgspec.json.encode({"traceEvents": events, **more}))
    return path
