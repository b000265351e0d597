"""The summary of a run of gpu_suite.sh, made anew after every part: what is there so far.

Usage: python profiling/gpu_summary.py PARTS OUT. Reads PARTS/parts.tsv (name, exit code, seconds, limit),
PARTS/facts.json and PARTS/benchmark*.json, where they are there; writes OUT/summary.json and OUT/summary.md. Needs the
standard library alone.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

OURS, COPY = "my_ops", "copy"

Row = dict[str, Any]


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def parts(folder: Path) -> list[Row]:
    try:
        lines = (folder / "parts.tsv").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [dict(zip(("name", "exit", "seconds", "limit"), line.split("\t"), strict=True)) for line in lines]


def last_lines(folder: Path, name: str, count: int = 4) -> list[str]:
    try:
        lines = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.strip()[:200] for line in lines if line.strip()][-count:]


def library(peer: str, figures: Row) -> str:
    """A peer by the kernels that ran: native is cuDNN or ATen."""
    if peer != "native" or not figures["kernels"]:
        return peer
    return "native (cuDNN)" if any("cudnn" in name.lower() for name in figures["kernels"]) else "native (ATen)"


def means(rows: list[Row]) -> list[Row]:
    """Geometric means per direction, dtype and layout: our share of the copy's speed, the peers' times over ours."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["direction"], row["dtype"], row["layout"]].append(row)
    found = []
    for (direction, dtype, layout), members in sorted(groups.items()):
        ratios: dict[str, list[float]] = defaultdict(list)
        efficiency = []
        for row in members:
            peers = row["peers"]
            efficiency.append(peers[OURS]["gigabytes_per_second"] / peers[COPY]["gigabytes_per_second"])
            for name, figures in peers.items():
                if name != OURS:
                    ratios[library(name, figures)].append(figures["seconds"] / peers[OURS]["seconds"])
        found.append(
            {
                "direction": direction,
                "dtype": dtype,
                "layout": layout,
                "rows": len(members),
                "of the copy's bandwidth": statistics.geometric_mean(efficiency),
                "times ours": {name: statistics.geometric_mean(values) for name, values in sorted(ratios.items())},
                "slower than a peer": sum(
                    any(
                        f["seconds"] < row["peers"][OURS]["seconds"] for n, f in row["peers"].items() if "copy" not in n
                    )
                    for row in members
                ),
            }
        )
    return found


def as_markdown(content: Row) -> str:
    lines = ["# GPU suite", "", "| part | exit | seconds | of | its last words |", "|---|---|---|---|---|"]
    for part in content["parts"]:
        words = " / ".join(part["last"][-1:]).replace("|", "\\|")
        lines.append(f"| {part['name']} | {part['exit']} | {part['seconds']} | {part['limit']} | {words} |")
    for name, found in content["benchmarks"].items():
        lines += ["", f"## {name}", ""]
        lines.append("| direction | dtype | layout | rows | of the copy's GB/s | peers' time over ours | slower in |")
        lines.append("|---|---|---|---|---|---|---|")
        for mean in found:
            ratios = ", ".join(f"{peer} {value:.2f}" for peer, value in mean["times ours"].items())
            start = f"| {mean['direction']} | {mean['dtype']} | {mean['layout']} | {mean['rows']}"
            share = mean["of the copy's bandwidth"]
            lines.append(f"{start} | {share:.2f} | {ratios} | {mean['slower than a peer']} |")
    if content["facts"]:
        lines += ["", "## The GPU", "", "```json", json.dumps(content["facts"]), "```"]
    for part in content["parts"]:
        if part["exit"] != "0":
            lines += ["", f"## {part['name']} ended with", "", "```", *part["last"], "```"]
    return "\n".join(lines) + "\n"


def main(folder: Path, out: Path) -> None:
    benchmarks = {path.stem: read_json(path) for path in sorted(folder.glob("benchmark*.json"))}
    content = {
        "parts": [part | {"last": last_lines(folder, part["name"], 12)} for part in parts(folder)],
        "facts": read_json(folder / "facts.json"),
        "benchmarks": {name: means(found["rows"]) for name, found in benchmarks.items() if found},
    }
    (out / "summary.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (out / "summary.md").write_text(as_markdown(content), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
