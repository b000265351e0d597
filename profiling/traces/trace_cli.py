"""The commands for models and traces of one's own: capture, analyze, report."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from profiling.measure import allocator
from profiling.measure.allocator import Allocator
from profiling.output import terminal
from profiling.output.exits import Exit, Failure
from profiling.output.terminal import Device, Malloc, Threads

if TYPE_CHECKING:
    from profiling.traces import history
    from profiling.traces.findings import Findings
    from profiling.traces.history import Change

app = typer.Typer()

_CODES = (
    "Exit codes: 0 done; 1 slower than --against; 2 wrong options; 3 no such file; 4 broken gzip; 5 no chrome trace or "
    "figures, or one cut short; 6 no batch norm; 7 no such model, or it does not run."
)

Against = Annotated[
    Path | None, typer.Option(help="earlier figures (a benchmark's JSON, or an analysis.json): what got slower?")
]


@app.command(epilog=_CODES)
def capture(
    model: Annotated[
        str,
        typer.Option(
            help="package.module:function that returns a model (or a model and its inputs), a file of torch.jit.save "
            "(.pt) or torch.export.save (.pt2), transformers:TYPE (resnet-18, say) or timm:NAME; random weights, no "
            "downloads"
        ),
    ],
    batch: Annotated[int, typer.Option(min=1, help="samples at once")] = 8,
    shape: Annotated[str, typer.Option(help="of one sample")] = "3x224x224",
    config: Annotated[
        str | None, typer.Option(help="JSON: what differs from a library's default configuration")
    ] = None,
    inference: Annotated[bool, typer.Option("--inference", help="forward only, in eval mode")] = False,
    steps: Annotated[int, typer.Option(min=1, help="that are traced, each way")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="steps that are timed without the profiler, each way")] = 10,
    output: Annotated[Path | None, typer.Option(help="new folder (default: capture/MODEL-TIME)")] = None,
    report: Annotated[bool, typer.Option("--report", help="also analyze the traces and write the page")] = False,
    threads: Threads = None,
    device: Device = "auto",
    malloc: Malloc = Allocator.KEEP,
) -> None:
    """Runs a model natively and with my_ops batch norm: steps timed in turns, then torch.profiler traces of both."""
    allocator.run_under(malloc)
    console = terminal.console()
    sizes = _sizes(shape)
    folder = output or Path("capture", f"{re.sub(r'[^A-Za-z0-9.-]+', '_', Path(model).name)}-{terminal.now()}")
    if folder.exists():
        raise typer.BadParameter(f"{folder} exists already", param_hint="--output")
    chosen = terminal.load_my_ops(threads, device)
    with _clear_errors(), _appearing(folder) as unfinished:
        from profiling.output import progress
        from profiling.traces import capture as capturing
        from profiling.traces import models

        settings = capturing.Settings(batch, sizes, inference, rounds, steps)
        source = models.find(model, config)
        with progress.bars(console) as shown:
            advance = progress.bar(shown, f"{source.name}: native and converted", capturing.ticks(settings))
            names = [
                path.relative_to(unfinished) for path in capturing.run(source, settings, chosen, unfinished, advance)
            ]
    for name in names:
        console.print(f"trace: {folder / name}", soft_wrap=True)
    if report:
        with _clear_errors():
            _report([folder / name for name in names], folder, None, console)
        console.print(f"report: {folder / 'index.html'}", soft_wrap=True)


@app.command(epilog=_CODES)
def analyze(
    trace: Annotated[
        list[Path], typer.Argument(help="chrome traces of torch.profiler, plain or .gz; two are compared")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="figures instead of tables")] = False,
    output: Annotated[Path | None, typer.Option(help="write the figures as JSON there, too")] = None,
) -> None:
    """Every batch norm call of a trace: layer, shapes, times, kernels, bytes and backend; two traces are matched."""
    from profiling.output import files
    from profiling.traces import findings

    console = terminal.console()
    with _clear_errors():
        found = _analyze(trace, console if sys.stdout.isatty() else None)
        if output:
            files.write(output, findings.as_json(found))
    if as_json:
        typer.echo(findings.as_json(found))
    else:
        _print(found, console)


@app.command(epilog=_CODES)
def report(
    source: Annotated[
        list[Path],
        typer.Argument(help="traces, or a folder of capture; with --against also a file of figures"),
    ],
    output: Annotated[
        Path | None, typer.Option(help="folder of the page (default: the given one, or 'report')")
    ] = None,
    against: Against = None,
) -> None:
    """One page from traces: a summary, speed-up per layer, roofline, time line and memory, with pictures as PNG.

    Of a JSON file of figures, with --against, the table of what changed.
    """
    from profiling.traces import history

    console = terminal.console()
    with _clear_errors():
        if against and len(source) == 1 and history.is_figures(source[0]):
            changes = _compare(history.read(against), history.read(source[0]), console)
        else:
            paths, folder = _traces_of(source)
            place = output or folder or Path("report")
            changes = _report(paths, place, against, console)
            console.print(f"report: {place / 'index.html'}", soft_wrap=True)
    if any(change.verdict == "slower" for change in changes):
        raise typer.Exit(Exit.WRONG_RESULTS)


def _report(paths: list[Path], folder: Path, against: Path | None, console: Console) -> list[Change]:
    from profiling.traces import findings, history, trace_report

    found = _analyze(paths, console)
    changes: list[Change] = []
    if against:
        then = history.read(against)
        now = history.now(found.breakdowns[-1], found.step)
        changes = _compare(then, now, console)
    trace_report.write(found, folder, changes)
    for sentence in findings.sentences(found):
        console.print(sentence, markup=False)
    return changes


def _compare(then: history.File, now: history.File, console: Console) -> list[Change]:
    from profiling.output import tables
    from profiling.traces import history

    changes = history.compare(then, now)
    if not changes:
        raise Failure(Exit.NO_TRACE, "--against: expected figures of the same calls, got none")
    tables.print_to(console, history.table(changes))
    for fact in history.different_facts(then, now):
        console.print(f"not the same: {fact}", markup=False)
    verdicts = [change.verdict for change in changes]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("slower", "faster", "same"))
    console.print(f"{len(changes)} figures: {counts}")
    return changes


def _analyze(paths: list[Path], console: Console | None) -> Findings:
    from profiling.traces import findings

    if console is None:
        return findings.analyze(paths)
    with console.status(f"reading {', '.join(path.name for path in paths)}"):
        return findings.analyze(paths)


def _print(found: Findings, console: Console) -> None:
    from profiling.output import tables
    from profiling.traces import findings

    for table in found.tables(brief=True):
        if not table.long:
            tables.print_to(console, table)
    for sentence in findings.sentences(found):
        console.print(sentence, markup=False)


def _traces_of(sources: list[Path]) -> tuple[list[Path], Path | None]:
    """The traces of a capture's folder, native first, and the folder; or the files themselves."""
    if len(sources) > 1 or not sources[0].is_dir():
        return sources, None
    found = sorted(sources[0].glob("traces/*/*.pt.trace.json*"), key=lambda path: path.parent.name, reverse=True)
    if not found:
        raise Failure(
            Exit.NO_FILE, f"{sources[0]}: expected a folder of capture, got one without traces/*/*.pt.trace.json"
        )
    return found, sources[0]


def _sizes(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise typer.BadParameter(f"expected sizes like 3x224x224, got {text}", param_hint="--shape")
    return tuple(map(int, text.split("x")))


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when all is done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        unfinished = Path(name) / folder.name
        unfinished.mkdir()
        yield unfinished
        unfinished.rename(folder)


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except Failure as failure:
        Console(stderr=True).print(f"[bold red]error:[/] {_escaped(str(failure))}", soft_wrap=True, highlight=False)
        raise typer.Exit(failure.code) from failure


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
