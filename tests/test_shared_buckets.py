"""Buckets that processes of one node map: the same bytes, nobody else's afterwards, and no descriptor left over."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.group import ONE_NODE
from actors.weights.shared_buckets import SharedBucket, mapped
from actors.weights.wire import Meta, empty_bucket, receive_bucket, send_bucket

META = [Meta("w", torch.float32, (5, 3)), Meta("none", torch.float32, (0,))]
OTHER = """
import sys
from actors.weights.shared_buckets import mapped
bytes = mapped((int(sys.argv[1]), int(sys.argv[2])), 6)
print(bytes.tolist())
bytes.fill_(9)
print(bytes.tolist())
"""


def test_another_process_sees_the_bytes_and_changes_only_its_own() -> None:
    bucket = SharedBucket(6)
    bucket.bytes.copy_(torch.arange(6, dtype=torch.uint8))
    command = [sys.executable, "-c", OTHER, *map(str, bucket.place)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.split("\n")[:2] == ["[0, 1, 2, 3, 4, 5]", "[9, 9, 9, 9, 9, 9]"]
    assert bucket.bytes.tolist() == [0, 1, 2, 3, 4, 5]
    bucket.close()


def test_what_is_mapped_outlives_its_sender_and_nobody_comes_later() -> None:
    bucket = SharedBucket(4)
    bucket.bytes.fill_(7)
    place = bucket.place
    found = mapped(place, 4)
    bucket.close()
    with pytest.raises(FileNotFoundError):
        mapped(place, 4)
    del bucket
    assert found.tolist() == [7] * 4


def test_a_bucket_of_nothing() -> None:
    bucket = SharedBucket(0)
    assert bucket.bytes.shape == mapped(bucket.place, 0).shape == (0,)
    bucket.close()


class Wire:
    """A group of two in one process: what is broadcast first is what the other gets."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []
        self.receives = False

    def broadcast(self, tensors: list[torch.Tensor], options: object) -> Any:
        if self.receives:
            tensors[0].copy_(self.sent.pop(0))
        else:
            self.sent.append(tensors[0].clone())
        return SimpleNamespace(wait=lambda: None)

    def barrier(self) -> Any:
        return SimpleNamespace(wait=self.met)

    def met(self) -> None:
        """The other one receives while this one waits."""
        if not self.receives:
            self.receives = True
            self.got = receive_bucket(self, META)


@pytest.mark.parametrize("one_node", [True, False])
def test_only_a_place_goes_over_the_wire_where_all_are_on_one_node(
    one_node: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ONE_NODE, "1") if one_node else monkeypatch.delenv(ONE_NODE, raising=False)
    before = len(os.listdir("/proc/self/fd"))
    wire, bucket = Wire(), empty_bucket(META)
    filled = bucket if isinstance(bucket, torch.Tensor) else bucket.bytes
    filled.copy_(torch.arange(len(filled)))
    send_bucket(wire, bucket)
    if not one_node:
        assert [len(each) for each in wire.sent] == [2, 64]
        wire.receives = True
        wire.got = receive_bucket(wire, META)
    assert wire.got.tolist() == list(range(64))
    del bucket, filled, wire
    assert len(os.listdir("/proc/self/fd")) == before, "no descriptor is left"


def test_no_descriptor_is_left_where_the_others_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ONE_NODE, "1")

    def gone() -> None:
        raise RuntimeError("Connection closed by peer")

    wire: Any = Wire()
    wire.met = gone
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(RuntimeError, match="closed by peer"):
        send_bucket(wire, empty_bucket(META))
    assert set(Path("/proc/self/fd").iterdir()) <= before
