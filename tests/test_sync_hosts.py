"""SyncBatchNorm between two hosts: network namespaces with a cable between them, which is cut in the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import sync_host

HOSTS = ((f"my_ops_a_{os.getpid()}", "10.77.61.1"), (f"my_ops_b_{os.getpid()}", "10.77.61.2"))
CARD = "sync0"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    if shutil.which("ip") is None:
        pytest.skip("needs the program `ip` to make network namespaces")
    with ExitStack() as stack:
        try:
            for name, _ in HOSTS:
                _ip("netns", "add", name)
                stack.callback(_ip, "netns", "del", name)
            ends = [("name", CARD, "netns", name) for name, _ in HOSTS]
            _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
            for name, address in HOSTS:
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", CARD)
                _ip("-n", name, "link", "set", CARD, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"may not make network namespaces here: {error.stderr.strip()}")
        yield


def _start(rank: int) -> subprocess.Popen[str]:
    name, _ = HOSTS[rank]
    program = str(Path(__file__).with_name("sync_host.py"))
    return subprocess.Popen(
        ["ip", "netns", "exec", name, sys.executable, program, str(rank), HOSTS[0][1], CARD],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_hosts_and_a_cut_cable(hosts: None) -> None:
    with ExitStack() as stack:
        programs = [stack.enter_context(_start(rank)) for rank in range(2)]
        for program in programs:
            stack.callback(program.kill)
        lines = [program.stdout for program in programs]

        # 8*C + 8 bytes forward and 8*C backward in float32; what TCP and Gloo add to each message is small.
        payload = 16 * sync_host.CHANNELS + 8
        for line in lines:
            assert payload <= float(line.readline()) <= 1.05 * payload

        assert [line.readline().strip() for line in lines] == ["stepping"] * 2
        time.sleep(0.5)
        _ip("-n", HOSTS[1][0], "link", "set", CARD, "down")
        for line in lines:
            seconds, _, message = line.readline().partition(" s: ")
            assert float(seconds) < 3 * sync_host.TIMEOUT
            assert message.startswith("sync_batchnorm: expected an answer of all 2 ranks"), message
