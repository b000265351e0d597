"""What synchronizing the statistics of a network costs, from 2 to 4,096 ranks: a latency-bandwidth model on paper, its
parameters measured for Gloo on this machine's loopback, and taken from NCCL's own model for GPUs.

A collective takes latencies, step by step of its algorithm, and bytes through the narrowest link:

    all_gather, ring     base + steps          + (R-1)*n / bandwidth           n bytes from each of R ranks
    all_reduce, ring     base + 2*steps        + 2*(R-1)/R * n / bandwidth
    all_reduce, tree     base + 2*tree steps   + 2*n / bandwidth

    steps = (R - nodes)*within + (nodes - 1)*between        tree steps = (R/nodes - 1)*within + log2(nodes)*between

Per layer of C channels and training step in float32 a rank gives
    ours     one all_gather of 8*C + 8 bytes (mean, M2, count) forward, one of 8*C bytes (two sums) backward;
    naive    one all_reduce of 8*C + 4 bytes (sum, sum of squares, count) forward, one of 8*C bytes backward. From 3
             ranks on fewer bytes are on the way, but the variance is a difference of large numbers.

Besides, training steps of a ResNet-50 are timed with both, arithmetic and all (naive_sync.py).
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure

from profiling.measure import machine
from profiling.measure.machine import Machine
from profiling.output import files, json_text, plots
from profiling.output.tables import Table, number
from profiling.suites import naive_sync

Scheme = Literal["ours", "naive"]
SCHEMES: tuple[Scheme, ...] = ("ours", "naive")
RANKS = tuple(2**k for k in range(1, 13))


@dataclass(frozen=True)
class Algorithm:
    """Seconds, and the share of the network's bandwidth that payload gets."""

    base: float
    within: float  # a step to a rank of the same node
    between: float  # a step to another node
    share: float = 1.0


@dataclass(frozen=True)
class Network:
    """The faster of ``rings`` (and of ``trees``, for all_reduce) is taken, as the engines themselves do."""

    name: str
    source: str
    node: int  # ranks that share one
    bandwidth: float  # bytes/s between two ranks
    rings: tuple[Algorithm, ...]
    trees: tuple[Algorithm, ...] = ()

    def nodes(self, ranks: int) -> int:
        return math.ceil(ranks / self.node)

    def all_gather(self, ranks: int, size: int) -> float:
        nodes = self.nodes(ranks)
        return min(
            a.base
            + (ranks - nodes) * a.within
            + (nodes - 1) * a.between
            + (ranks - 1) * size / (self.bandwidth * a.share)
            for a in self.rings
        )

    def all_reduce(self, ranks: int, size: int) -> float:
        nodes = self.nodes(ranks)
        rings = (
            a.base
            + 2 * ((ranks - nodes) * a.within + (nodes - 1) * a.between)
            + 2 * (ranks - 1) / ranks * size / (self.bandwidth * a.share)
            for a in self.rings
        )
        trees = (
            a.base
            + 2 * ((ranks / nodes - 1) * a.within + math.log2(nodes) * a.between)
            + 2 * size / (self.bandwidth * a.share)
            for a in self.trees
        )
        return min(*rings, *trees) if self.trees else min(rings)

    def step(self, scheme: Scheme, channels: Sequence[int], ranks: int) -> float:
        """Seconds of synchronization per training step of a network with these layers."""
        collective = self.all_gather if scheme == "ours" else self.all_reduce
        return sum(collective(ranks, size) for c in channels for size in messages(scheme, c))


# NVIDIA/nccl, src/graph/tuning.cc (2.12 to 2.27), tables baseLat and hwLat, microseconds, protocols LL and Simple; LL
# moves a quarter of the bandwidth (the same file). The 1.8 of LL within nodes when there are several is left out.
_US = 1e-6
_NCCL_RINGS = (Algorithm(6.6 * _US, 0.6 * _US, 2.7 * _US, 0.25), Algorithm(8.4 * _US, 3.4 * _US, 14.0 * _US))
_NCCL_TREES = (Algorithm(6.8 * _US, 0.6 * _US, 5.0 * _US, 0.25), Algorithm(8.4 * _US, 4.0 * _US, 14.0 * _US))
KNOWN = (
    Network(
        "NCCL, nodes of 8 with NVLink 4, InfiniBand NDR between",
        "latencies: NCCL's tuning.cc; 400 Gb/s per GPU: NVIDIA's DGX H100 data sheet",
        8,
        50e9,
        _NCCL_RINGS,
        _NCCL_TREES,
    ),
    Network(
        "NCCL, one GPU per node, 100 Gb/s RoCE",
        "latencies: NCCL's tuning.cc; bandwidth: IEEE 802.3ba",
        1,
        12.5e9,
        _NCCL_RINGS,
        _NCCL_TREES,
    ),
    Network(
        "Gloo, TCP over 10 Gb/s Ethernet",
        "assumed: 50 us per message, half of a round trip between hosts of one rack, processes included; IEEE 802.3ae",
        1,
        1.25e9,
        (Algorithm(0.0, 50 * _US, 50 * _US),),
    ),
)


def messages(scheme: Scheme, channels: int) -> tuple[int, int]:
    """Bytes that a rank gives to the collective forward and backward, float32."""
    return 8 * channels + (8 if scheme == "ours" else 4), 8 * channels


def received(scheme: Scheme, channels: Sequence[int], ranks: int) -> float:
    """Bytes that reach a rank per training step, with the ring algorithms; as many leave it."""
    factor = ranks - 1 if scheme == "ours" else 2 * (ranks - 1) / ranks
    return factor * sum(size for c in channels for size in messages(scheme, c))


@dataclass(frozen=True)
class Sample:
    """One collective among ``ranks`` processes, ``size`` bytes from each; the median of its repetitions, in seconds."""

    scheme: Scheme
    ranks: int
    size: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """The synchronization of one training step, all layers one after the other: predicted and measured seconds."""

    scheme: Scheme
    ranks: int
    predicted: float
    measured: float


@dataclass(frozen=True)
class TrainingStep:
    """Forward and backward pass of a ResNet-50 on small images, in seconds."""

    way: naive_sync.Way
    ranks: int
    seconds: float


@dataclass(frozen=True)
class _Answer:
    """What the processes of one size measured."""

    samples: list[Sample]
    steps: dict[Scheme, float]
    training: dict[naive_sync.Way, float]


@dataclass(frozen=True)
class Scale:
    machine: Machine
    channels: list[int]
    samples: list[Sample]
    network: Network  # as fitted to the samples
    steps: list[Step]
    training: list[TrainingStep]


def run(channels: Sequence[int], ranks: Sequence[int], repeats: int) -> Scale:
    """Measures on loopback, fits the model to single collectives, and holds its steps against measured steps."""
    sizes = [64, 1024, 8192, 65536, 524288]
    answers = {size: _together(size, list(channels), sizes, repeats) for size in ranks}
    samples = [sample for answer in answers.values() for sample in answer.samples]
    network = fitted(samples)
    steps = [
        Step(scheme, size, network.step(scheme, channels, size), seconds)
        for size, answer in answers.items()
        for scheme, seconds in answer.steps.items()
    ]
    training = [TrainingStep(way, size, t) for size, answer in answers.items() for way, t in answer.training.items()]
    return Scale(machine.describe(torch.device("cpu")), list(channels), samples, network, steps, training)


def fitted(samples: Sequence[Sample]) -> Network:
    """Least squares of relative errors: seconds = base + (R-1)*(latency + n/bandwidth), from the all_gathers."""
    gathers = [s for s in samples if s.scheme == "ours"]
    matrix = np.array([[1.0, s.ranks - 1, (s.ranks - 1) * s.size] for s in gathers])
    seconds = np.array([s.seconds for s in gathers])
    scaled = matrix / seconds[:, None]
    base, latency, per_byte = (float(x) for x in np.linalg.lstsq(scaled, np.ones(len(gathers)), rcond=None)[0])
    algorithm = Algorithm(max(base, 0.0), max(latency, 0.0), max(latency, 0.0))
    return Network("Gloo on loopback", "measured", 1, 1.0 / max(per_byte, 1e-15), (algorithm,))


def _together(ranks: int, channels: list[int], sizes: list[int], repeats: int) -> _Answer:
    """Starts the processes; rank 0 tells what it measured."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = context.Pipe(duplex=False)
        processes = [
            context.Process(
                target=_measure,
                args=(rank, ranks, f"{folder}/store", channels, sizes, repeats, theirs if rank == 0 else None),
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        theirs.close()
        try:
            answer: _Answer = ours.recv()
        finally:
            for process in processes:
                process.join()
    return answer


def _measure(
    rank: int,
    ranks: int,
    store: str,
    channels: list[int],
    sizes: list[int],
    repeats: int,
    answer: Connection | None,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
    )
    samples = [Sample(scheme, ranks, size, _median(scheme, [size], repeats)) for scheme in SCHEMES for size in sizes]
    steps = {
        scheme: _median(scheme, [size for c in channels for size in messages(scheme, c)], max(3, repeats // 5))
        for scheme in SCHEMES
    }
    training = naive_sync.training_steps(max(3, repeats // 5))
    if answer is not None:
        answer.send(_Answer(samples, steps, training))
    dist.barrier()
    dist.destroy_process_group()


def _median(scheme: Scheme, sizes: Sequence[int], repeats: int) -> float:
    """Seconds of these collectives one after the other, the ranks starting together."""
    tensors = [torch.zeros(size // 4) for size in sizes]
    outputs = [tensor.new_empty(dist.get_world_size() * len(tensor)) for tensor in tensors]
    times = []
    for _ in range(repeats + 2):
        dist.barrier()
        begin = time.perf_counter()
        for tensor, output in zip(tensors, outputs, strict=True):
            if scheme == "ours":
                dist.all_gather_into_tensor(output, tensor)
            else:
                dist.all_reduce(tensor)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def tables_of(scale: Scale) -> list[Table]:
    algorithm = scale.network.rings[0]
    checked = [
        [
            step.scheme,
            str(step.ranks),
            number(1e3 * step.predicted),
            number(1e3 * step.measured),
            f"{step.predicted / step.measured:.2f}",
        ]
        for step in scale.steps
    ]
    networks = (scale.network, *KNOWN)
    predicted = [
        [str(ranks), *(number(1e3 * n.step(s, scale.channels, ranks)) for n in networks for s in SCHEMES)]
        for ranks in RANKS
    ]
    sent = [
        [str(ranks), *(number(received(scheme, scale.channels, ranks) / 1e3) for scheme in SCHEMES)] for ranks in RANKS
    ]
    layers = len(scale.channels)
    trained = {(step.ranks, step.way): 1e3 * step.seconds for step in scale.training}
    return [
        Table(
            "Gloo on loopback: a training step of ResNet-50, milliseconds",
            f"forward and backward pass of {naive_sync.IMAGES[0]} images of {naive_sync.IMAGES[-1]}² on each rank, one "
            f"thread each, {scale.machine.cores} cores; alone: without synchronization",
            ("ranks", *naive_sync.WAYS, "naive / ours"),
            [
                [
                    str(ranks),
                    *(number(trained[ranks, way]) for way in naive_sync.WAYS),
                    f"{trained[ranks, 'naive'] / trained[ranks, 'ours']:.2f}",
                ]
                for ranks in sorted({ranks for ranks, _ in trained})
            ],
            words=0,
        ),
        Table(
            f"Gloo on loopback: synchronizing {layers} layers, milliseconds per training step",
            f"fitted to single all_gathers: {1e6 * algorithm.base:.0f} us + (R-1) * ({1e6 * algorithm.within:.0f} us + "
            f"n / ({scale.network.bandwidth / 1e9:.2f} GB/s)); {scale.machine.cores} cores",
            ("scheme", "ranks", "predicted", "measured", "predicted / measured"),
            checked,
        ),
        Table(
            "Predicted, milliseconds per training step",
            "\n".join(f"{index}: {n.name} ({n.source})" for index, n in enumerate(networks, 1)),
            ("ranks", *(f"{scheme} {index}" for index, _ in enumerate(networks, 1) for scheme in SCHEMES)),
            predicted,
            words=0,
        ),
        Table(
            "Received by each rank per training step, kilobytes",
            "ours: all_gather of (mean, M2, count) and of two sums; naive: all_reduce of sum, sum of squares and count",
            ("ranks", *SCHEMES),
            sent,
            words=0,
        ),
    ]


def figure_of(scale: Scale) -> Figure:
    """Milliseconds per training step over the number of ranks, a panel per network."""
    networks = (scale.network, *KNOWN)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, network in zip(figure.subplots(1, len(networks), sharey=True), networks, strict=True):
        for scheme, colour in zip(SCHEMES, plots.COLOURS.values(), strict=True):
            times = [1e3 * network.step(scheme, scale.channels, ranks) for ranks in RANKS]
            axes.plot(RANKS, times, color=colour, label=scheme)
            points = [(s.ranks, 1e3 * s.measured) for s in scale.steps if s.scheme == scheme]
            if network is scale.network and points:
                axes.plot(*zip(*points, strict=True), "o", color=colour, label=f"{scheme}, measured")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([2, 16, 128, 1024], ["2", "16", "128", "1,024"])
        axes.set_title(network.name.replace(", ", ",\n"), fontsize=8)
        axes.set_xlabel("ranks")
        axes.grid(alpha=0.2)
    figure.axes[0].set_ylabel(f"ms per step, {len(scale.channels)} layers")
    figure.axes[0].legend(fontsize=7)
    return figure


def write(scale: Scale, folder: Path) -> list[Path]:
    """``scale.json`` and ``scale.png``."""
    paths = [folder / "scale.json", folder / "scale.png"]
    files.write(paths[0], json_text.of(scale) + "\n")
    files.write(paths[1], plots.as_png(figure_of(scale)))
    return paths
