"""Ray workers of tests that start with their imports done: a process that has them forks one for each.

A rank's start is 3 to 7 s of imports, and the tests start a hundred of them. So Ray's raylets are told to start workers
by `preloaded_client.py`, which hands its command, environment, directory and output to the process here, if there is
one, and otherwise runs the command as Ray would have. Nothing else is different: a worker is forked before anything
of Ray, DeepSpeed or vLLM has begun to work, and runs Ray's own program.

Trainers and engines are forked from processes of their own, with the modules that such a rank imports, and each number
of OpenMP threads has others: OpenMP reads it when it is loaded. Most runs that start `alone`, those of tests/cluster
and what a user starts do without.

    python -m tests.preloaded SOCKET    # until its standard input ends
"""

import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

CLIENT = Path(__file__).with_name("preloaded_client.py")
SOCKET = "TANDEM_TEST_PRELOADED"
"""Environment variable that tells clients where to ask."""
MARK = "TANDEM_TEST_RUN"
"""Environment variable that tells the processes of a test's run from others, in /proc too."""
FAULT = "TANDEM_TEST_FAULT"
"""Environment variable that puts a fault into engines that are forked: a function of `tests.transfer_faults`, and the
file that it gets, with a colon between."""
NO_MARK = "0" * 32
"""Of processes that fork others: as long as a mark, to be written over in those."""
_TRAINER = ("deepspeed", "deepspeed.runtime.checkpoint_engine", "peft", "transformers.models.qwen2.modeling_qwen2")
_ENGINE = ("vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", "vllm.model_executor.models.qwen2", "peft")
_ENGINE += ("vllm.entrypoints.llm", "vllm.v1.sample.sampler", "vllm.model_executor.model_loader.dummy_loader")


@contextmanager
def preloaded_workers() -> Iterator[None]:
    """Within the block, raylets that this process starts ask for their workers' processes here."""
    from launch.run.local_ray import only_what_is_used

    parameter = importlib.import_module("ray._private.parameter")
    with only_what_is_used():  # which puts Ray's own class back in the end
        parameter.RayParams = partial(parameter.RayParams, setup_worker_path=str(CLIENT))
        yield


def draw_nothing() -> None:
    """Runs of this process end without a picture, which takes a second of processor time: what is drawn is tested
    elsewhere, and runs that start as a user's draw theirs."""
    from launch.tracking.redraw import CurveDrawer

    CurveDrawer.finish = CurveDrawer.stop


def start_ray() -> None:
    """`ray ...` with the arguments of this process, whose raylet starts workers so."""
    with preloaded_workers():
        importlib.import_module("ray.scripts.scripts").main()


def start_command() -> None:
    """`python -m launch ...` with the arguments of this process; a Ray that it starts for itself starts workers so."""
    draw_nothing()
    with preloaded_workers():
        runpy.run_module("launch", run_name="__main__", alter_sys=True)


@contextmanager
def server(directory: Path) -> Iterator[None]:
    """Within the block, clients of this process's descendants are answered; nothing is loaded before one asks."""
    path = directory / "preloaded"
    command = [sys.executable, "-m", "tests.preloaded", str(path)]
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), MARK: NO_MARK}
    with (directory / "preloaded.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        )
    os.environ[SOCKET] = str(path)
    try:
        yield
    finally:
        del os.environ[SOCKET]
        process.communicate(timeout=30)  # its standard input ends, and with it the process


class Server:
    """Answers clients, and forks for each kind of worker a process that loads its modules and then does the same."""

    def __init__(self, path: str) -> None:
        # Packets: a request is received whole.
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(64)
        self.loaded: dict[tuple[bool, str], socket.socket] = {}
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers

    def serve(self) -> None:
        """Until the standard input ends."""
        while True:
            ready, _, _ = select.select([self.listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = self.listener.accept()
            with connection:
                self._hand_on(connection)

    def _hand_on(self, connection: socket.socket) -> None:
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 8)
        if not message:
            return
        environment = json.loads(message)["environment"]
        kind = _is_engine(environment), environment.get("OMP_NUM_THREADS", "1")
        if kind not in self.loaded:
            self.loaded[kind] = self._load(*kind, connection)
        # What could not load its modules has ended: the client is not answered, and starts its worker itself.
        with suppress(BrokenPipeError):
            # The connection goes along: it ends when the worker does.
            socket.send_fds(self.loaded[kind], [message], [*descriptors, connection.fileno()])
        for descriptor in descriptors:
            os.close(descriptor)

    def _load(self, engine: bool, threads: str, connection: socket.socket) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if os.fork() == 0:
            for other in (ours, self.listener, connection, *self.loaded.values()):
                other.close()
            os.environ["OMP_NUM_THREADS"] = threads
            _import(_ENGINE if engine else _TRAINER)
            _fork_workers(theirs)
        theirs.close()
        return ours


def _import(names: tuple[str, ...]) -> None:
    from actors.quick_import import quick_vllm, without_science

    # Ray reads its worker's environment when it is loaded: vLLM, which has no use for it here, must not load it before.
    sys.modules["ray"] = None
    without_science()
    with quick_vllm(compiled=False):
        for name in names:
            importlib.import_module(name)
    del sys.modules["ray"]
    gc.collect()
    gc.freeze()  # so that a worker's collections do not touch, and copy, what is shared


def _fork_workers(requests: socket.socket) -> None:
    """One for each request, until nobody can ask any more; then the process ends."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 8)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            _become(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _become(given: dict, descriptors: list[int]) -> None:
    """Run the client's command in this process, in its place."""
    for target, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.setpgrp()  # as a worker that Ray starts: its raylet ends the whole group with it
    os.write(descriptors[3], b"1")
    os.set_inheritable(descriptors[3], False)  # the client waits for this process, not for those that it starts
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(given["directory"])
    os.environ.clear()
    os.environ.update(given["environment"])
    if MARK in os.environ:
        show_mark(os.environ[MARK])
    random.seed()
    importlib.import_module("numpy").random.seed()
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = given["command"]
    sys.path[:0] = [str(Path(sys.argv[0]).parent), *filter(None, paths)]
    if FAULT in os.environ and _is_engine(os.environ):
        fault, _, file = os.environ[FAULT].partition(":")
        getattr(importlib.import_module("tests.transfer_faults"), fault)(Path(file))
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(code)


def _is_engine(environment: Mapping[str, str]) -> bool:
    return "/rollout-" in environment["TANDEM_LOG"]


def show_mark(mark: str) -> None:
    """Have /proc give this process's mark: it shows the environment that the process was started with, in place."""
    numbers = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(numbers[47]), int(numbers[48])
    block = (ctypes.c_char * (end - start)).from_address(start)
    place = block.raw.index(f"{MARK}={NO_MARK}".encode()) + len(f"{MARK}=")
    ctypes.memmove(start + place, mark.encode(), len(NO_MARK))


if __name__ == "__main__":
    Server(sys.argv[1]).serve()
