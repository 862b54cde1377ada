"""A transfer over gloo that loses a member ends soon for all others: real processes, a sender here."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.weights import wire
from actors.weights.gloo_sender import GlooSender
from actors.weights.wire import Meta

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 120.0
"""Of the transfer: nobody shall wait for it."""
SOON_S = 30.0
METAS = [Meta("weight", torch.float32, (4, 3))]
WORKER = """
import json, sys, time
import torch
from actors.weights import wire
from actors.weights.wire import Meta, join_meeting, receive_bucket

meeting, place, comes = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if comes == "never":
    time.sleep(600)
print("comes", flush=True)
if comes == "stops":
    wire.gloo_group = lambda *_: time.sleep(600)
try:
    group = join_meeting({**meeting, "rank_offset": 1 + place})
    print("met", flush=True)
    bucket = [Meta("weight", torch.float32, (4, 3))]
    for _ in range(2):
        print("got", receive_bucket(group, bucket).sum().item(), flush=True)
except RuntimeError as error:
    print("freed", type(error).__name__, flush=True)
"""


class Workers:
    """Two processes that receive; `take` says what the test wants it to."""

    def __init__(self, comes: tuple[str, str]) -> None:
        self.comes = comes
        self.processes: list[subprocess.Popen[str]] = []
        self.lost = threading.Event()
        """The engine's death is known to whoever has asked it."""

    def init_weight_transfer_engine(self, info: Any) -> None:
        import json

        for place, comes in enumerate(self.comes):
            command = [sys.executable, "-c", WORKER, json.dumps(info), str(place), comes]
            self.processes.append(
                subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            )
        if "never" in self.comes:
            assert self.says(0) == "comes"
            time.sleep(1.0)  # until it waits in the meeting
            raise ConnectionError("it died while they met")
        assert [self.says(place) for place in (0, 1)] == ["comes", "comes"]
        if "stops" in self.comes:
            self.lost.wait(SOON_S)
            raise ConnectionError("it stopped while they met")
        assert [self.says(place) for place in (0, 1)] == ["met", "met"]

    def take(self, info: Any) -> None:
        if self.lost.wait(SOON_S if "dies" in self.comes else 0):
            raise ConnectionError("it died")
        [self.says(place) for place in (0, 1)]

    def says(self, place: int) -> str:
        out = self.processes[place].stdout
        assert out is not None
        return out.readline().strip()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


class Weights:
    def metadata(self) -> list[Meta]:
        return METAS

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "weight", torch.ones(4, 3)


@pytest.fixture
def workers() -> Iterator[Callable[[str, str], Workers]]:
    made: list[Workers] = []

    def make(*comes: str) -> Workers:
        made.append(Workers(comes))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.end()


def sender(client: Workers) -> GlooSender:
    return GlooSender(
        rank=0,
        world_size=3,
        address="127.0.0.1",
        bucket_bytes=1024,
        timeout_s=TIMEOUT_S,
        client=client,
        source=Weights(),
    )


def test_one_that_is_dead_before_a_transfer_keeps_nobody_waiting(workers: Callable[..., Workers]) -> None:
    """The sender is told before it has sent anything: whoever waits for its first tensor is freed all the same.

    And the next transfer meets anew.
    """
    client = workers("comes", "dies")
    made = sender(client)
    client.processes[1].kill()
    client.processes[1].wait()
    client.lost.set()
    began = time.monotonic()
    with pytest.raises((ConnectionError, RuntimeError)):
        made.send_weights()
    assert client.says(0) in ("freed RuntimeError", "freed DistBackendError")
    assert time.monotonic() - began < SOON_S and made.outgoing is None
    client.end()
    client.processes.clear()
    client.comes, client.lost = ("comes", "comes"), threading.Event()
    made.send_weights()
    assert made.outgoing is not None and len(client.processes) == 2


def test_one_that_dies_on_its_way_to_the_meeting_keeps_nobody_waiting(workers: Callable[..., Workers]) -> None:
    """Neither the sender nor the one that has come, which both wait in the meeting."""
    client = workers("comes", "never")
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="it died while they met"):
        sender(client)
    assert client.says(0) in ("freed RuntimeError", "freed DistBackendError", "freed DistNetworkError")
    assert time.monotonic() - began < SOON_S


def test_one_that_stops_in_the_meeting_keeps_nobody_waiting(
    workers: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has come, and is needed to connect."""
    monkeypatch.setattr(wire, "_MESH_S", 1.0)
    client = workers("comes", "stops")
    began = time.monotonic()
    known = threading.Timer(2.0, client.lost.set)
    known.start()
    with pytest.raises(ConnectionError, match="it stopped while they met"):
        sender(client)
    assert client.says(0) in ("freed RuntimeError", "freed DistStoreError", "freed DistNetworkError")
    assert time.monotonic() - began < SOON_S
    known.join()


def test_what_was_agreed_for_a_transfer_holds_after_the_meeting(
    workers: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is late for a tensor has more time than for the meeting."""
    monkeypatch.setattr(wire, "_MESH_S", 0.5)
    client = workers("comes", "comes")
    made = sender(client)
    assert made.outgoing is not None
    client.processes[1].send_signal(signal.SIGSTOP)
    resumed = threading.Timer(1.5, client.processes[1].send_signal, [signal.SIGCONT])
    resumed.start()
    made.send_weights()
    resumed.join()


def test_torch_frees_peers_of_gloo_only_when_the_group_is_gone() -> None:
    """torch 2.13: abort and shutdown leave those who wait where they are; this is why frames are cleared."""
    ways = ("abort", "shutdown", "del")
    with ThreadPoolExecutor(len(ways)) as beside:
        found = dict(zip(ways, beside.map(freed_after, ways), strict=True))
    assert found["del"] == "freed"
    assert found["abort"] == found["shutdown"] == "waits", "torch has mended it: _letting_go may call it instead"


def freed_after(how: str) -> str:
    script = """
import sys, time, torch, torch.distributed as dist
from datetime import timedelta
rank, port, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
store = dist.TCPStore("127.0.0.1", port, 2, timeout=timedelta(seconds=60), is_master=rank == 0, wait_for_workers=False)
if rank == 0:
    print(store.port, flush=True)
group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))
if rank == 1:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    print("met", flush=True)
    group.broadcast([torch.zeros(3)], options).wait()
else:
    sys.stdin.readline()
    if how == "del":
        del group
    else:
        getattr(group, how)()
    print("did", flush=True)
    time.sleep(600)
"""
    processes = []

    def start(rank: int, port: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(rank), port, how]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, text=True, **pipes))
        return processes[-1]

    try:
        first = start(0, "0")
        assert first.stdout and first.stdin
        second = start(1, first.stdout.readline().strip())
        assert second.stdout and second.stdout.readline() == "met\n"
        time.sleep(0.2)
        first.stdin.write("go\n")
        first.stdin.flush()
        assert first.stdout.readline() == "did\n"
        try:
            second.wait(SOON_S if how == "del" else 1.5)
        except subprocess.TimeoutExpired:
            return "waits"
        return "freed"
    finally:
        for process in processes:
            process.kill()
            process.wait()
