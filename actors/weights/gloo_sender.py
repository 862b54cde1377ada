"""The gloo backend of weight transfer, for CPUs and tests: the end that sends. Without vLLM."""

from concurrent.futures import Future, ThreadPoolExecutor, wait

from actors.rendezvous import listener, serve_store
from actors.weights.wire import (
    Meeting,
    Meta,
    Outgoing,
    Source,
    TransferClient,
    as_info,
    buckets,
    gloo_group,
    views,
)

_MOMENT_S = 10.0
"""Longest wait for what the engines say of a transfer that has failed."""


class GlooSender:
    """Sends whole models: rank 0 of the policy sends, the other ranks help to gather."""

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        address: str,
        bucket_bytes: int,
        timeout_s: float,
        client: TransferClient,
        source: Source,
    ) -> None:
        """Meet all vLLM workers; `world_size` counts the sender and each of them."""
        self.is_sender = rank == 0
        self.bucket_bytes = bucket_bytes
        self.timeout_s = timeout_s
        self.client = client
        self.source = source
        self.outgoing: Outgoing | None = None
        if self.is_sender:
            self._meet(address, world_size)

    def _meet(self, address: str, world_size: int) -> None:
        store = serve_store(listener(address), world_size, self.timeout_s)
        info: Meeting = {
            "master_address": address,
            "master_port": store.port,
            "world_size": world_size,
            "rank_offset": 1,
            "bucket_bytes": self.bucket_bytes,
            "timeout_s": self.timeout_s,
        }
        # Both sides block until all have met, so the workers' call runs beside ours.
        with ThreadPoolExecutor(1) as beside:
            joined = beside.submit(self.client.init_weight_transfer_engine, info)
            try:
                self.outgoing = Outgoing(gloo_group(store, 0, world_size, self.timeout_s))
            except RuntimeError:
                _raise_what_they_say(joined)
                raise
            joined.result(timeout=self.timeout_s)

    def send_weights(self) -> None:
        """Send what the source yields, on every rank of the policy; raises what goes wrong on either side."""
        metas = self.source.metadata()
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        beside = ThreadPoolExecutor(1)
        received = beside.submit(self.client.take, as_info(metas))
        try:
            self._broadcast(metas, received)
            received.result(timeout=self.timeout_s)
        finally:
            # Never joined: after a failed broadcast the workers may hang in theirs until its deadline.
            beside.shutdown(wait=False)

    def _broadcast(self, metas: list[Meta], received: "Future[None]") -> None:
        assert self.outgoing is not None
        stream = iter(self.source)
        for bucket in buckets(metas, self.bucket_bytes):
            buffer = self.outgoing.empty(bucket)
            # Not strict, and the views first: otherwise a tensor too many would be taken, which the next bucket needs.
            for (name, view), (sent, tensor) in zip(views(buffer, bucket), stream, strict=False):
                assert name == sent, f"source yields {sent} where its metadata says {name}"
                view.copy_(tensor)
            # They are done before the last bucket only when they have failed.
            if received.done():
                received.result()
            try:
                self.outgoing.send(buffer)
            except RuntimeError:
                # Only here: an error of this side's own, in gathering or merging, is itself the cause.
                _raise_what_they_say(received)
                raise
        # Under ZeRO-3 the generator's last gather ends when it is exhausted, on every rank.
        assert next(stream, None) is None


def _raise_what_they_say(call: "Future[None]") -> None:
    """Raise what has failed at those who receive, if they say so soon: it tells more than a broadcast that nobody
    answers, or that they did not come."""
    wait([call], timeout=_MOMENT_S)
    if call.done():
        call.result()
