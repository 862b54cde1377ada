"""The gloo backend of weight transfer, for CPUs and tests: the end that sends. Without vLLM."""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from traceback import clear_frames

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from actors.rendezvous import listener, serve_store
from actors.weights.wire import (
    Meeting,
    Meta,
    Outgoing,
    Source,
    TransferClient,
    arrival,
    as_info,
    buckets,
    lead_meeting,
    views,
)

_SOON_S = 0.002
"""Between two looks at who has come."""
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
        self.address, self.world_size = address, world_size
        self.outgoing: Outgoing | None = None
        with _letting_go():
            self._meet()

    def _meet(self) -> None:
        """On rank 0, meet all workers, unless they have met and nothing has failed since."""
        if not self.is_sender or self.outgoing is not None:
            return
        address, world_size = self.address, self.world_size
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
                wait_for_arrivals(store, range(1, world_size), joined, self.timeout_s)
                self.outgoing = Outgoing(lead_meeting(store, world_size, self.timeout_s))
            except RuntimeError:
                _raise_what_they_say(joined)
                raise
            joined.result(timeout=self.timeout_s)

    def send_weights(self) -> None:
        """Send what the source yields, on every rank of the policy; raises what goes wrong on either side.

        After a failure the workers are met anew by the next call.
        """
        with _letting_go():
            try:
                self._meet()
                self._send()
            except BaseException:
                self.outgoing = None
                raise

    def _send(self) -> None:
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


@contextmanager
def _letting_go() -> Iterator[None]:
    """Where something fails within, nothing keeps the transfer's group and store any more: those who still wait for
    this side hear that it is gone, once its sockets are closed. Neither `abort` nor `shutdown` of gloo in torch 2.13
    does that."""
    try:
        yield
    except BaseException as error:
        found: BaseException | None = error
        while found is not None:
            clear_frames(found.__traceback__)
            found = found.__cause__ or found.__context__
        raise


def wait_for_arrivals(store: TCPStore, ranks: Iterable[int], joined: "Future[None]", timeout_s: float) -> None:
    """Until these ranks have come to a meeting: to wait for them in the meeting itself cannot be ended.

    Raises what `joined` does, where that fails before they are there, and RuntimeError after the deadline.
    """
    until, missing = time.monotonic() + timeout_s, [arrival(rank) for rank in ranks]
    while missing := [key for key in missing if not store.check([key])]:
        if joined.done():
            joined.result()
        if time.monotonic() > until:
            raise RuntimeError(f"not all came to the transfer group within {timeout_s:g} s: no {', '.join(missing)}")
        time.sleep(_SOON_S)


def _raise_what_they_say(call: "Future[None]") -> None:
    """Raise what has failed at those who receive, if they say so soon: it tells more than a broadcast that nobody
    answers, or that they did not come."""
    wait([call], timeout=_MOMENT_S)
    if call.done():
        call.result()
