"""One host of tests/test_sync_hosts.py: `python sync_host.py RANK ADDRESS INTERFACE`, in a network namespace.

Prints a line per phase: the bytes that a training step sent, then "stepping", then the error that ended it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

CHANNELS, STEPS, TIMEOUT = 4096, 20, 4.0


def main(rank: int, address: str, interface: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    import torch
    import torch.distributed as dist

    import my_ops
    import ranks
    import sync_checks

    torch.set_num_threads(1)
    ranks.join(rank, 2, f"tcp://{address}:29500", TIMEOUT)
    torch.manual_seed(1)
    sync_checks.steps((3, 5), torch.float32)

    module = my_ops.SyncBatchNorm(CHANNELS)
    input = torch.randn(2, CHANNELS, requires_grad=True)
    module(input).sum().backward()
    counter = Path(f"/sys/class/net/{interface}/statistics/tx_bytes")
    dist.barrier()
    before = int(counter.read_text())
    for _ in range(STEPS):
        module(input).sum().backward()
    print((int(counter.read_text()) - before) / STEPS, flush=True)

    print("stepping", flush=True)
    begin = time.monotonic()
    try:
        sync_checks.step_forever(my_ops.SyncBatchNorm(3))
    except dist.DistBackendError as error:
        print(f"{time.monotonic() - begin:.1f} s: {error}", flush=True)
    os._exit(0)  # nobody is left to say goodbye to


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
