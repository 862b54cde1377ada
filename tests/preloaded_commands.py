"""`python -m launch ...` of tests, forked from a process that has imported what the command line imports.

A command of a second is mostly imports, and the tests give a hundred of them. A forked one has the arguments,
environment, directory, streams and session of one that is started, runs `launch` as its main module, and what it has
not imported itself is not among its modules: the tokenizers' library, torch and Ray, which commands and `launch.run`
look for, stay hidden until they are imported. What a library reads of the environment when it is imported, it has read
before the fork: all commands of one process have one environment. It skips the interpreter's end, but for functions
that are registered for it.

Tests of how long a command takes, of what it imports, of terminals, and runs that start `alone`, start it for real.

    python -m tests.preloaded_commands DESCRIPTOR [--runs]    # until the other end of that socket is closed
"""

import atexit
import builtins
import gc
import importlib
import importlib.machinery
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from tests.preloaded import MARK, NO_MARK, draw_nothing, show_mark

ROOT = Path(__file__).resolve().parent.parent
_OF_EACH = (MARK, "PYTEST_CURRENT_TEST")
"""Variables that each command has a value of its own of: nothing reads them when it is imported."""
_OURS = ("launch", "algorithms", "actors")
# Not launch.cli, which takes the time when it is imported.
_ALL = ("launch.checks.check", "launch.checks.report", "launch.checks.tokenizer_process", "launch.checks.engine_shape")
_ALL += ("launch.config", "launch.settings.rules", "launch.kinds.table", "launch.jobs.cluster_verbs")
_ALL += ("launch.verbs.parsing", "launch.verbs.arguments", "launch.verbs.export", "launch.verbs.chat")
_ALL += ("algorithms.data.run_data", "algorithms.data.held_out", "multiprocessing.connection")
_TOKENIZERS = ("transformers.tokenization_utils_tokenizers",)
_RUNS = ("torch", "ray", "launch.run.run", "launch.run.rl_models", "launch.run.roster")
_RUNS += ("algorithms.rl.grpo", "algorithms.rl.ppo", "algorithms.offline.dpo", "algorithms.offline.sft")


class Commands:
    """A process that forks commands of one environment; a context manager that ends it, not what it has forked."""

    def __init__(self, environment: Mapping[str, str], *, runs: bool = False) -> None:
        self.environment = {name: value for name, value in environment.items() if name not in _OF_EACH}
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        program = [sys.executable, "-m", "tests.preloaded_commands", str(theirs.fileno()), *["--runs"] * runs]
        with theirs:
            self._process = subprocess.Popen(
                program,
                cwd=ROOT,
                env=self.environment | {MARK: NO_MARK},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()
        self._process.wait(30)

    def start(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: Any, stderr: Any
    ) -> "Command":
        """Fork `python -m launch ARGUMENTS` as the leader of a session, without an input."""
        own = {name: value for name, value in env.items() if name in _OF_EACH}
        assert self.environment | own == env, "the environment must be that of the process that imports"
        request = {"arguments": list(arguments), "directory": str(cwd), "own": own}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.devnull) as nothing:
            descriptors = [stream.fileno() for stream in (nothing, stdout, stderr, theirs)]
            socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)
        return Command(ours, ["python", "-m", "launch", *arguments])

    def run(
        self, *arguments: str, cwd: Path, env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Like `subprocess.run` that captures text: ends what takes longer than `timeout` seconds and raises."""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            command = self.start(arguments, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
            try:
                code = command.wait(timeout)
            except subprocess.TimeoutExpired:
                command.send_signal(signal.SIGKILL)
                raise
            for stream in (stdout, stderr):
                stream.seek(0)
            return subprocess.CompletedProcess(command.args, code, stdout.read(), stderr.read())


class Command:
    """A forked command, with what tests use of a `subprocess.Popen`."""

    def __init__(self, told: socket.socket, args: list[str]) -> None:
        self.args = args
        self.returncode: int | None = None
        self._told = told
        self.pid = self._number()

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, below 0 for a signal; raises TimeoutExpired after so many seconds."""
        if self.returncode is None:
            self._told.settimeout(timeout)
            try:
                self.returncode = os.waitstatus_to_exitcode(self._number())
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To the process, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _number(self) -> int:
        message = self._told.recv(64)
        if not message:
            raise ChildProcessError("the process that forks commands has ended")
        return int(message)


class Hidden(MetaPathFinder, Loader):
    """Modules that are loaded, but are none of `sys.modules` until one of them is imported: then they all are."""

    def __init__(self, modules: Mapping[str, ModuleType], also: "Hidden | None" = None) -> None:
        self.modules, self.also = dict(modules), also
        for name in modules:
            del sys.modules[name]

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """A specification of a module of these, which loading leaves as it is."""
        return importlib.machinery.ModuleSpec(name, self) if name in self.modules else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module, with its own specification set aside, as importing replaces it."""
        spec.loader_state = vars(self.modules[spec.name]).get("__spec__")
        return self.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing but to show the modules."""
        given = vars(module)["__spec__"]
        vars(module)["__spec__"] = given.loader_state
        for hidden in (self, self.also):
            if hidden is not None and hidden in sys.meta_path:
                sys.meta_path.remove(hidden)
                sys.modules.update(hidden.modules)


def _import(*, runs: bool) -> None:
    from actors.quick_import import quick_package_list
    from launch.telemetry import switch_off

    switch_off()  # as the command line does before it imports a library
    with _imported_by() as imported, quick_package_list():
        for name in (*_ALL, *_TOKENIZERS, *_RUNS * runs):
            importlib.import_module(name)
        if runs:
            draw_nothing()
    tokenizers = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "transformers"}
    others = {name: sys.modules[name] for name in _heavy(imported)}
    first = Hidden(tokenizers)
    sys.meta_path[:0] = [first, Hidden(others, also=first)]
    # A forked process's collections shall not touch, and copy, what is shared.
    gc.collect()
    gc.freeze()


@contextmanager
def _imported_by() -> Iterator[dict[str, set[str]]]:
    """Within the block: module of this project -> what its import statements import."""
    found: dict[str, set[str]] = {}
    original = builtins.__import__

    def recorded(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> ModuleType:
        importer = (globals or {}).get("__name__", "")
        if importer.partition(".")[0] in _OURS:  # which has no relative imports
            found.setdefault(importer, set()).update([name], (f"{name}.{each}" for each in fromlist or ()))
        return original(name, globals, locals, fromlist, level)

    builtins.__import__ = recorded
    try:
        yield found
    finally:
        builtins.__import__ = original


def _heavy(imported: Mapping[str, set[str]]) -> set[str]:
    """Loaded modules of torch and Ray, and those of this project that need them."""
    found = {name for name in sys.modules if name.partition(".")[0] in ("torch", "ray")}
    while more := {name for name, needed in imported.items() if name not in found and needed & found}:
        found |= more
    return found


def _fork_commands(requests: socket.socket) -> None:
    """One for each request, until nobody can ask any more."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 8)
        _reap()
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            _start(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _start(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Fork the command, and tell its process id and, when it has ended, its status."""
    *streams, answer = descriptors
    if (pid := os.fork()) == 0:
        os.close(answer)
        _become(request, streams)
    for stream in streams:
        os.close(stream)
    os.write(answer, str(pid).encode())
    _, status = os.waitpid(pid, 0)
    os.write(answer, str(status).encode())
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Run the command in this process."""
    os.setsid()
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["directory"])
    del os.environ[MARK]
    os.environ.update(request["own"])
    if MARK in os.environ:
        show_mark(os.environ[MARK])
    random.seed()
    importlib.import_module("numpy").random.seed()
    # As `python -m` has it, whose first place is the working directory.
    sys.path[0] = os.getcwd()
    sys.argv = ["-m", *request["arguments"]]
    code: object = 0
    try:
        runpy.run_module("launch", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code
    except BaseException as error:  # whatever the interpreter would have shown in the end
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    _end(code)


def _end(code: object) -> NoReturn:
    """What the interpreter does in the end, but for taking everything apart."""
    vars(threading)["_shutdown"]()
    vars(atexit)["_run_exitfuncs"]()
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    _import(runs="--runs" in sys.argv)
    _fork_commands(socket.socket(fileno=int(sys.argv[1])))
