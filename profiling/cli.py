"""The commands. Heavy imports wait until a command runs: ``--help`` is quick, and a restart loses nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from profiling.measure import allocator
from profiling.measure.allocator import Allocator
from profiling.output.terminal import Device, Malloc, Threads
from profiling.output.terminal import console as _console
from profiling.output.terminal import load_my_ops as _load_my_ops
from profiling.output.terminal import now as _now
from profiling.traces import trace_cli

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """Measures my_ops batch normalization against native PyTorch."""


@app.command()
def compare(
    output: Annotated[Path | None, typer.Option(help="new folder (default: compare-report/TIME)")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="images at once; fewer need less memory")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="small images, few repetitions: a trial, not a measurement")
    ] = False,
    threads: Threads = None,
    device: Device = "auto",
    malloc: Malloc = Allocator.KEEP,
) -> None:
    """Our batch norm and native's on real images through ResNet-50: errors, times, training, traces, one report.

    Exit code 1 if a result of ours is further from float64 than rounding explains.
    """
    allocator.run_under(malloc)
    console = _console()
    folder = output or Path("compare-report", _now())
    if folder.exists():
        raise typer.BadParameter(f"{folder} exists already", param_hint="--output")
    chosen = _load_my_ops(threads, device)

    from dataclasses import replace

    from profiling.comparison import compare, report

    settings = compare.QUICK if quick else compare.Settings()
    if batch is not None:
        settings = replace(settings, batch=batch, trace_batch=max(2, batch // 2))
    comparison = compare.run(settings, chosen, folder, console)
    report.print_to(console, comparison)
    console.print(f"report: {folder / 'index.html'}", soft_wrap=True)
    if not comparison.correct:
        console.print("[bold red]FAILED:[/] results further from float64 than rounding explains, see table (a)")
        raise typer.Exit(1)


@app.command()
def benchmark(
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            help="resnet50, mobilenetv2, unet3d, matrices, tiny, like 8x64x56x56; repeatable (default: resnet50, tiny)"
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16, float16, float64; repeatable (default: first three)")
    ] = None,
    layout: Annotated[
        list[str] | None, typer.Option(help="contiguous, channels_last; repeatable (default: both)")
    ] = None,
    direction: Annotated[
        list[str] | None, typer.Option(help="forward, backward, inference; repeatable (default: all)")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="also native through torch.compile, compiled anew for each")
    ] = False,
    onednn: Annotated[
        bool, typer.Option("--onednn", help="also oneDNN's batch norm, where it supports the case")
    ] = False,
    floor: Annotated[
        bool, typer.Option("--floor", help="also the bare passes over memory, a lower bound; CPU, needs a compiler")
    ] = False,
    batch: Annotated[int, typer.Option(min=2, help="images at once in the groups resnet50 and mobilenetv2")] = 32,
    seconds: Annotated[float, typer.Option(min=0.0, help="that each row is timed")] = 0.5,
    output: Annotated[Path | None, typer.Option(help="JSON file (default: profiling/results/benchmark-*.json)")] = None,
    threads: Threads = None,
    device: Device = "auto",
    malloc: Malloc = Allocator.KEEP,
) -> None:
    """Times shapes x dtypes x layouts x directions as multiples of a copy and against native; writes JSON.

    Exit code 1 if a result of ours is further from float64 than rounding explains; such a row is not timed.
    """
    allocator.run_under(malloc)
    console = _console()
    chosen = _load_my_ops(threads, device)

    from profiling.measure import bare_passes
    from profiling.output import plots, tables
    from profiling.suites import benchmark, suite_figures, suite_tables

    try:
        tasks = benchmark.select(shapes, dtype, layout, batch)
        directions = benchmark.select_directions(direction)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if floor and (reason := bare_passes.obstacle(chosen, [task.dtype for task in tasks])):
        raise typer.BadParameter(reason, param_hint="--floor")
    path = output or Path(__file__).parent / "results" / f"benchmark-{chosen.type}-{_now()}.json"
    peers = benchmark.implementations(compiled, onednn, chosen)
    keep = partial(benchmark.write, path=path)
    suite = benchmark.run(tasks, directions, peers, seconds, chosen, console, keep, bare_passes.of if floor else None)
    for table in suite_tables.of(suite):
        tables.print_to(console, table)
    console.print(f"figures: {path}", soft_wrap=True)
    if suite.rows:
        picture = path.with_suffix(".png")
        plots.to_png(suite_figures.of(suite), picture)
        console.print(f"picture: {picture}", soft_wrap=True)
    if not suite.correct:
        console.print("[bold red]FAILED:[/] results further from float64 than rounding explains")
        raise typer.Exit(1)


@app.command()
def scale(
    ranks: Annotated[int, typer.Option(min=2, help="most processes to measure with")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="of each collective")] = 50,
    output: Annotated[Path | None, typer.Option(help="folder (default: profiling/results)")] = None,
) -> None:
    """Predicts what synchronized batch norm costs ResNet-50 on 2 to 4,096 ranks, and checks that on loopback."""
    console = _console()
    _load_my_ops(1, "cpu")

    from profiling.measure import workloads
    from profiling.output import tables
    from profiling.suites import scale

    channels = [module.num_features for module in workloads.batch_norms(workloads.resnet50()).values()]
    result = scale.run(channels, range(2, ranks + 1), repeats)
    for table in scale.tables_of(result):
        tables.print_to(console, table)
    for path in scale.write(result, output or Path(__file__).parent / "results"):
        console.print(f"figures: {path}", soft_wrap=True)


@app.command()
def family(
    network: Annotated[
        list[str] | None,
        typer.Option(help="resnet50, resnet50-leaky, mobilenetv2, none; repeatable (default: all three)"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="of the rows: float32, bfloat16, float16")] = "float32",
    layout: Annotated[str, typer.Option(help="of the rows: contiguous, channels_last")] = "contiguous",
    seconds: Annotated[float, typer.Option(min=0.0, help="that each row is timed; 0: networks only")] = 2.0,
    batch: Annotated[int, typer.Option(min=2, help="images at once in the networks")] = 16,
    size: Annotated[int, typer.Option(min=32, help="pixels each way")] = 224,
    count: Annotated[int, typer.Option("--steps", min=1, help="training steps of a network, each way")] = 5,
    output: Annotated[Path | None, typer.Option(help="JSON file (default: profiling/results/family-*.json)")] = None,
    threads: Threads = None,
    device: Device = "auto",
    malloc: Malloc = Allocator.KEEP,
) -> None:
    """The operators around batch norm against torch's modules, and training steps of whole networks; writes JSON.

    Exit code 1 if a result of ours is further from float64 than rounding explains, or a loss in float64 from native's.
    """
    allocator.run_under(malloc)
    console = _console()
    chosen = _load_my_ops(threads, device)

    from profiling.measure import workloads
    from profiling.suites import family, steps

    for name, known in ((dtype, family.DTYPES), (layout, workloads.LAYOUTS)):
        if name not in known:
            raise typer.BadParameter(f"expected {', '.join(known)}, got {name}")
    networks = [name for name in network or steps.NETWORKS if name != "none"]
    if unknown := set(networks) - set(steps.NETWORKS):
        raise typer.BadParameter(f"expected {', '.join(steps.NETWORKS)} or none, got {', '.join(unknown)}")
    path = output or Path(__file__).parent / "results" / f"family-{chosen.type}-{_now()}.json"
    settings = steps.Settings(batch, size, count)
    rows = family.members() if seconds > 0 else []
    correct = family.run(rows, family.DTYPES[dtype], layout, seconds, networks, settings, chosen, path, console)
    console.print(f"figures: {path}", soft_wrap=True)
    if not correct:
        console.print(
            "[bold red]FAILED:[/] results further from float64, or losses from native's, than rounding explains"
        )
        raise typer.Exit(1)


@app.command()
def activation(
    name: Annotated[str, typer.Option(help="relu, leaky_relu, relu6, elu, silu, gelu_tanh")] = "relu",
    seconds: Annotated[float, typer.Option(min=0.0, help="that each row is timed")] = 0.5,
    batch: Annotated[int, typer.Option(min=2, help="images at once")] = 32,
    output: Annotated[
        Path | None, typer.Option(help="JSON file (default: profiling/results/activation-*.json)")
    ] = None,
    threads: Threads = None,
    device: Device = "auto",
    malloc: Malloc = Allocator.KEEP,
) -> None:
    """Times batch norm with an activation in its passes beside batch norm alone; writes JSON.

    Exit code 1 if a result is further from float64 than rounding explains; such a row is not timed.
    """
    allocator.run_under(malloc)
    console = _console()
    chosen = _load_my_ops(threads, device)

    from profiling.suites import activation_cost, family

    if name not in family.ACTIVATIONS:
        raise typer.BadParameter(f"expected {', '.join(family.ACTIVATIONS)}, got {name}", param_hint="--name")
    path = output or Path(__file__).parent / "results" / f"activation-{chosen.type}-{_now()}.json"
    shapes = [(batch, *shape) for shape in activation_cost.SHAPES]
    correct = activation_cost.run(name, shapes, seconds, chosen, path, console)
    console.print(f"figures: {path}", soft_wrap=True)
    if not correct:
        console.print("[bold red]FAILED:[/] results further from float64 than rounding explains")
        raise typer.Exit(1)


for _command in trace_cli.app.registered_commands:
    app.registered_commands.append(_command)
