"""Buckets that processes of one node copy from shared memory: the same bytes, whole ones, and nothing left over."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.group import ONE_NODE
from actors.weights import wire
from actors.weights.shared_buckets import Reader, SharedMemory
from actors.weights.wire import Meta, Outgoing, receive_bucket

META = [Meta("w", torch.float32, (5, 3)), Meta("none", torch.float32, (0,))]
LARGER = [Meta("v", torch.float32, (4096,))]
OTHER = """
import sys
from actors.weights.shared_buckets import Reader
reader, place = Reader(), tuple(map(int, sys.argv[1:]))
for _ in sys.stdin:
    bytes = reader.read(place, 6)
    print(bytes.tolist(), flush=True)
    bytes.fill_(9)
"""


def test_another_process_has_copies_of_what_is_there_at_the_time() -> None:
    memory = SharedMemory(8)
    command = [sys.executable, "-c", OTHER, *map(str, memory.place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin and other.stdout
        for start in (0, 20):
            memory.bytes(6).copy_(torch.arange(start, start + 6))
            other.stdin.write("read\n")
            other.stdin.flush()
            assert other.stdout.readline() == f"{list(range(start, start + 6))}\n"
            assert memory.bytes(6).tolist() == list(range(start, start + 6)), "its own alone is changed there"
        other.stdin.close()
    assert other.returncode == 0


def test_what_is_read_stays_when_the_memory_is_written_to_again_or_gone() -> None:
    memory, reader = SharedMemory(4), Reader()
    place = memory.place
    memory.bytes(4).fill_(7)
    found = reader.read(place, 4)
    memory.bytes(4).fill_(8)
    assert found.tolist() == [7] * 4
    del memory
    with pytest.raises(FileNotFoundError):
        Reader().read(place, 4)
    # The number of a descriptor comes again: other memory is not taken for it.
    taken = [SharedMemory(4) for _ in range(20)]
    assert any(each.place[1] == place[1] for each in taken)
    with pytest.raises(FileNotFoundError, match="is gone"):
        Reader().read(place, 4)


def test_memory_of_nothing() -> None:
    memory = SharedMemory(0)
    assert memory.bytes(0).shape == Reader().read(memory.place, 0).shape == (0,)


class Wire:
    """A group of two in one process: what is broadcast first is what the other gets."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []
        self.receives = False
        self.got: list[torch.Tensor] = []
        self.bucket = META

    def broadcast(self, tensors: list[torch.Tensor], options: object) -> Any:
        if self.receives:
            tensors[0].copy_(self.sent.pop(0))
        else:
            self.sent.append(tensors[0].clone())
        return SimpleNamespace(wait=lambda: None)

    def receive(self) -> None:
        self.receives = True
        self.got.append(receive_bucket(self, self.bucket))
        self.receives = False

    def barrier(self) -> Any:
        return SimpleNamespace(wait=self.met)

    def met(self) -> None:
        """The other one receives while this one waits."""
        if not self.receives:
            self.receive()


@pytest.mark.parametrize("one_node", [True, False])
def test_only_a_place_goes_over_the_wire_where_all_are_on_one_node(
    one_node: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And memory is made once, or when a bucket is larger than any before."""
    monkeypatch.setenv(ONE_NODE, "1") if one_node else monkeypatch.delenv(ONE_NODE, raising=False)
    monkeypatch.setattr(wire, "_READER", Reader())
    before = len(os.listdir("/proc/self/fd"))
    group = Wire()
    outgoing, expected = Outgoing(group), []
    for seed, group.bucket in enumerate([META, META, LARGER, META]):
        buffer = outgoing.empty(group.bucket)
        buffer.copy_(torch.randint(0, 255, buffer.shape, generator=torch.Generator().manual_seed(seed)))
        expected.append(buffer.clone())
        outgoing.send(buffer)
        if not one_node:
            assert [len(each) for each in group.sent] == [3, len(buffer)]
            group.receive()
        # Python's mmap keeps one of its own, on either side.
        assert len(os.listdir("/proc/self/fd")) <= before + 3 * one_node
    assert all(got.equal(sent) for got, sent in zip(group.got, expected, strict=True))
    wire._READER._last = None
    del outgoing, buffer
    assert len(os.listdir("/proc/self/fd")) == before, "no descriptor is left"


def test_a_receiver_that_does_not_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ONE_NODE, "1")

    def gone() -> None:
        raise RuntimeError("Connection closed by peer")

    group: Any = Wire()
    group.met, outgoing = gone, Outgoing(group)
    with pytest.raises(RuntimeError, match="closed by peer"):
        outgoing.send(outgoing.empty(META))
