"""Following a job's log over a websocket, through lost connections, until the job has ended."""

import asyncio
import contextlib
import os
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import aiohttp
import requests

from actors.config import UserError
from launch.jobs.client import CONNECT_S, READ_S, JobsClient, NoAnswer, SubmittedJob

LOST_S = 60.0
"""Time for which a lost connection is tried again, in seconds."""
SILENCE_S = 15.0
"""Silence after which the job's state is asked for: Ray's websocket answers no ping that would show a lost peer."""


class ConnectionLost(UserError):
    """The cluster did not answer for LOST_S while a job was followed; the job may go on."""


@dataclass(slots=True)
class _Tail:
    """The log as it comes, from its beginning with every connection."""

    write: Callable[[str], None]
    known: str = ""
    """How the log begins, unless it is another one, as that of a driver on another node: not to be written."""
    printed: int = 0
    """Characters from the beginning that need not be written (again)."""
    position: int = 0
    heard_s: float = field(default_factory=time.monotonic)
    """When the cluster last answered, on time.monotonic()."""

    pending_said: bool = False

    def say_pending(self, job: SubmittedJob) -> None:
        """Say once what nothing is heard of: a job that does not run yet."""
        if job.state == "PENDING" and not self.pending_said:
            self.pending_said = True
            waits = (
                "it waits for its files on a node, or for a process there (cluster.driver_labels say which nodes); Ray "
                "gives it up after 15 minutes by default"
            )
            print(f"{job.id} is PENDING: {waits}", file=sys.stderr)

    def add(self, text: str) -> None:
        self.heard_s = time.monotonic()
        expected = self.known[self.position : self.position + len(text)]
        if not text.startswith(expected):  # another log than the one that is known: all of it is new
            self.known, self.printed = "", min(self.printed, self.position)
        new = text[max(0, self.printed - self.position) :]
        self.position += len(text)
        self.printed = max(self.printed, self.position)
        if new:
            self.write(new)


def follow_log(client: JobsClient, job_id: str, write: Callable[[str], None], known: str = "") -> SubmittedJob:
    """Write the job's log as it grows, less what is known of it, until the job has ended; returns the job.

    Raises:
        ConnectionLost: no answer for LOST_S.
        UserError: the job is not known, or the token no longer valid.
        KeyboardInterrupt: Ctrl-C; the job goes on.
    """
    return asyncio.run(_follow(client, job_id, _Tail(write, known, len(known))))


async def _follow(client: JobsClient, job_id: str, tail: _Tail) -> SubmittedJob:
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                # Whatever ended it (TimeoutError is an OSError too): what the request below finds counts.
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    await _stream(client, job_id, session, tail)
                job = await asyncio.to_thread(client.job, job_id)
                # What a connection cut short has not brought, or all of it where a proxy lets no websocket through.
                text = await asyncio.to_thread(client.logs, job_id)
                tail.position = 0
                tail.add(text)
                if job.ended:
                    return job
            except NoAnswer as error:
                if time.monotonic() - tail.heard_s > LOST_S:
                    raise ConnectionLost(f"{error.problems[0]} (tried again for {LOST_S:g} s)") from None
            await asyncio.sleep(1)  # a server that is back at once, and away again, is not asked without pause


async def _stream(client: JobsClient, job_id: str, session: aiohttp.ClientSession, tail: _Tail) -> None:
    """Write one connection's text until it ends, or until the job has and nothing more comes."""
    access = client.access
    url = f"{access.address}/api/jobs/{quote(job_id, safe='')}/logs/tail"
    headers = {} if access.token is None else {"Authorization": f"Bearer {access.token}"}
    # The proxy and certificates that requests takes: both ways lead to the same server.
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    timeout = aiohttp.ClientWSTimeout(ws_close=CONNECT_S)  # pyright: ignore[reportCallIssue]
    async with asyncio.timeout(READ_S):
        socket = await session.ws_connect(
            url,
            headers=headers,
            proxy=proxy,
            ssl=_trusted(url),
            max_msg_size=0,  # no limit: from 4 MiB on, by default, aiohttp would close the connection
            timeout=timeout,
        )
    tail.position = 0
    ended = False
    try:
        while True:
            try:
                message = await socket.receive(timeout=SILENCE_S)
            except TimeoutError:
                if ended:  # silent for a second time since the job ended: nothing more comes
                    return
                job = await asyncio.to_thread(client.job, job_id)
                ended = job.ended
                tail.say_pending(job)
                tail.heard_s = time.monotonic()
                continue
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            tail.add(message.data)
    finally:
        await socket.close()


def _trusted(url: str) -> ssl.SSLContext | bool:
    """The certificates that requests trusts, for https."""
    if not url.startswith("https://"):
        return True
    named = (
        os.environ.get("REQUESTS_CA_BUNDLE")
        or os.environ.get("CURL_CA_BUNDLE")
        or requests.utils.DEFAULT_CA_BUNDLE_PATH
    )
    folder = os.path.isdir(named)
    return ssl.create_default_context(cafile=None if folder else named, capath=named if folder else None)
