"""A process that keeps the last published weights in its memory and serves them to engines, whenever these come.

    policy rank 0 --join, receive, keep--> [holder: buckets of bytes] --offer, serve--> worker processes of one engine

It has no model and no vLLM. While a version arrives it still has the one before, so that its memory is twice a model's.
"""

from dataclasses import dataclass

import numpy as np
import ray
import torch

from actors.files.own_files import load_data_only
from actors.output_log import write_output_to_log
from actors.pulse import Pulse, Work
from actors.rendezvous import listener, meet_on_node_address, node_address, serve_store
from actors.rollout.worker import Adapter
from actors.weights.offer import Offer, join_offer
from actors.weights.probe import trainer_answers
from actors.weights.ticket import Kind
from actors.weights.wire import (
    Group,
    Meeting,
    Meta,
    Tensors,
    as_info,
    as_metas,
    buckets,
    join_meeting,
    receive_bucket,
    send_bucket,
    views,
)

HOLDER_CONCURRENCY = {"serve": 64}
"""Calls that run at one time beside what comes from the trainer: engines that are served, above all."""


@dataclass(frozen=True, slots=True)
class Held:
    """Whole weights as they came; never changed, so that a serving goes on with them when newer ones come."""

    version: int
    metas: list[Meta]
    buffers: list[torch.Tensor]
    """Bytes of each bucket."""


class WeightHolder:
    """The holder; a group of one."""

    def __init__(self, rank: int, world_size: int, bucket_bytes: int, timeout_s: float) -> None:
        write_output_to_log()
        load_data_only()
        meet_on_node_address()
        self.bucket_bytes = bucket_bytes
        self.timeout_s = timeout_s
        self.held: Held | None = None
        self.adapter: tuple[int, Adapter] | None = None
        self.checksums: dict[Kind, dict[str, int]] = {}
        self.arrived: tuple[list[Meta], list[torch.Tensor]] | None = None
        self.group: Group | None = None
        self.work = Work()
        # One store for all servings, each under a key of its own: engines find it where it was.
        self.server = serve_store(listener(node_address()), 1, timeout_s)

    def pulse(self) -> Pulse:
        """Whether it receives now, and how many buckets it has so far; servings, which are beside it, do not count."""
        return self.work.pulse()

    def join(self, info: Meeting) -> None:
        """Meet the trainer's sender, which takes the place of any before it."""
        self.group = join_meeting(info)

    def receive(self, info: Tensors) -> None:
        """Receive whole weights; what was received before goes on being served."""
        # Let go before the new ones come: with what is served, there is memory for two models, not three.
        self.arrived = None
        metas, buffers = as_metas(**info), []
        assert self.group is not None, "join comes first"
        with self.work.on("receive"):
            for bucket in buckets(metas, self.bucket_bytes):
                buffers.append(receive_bucket(self.group, bucket))
                self.work.progressed()
        self.arrived = metas, buffers

    def keep(self, version: int) -> None:
        """Serve what has arrived as `version` from now on, without an adapter."""
        if self.arrived is None:
            raise RuntimeError(f"asked to keep version {version} before all of it arrived")
        (metas, buffers), self.arrived = self.arrived, None
        self.held, self.adapter = Held(version, metas, buffers), None

    def keep_adapter(self, adapter: Adapter, version: int) -> None:
        """Serve this adapter as `version` from now on, beside the weights there are."""
        self.adapter = version, adapter

    def note(self, kind: Kind, checksums: dict[str, int]) -> None:
        """Remember the trainer's checksums of a part."""
        self.checksums[kind] = checksums

    @ray.method(concurrency_group="serve")
    def offer(self, version: int) -> Offer:
        """Where, and as what, whole weights of this version are served; raises ValueError when there are others."""
        held = self._held(version)
        address, port = node_address(), self.server.port
        tensors = as_info(held.metas)
        return Offer(
            version=version,
            address=address,
            port=port,
            key="",  # whoever is served gets one
            bucket_bytes=self.bucket_bytes,
            timeout_s=self.timeout_s,
            tensors=tensors,
        )

    @ray.method(concurrency_group="serve")
    def serve(self, offer: Offer, workers: int) -> None:
        """Send whole weights to the worker processes of one engine, which come for this offer."""
        # Kept by this name until all is sent, also when a newer version comes meanwhile.
        held = self._held(offer.version)
        group = join_offer(offer, 0, 1 + workers)
        for buffer in held.buffers:
            send_bucket(group, buffer)
        # Nobody leaves while another still receives.
        group.barrier().wait()

    @ray.method(concurrency_group="serve")
    def adapter_of(self, version: int) -> Adapter:
        """The adapter of this version; raises ValueError when there is another."""
        if self.adapter is None or self.adapter[0] != version:
            there = "none" if self.adapter is None else f"that of version {self.adapter[0]}"
            raise ValueError(f"asked for the adapter of version {version}, the holder has {there}")
        return self.adapter[1]

    @ray.method(concurrency_group="serve")
    def sent(self, kind: Kind) -> dict[str, int]:
        """The trainer's checksums of a part."""
        return self.checksums[kind]

    @ray.method(concurrency_group="serve")
    def answers(self, seed: int) -> dict[str, np.ndarray]:
        """What the weights answer to a fixed input; see `actors.weights.probe`."""
        held = self.held
        assert held is not None
        pairs = zip(held.buffers, buckets(held.metas, self.bucket_bytes), strict=True)
        return trainer_answers((each for buffer, bucket in pairs for each in views(buffer, bucket)), seed)

    def _held(self, version: int) -> Held:
        held = self.held
        if held is None or held.version != version:
            there = "none" if held is None else f"those of version {held.version}"
            raise ValueError(f"asked for the weights of version {version}, the holder has {there}")
        return held
