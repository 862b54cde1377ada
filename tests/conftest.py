"""What the tests on the real stack share: a local Ray, a warmed model, and runs through the command line.

Runs are started with the arguments that a user gives, `python -m launch run CONFIG a.b=c`, in a session of their own.
Most join one cluster, as starting Ray anew costs each of them seconds, and are forked with their imports done. One that
runs `alone` is started as a user starts it, with a Ray of its own, whose workers may be `forked`; a mark in the
environment, which every descendant inherits, finds the processes that a run leaves behind: none may be.
"""

import gc
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# Before torch is imported anywhere: a thread that spins while it waits takes the core from another process.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# Whatever Ray a test starts or joins in this process, nobody else on this machine can use it.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
# Ray runs workers at low priority (nice 15) by default: they would wait for all that runs beside.
os.environ |= {"RAY_worker_niceness": "0"}
# Nor shall it start what nothing here uses.
os.environ |= {"RAY_prestart_worker_first_driver": "0"}

import pytest
import yaml
from filelock import FileLock

from tests.preloaded import FAULT, MARK, preloaded_workers, server
from tests.preloaded_commands import Command, Commands

# A shell's background job has SIGINT ignored, and so would the commands that tests send Ctrl-C to.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same of what nohup ignores.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Comparisons with TRL, and transformers 4.57, need environments of their own: make oracle, make interop.
collect_ignore = ["oracle", "interop"]
LONGEST = (
    "chaos",
    "cluster_jobs",
    "grpo_run",
    "rlhf_run",
    "engine_families",
    "attempts_run",
    "overlap_run",
    "sync",
    "encoder_run",
    "learners_run",
    "elastic_run",
    "holder_run",
    "overlap_gradients_run",
    "run",
    "overlap_reads_run",
    "export_engines",
    "holder",
    "rope",
    "rope_run",
    "resharded_run",
    "small_disk_run",
    "own_task",
    "sweep_run",
    "encoder_update",
    "invariance",
    "updates",
    "family_updates",
    "reward_pool",
    "roster",
    "zero3_memory",
)
"""Files of half a minute and more, which start first: of two processes, the one done early takes the short ones."""
ROOT = Path(__file__).resolve().parent.parent
LETTERS = "abcdefgh"
DEADLINE_S = 240


def pytest_configure(config: pytest.Config) -> None:
    """One process for all that have workers forked: that of the tests, or what starts several of those."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    directory = Path(tempfile.mkdtemp(prefix="tp", dir="/tmp"))
    ended = ExitStack()
    ended.callback(shutil.rmtree, directory, ignore_errors=True)
    # vLLM looks at a model's class once for each home, in a process of its own that takes as long as an engine's start.
    os.environ["VLLM_CACHE_ROOT"] = str(directory / "vllm")
    ended.enter_context(server(directory))
    config.add_cleanup(ended.close)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Garbage is not looked for while modules are loaded, nor later among what they consist of: a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _known_objects() -> Iterator[None]:
    """What a file has loaded is never garbage. transformers' models are two million objects, and DeepSpeed looks for
    garbage again and again: minutes, in files that come after them."""
    yield
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@dataclass
class Job:
    """A command that is running, or has ended."""

    process: subprocess.Popen[str] | Command
    mark: str
    directory: Path
    output: Path

    @property
    def text(self) -> str:
        """Everything it has printed."""
        return self.output.read_text()

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Its exit code; ends it, with all its processes, when it is late."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.end()
            pytest.fail(f"the command did not end within {deadline_s} s; it printed:\n{self.text}")

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl; a line that is being written is left out."""
        path = self.directory / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def steps(self) -> dict[int, dict[str, Any]]:
        """Metrics of each step."""
        return {line["step"]: line for line in self.metrics()}

    def unknown_metrics(self) -> list[str]:
        """Metrics that it has written, and that no alert could be about."""
        from launch.config import validate
        from launch.kinds.table import job_kind

        kind = job_kind(validate(json.loads((self.directory / "config.json").read_text())))
        known = {"step", "left_out", *kind.step_metrics(), *kind.metric_names()}
        return sorted({name for line in self.metrics() for name in line} - known)

    def wait_until(self, condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait for something to happen while the command runs."""
        deadline = time.monotonic() + deadline_s
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                code = self.process.poll()
                self.end()
                pytest.fail(f"no {what} (exit code {code}); it printed:\n{self.text}")
            time.sleep(0.02)

    def pids(self) -> list[int]:
        """Of the processes that carry this command's mark, or are of a session that it leads."""
        return [pid for pid, _ in _marked(self.mark, self.process.pid)]

    def processes(self) -> list[str]:
        """Command lines of the processes, the first one included."""
        return [name for _, name in _marked(self.mark, self.process.pid)]

    def left_behind(self, patience_s: float = 40) -> list[str]:
        """Processes still there some time after the end."""
        deadline = time.monotonic() + patience_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def end(self) -> None:
        """Kill whatever of it still runs."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)


def _marked(mark: str, session: int) -> list[tuple[int, str]]:
    """Ray 2.60 writes the titles of its agents over their environment, and the mark is lost; their session is not."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            marked = wanted in (entry / "environ").read_bytes().split(b"\0")
            if stat[0] not in "ZX" and (marked or int(stat[3]) == session):  # a zombie holds nothing any more
                name = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append((int(entry.name), name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of commands: a home of their own, no hub, no network services, no C++ compiler."""
    return os.environ | {
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path_factory.mktemp("hub")),
        "WANDB_MODE": "disabled",
        "COLUMNS": "240",
        "CXX": "/no/compiler",
    }


@pytest.fixture(scope="session")
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """Address of a Ray cluster of one node, with four CPUs to Ray's mind."""
    directory = Path(tempfile.mkdtemp(prefix="tc", dir="/tmp"))  # short: Ray's sockets are below it
    port = _free_port()
    options = [f"--port={port}", "--num-cpus=4", "--object-store-memory=200000000", f"--temp-dir={directory}"]
    options += ["--no-monitor", "--include-log-monitor=false"]
    program = [sys.executable, "-c", "from tests.preloaded import start_ray; start_ray()"]
    program += ["start", "--head", "--block", "--include-dashboard=false"]
    mark = uuid.uuid4().hex
    with (directory / "log").open("w") as log:
        head = subprocess.Popen(
            [*program, "--disable-usage-stats", *options],
            env=environment | {"RAY_worker_niceness": "0", MARK: mark},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while "Ray runtime started" not in (directory / "log").read_text():
        if head.poll() is not None or time.monotonic() > deadline:
            head.kill()
            pytest.fail(f"Ray did not start:\n{(directory / 'log').read_text()}")
        time.sleep(0.1)
    yield f"127.0.0.1:{port}"
    # Told to end, it may wait half a minute for one of its processes.
    for pid, _ in _marked(mark, head.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    head.wait(60)
    shutil.rmtree(directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _without_token(environment: dict[str, str]) -> dict[str, str]:
    """As users have it, who choose nothing about Ray, on a machine without another Ray: the port at which Ray 2.60's
    dashboard would answer to everybody is free."""
    kept = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH_")}
    return kept | {"DASHBOARD_METRIC_PORT": str(_free_port())}


@pytest.fixture(scope="session")
def commands(environment: dict[str, str], cluster: str) -> Iterator[Commands]:
    """What forks commands that join the cluster."""
    with Commands(environment | {"RAY_ADDRESS": cluster}, runs=True) as forking:
        yield forking


@pytest.fixture(scope="session")
def tandem(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Job]]:
    """Starts `python -m launch VERB CONFIG overrides` in a given or new working directory, without waiting for it;
    `fault`, of `tests.preloaded.FAULT`, is for engines of one that is `alone` and `forked`."""
    jobs: list[Job] = []

    def started(
        arguments: list[str], mark: str, stream: IO[str], directory: Path, alone: bool, forked: bool, fault: str
    ) -> subprocess.Popen[str] | Command:
        given: dict[str, Any] = {"cwd": directory, "stdout": stream, "stderr": stream}
        if not alone:
            forking: Commands = request.getfixturevalue("commands")
            return forking.start(arguments, env=forking.environment | {MARK: mark}, **given)
        env = _without_token(environment) | {MARK: mark} | ({FAULT: fault} if fault else {})
        start_command = "-c", "from tests.preloaded import start_command; start_command()"
        command = [sys.executable, *(start_command if forked else ("-m", "launch")), *arguments]
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, text=True, start_new_session=True, **given)

    def start(
        config: dict[str, Any],
        *overrides: str,
        verb: str = "run",
        directory: Path | None = None,
        alone: bool = False,
        forked: bool = False,
        fault: str = "",
    ) -> Job:
        directory = directory or tmp_path_factory.mktemp("run")
        file = directory / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        output, mark = directory / f"output-{len(jobs)}.txt", uuid.uuid4().hex
        with output.open("w") as stream:
            arguments = [verb, str(file), f"run.output={directory}", *overrides]
            process = started(arguments, mark, stream, directory, alone, forked, fault)
        jobs.append(Job(process, mark, directory / "run", output))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def _saved_tensors(checkpoint: Path) -> set[int]:
    """Checksums of the trained model in a checkpoint of ZeRO stage 0."""
    import torch

    from actors.weights.checksum import checksum

    state = torch.load(checkpoint / "policy/state/mp_rank_00_model_states.pt", weights_only=False)
    found = {checksum(tensor) for tensor in state["module"].values()}
    assert found
    return found


@pytest.fixture(scope="session")
def exported_step(commands: Commands) -> Callable[[Path, int], Path]:
    """Writes the model of a run's checkpoint by the command line, on the cluster; returns its directory.

    The model has the tensors of that checkpoint, which are those that are trained, and of none other that is kept.
    """

    def write(run: Path, step: int) -> Path:
        words = ("export", str(run), "--step", str(step))
        done = commands.run(*words, cwd=run.parent, env=commands.environment, timeout=DEADLINE_S)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(run / f"export-step-{step}")
        from safetensors.torch import load_file

        from actors.weights.checksum import checksum

        found = {checksum(tensor) for tensor in load_file(run / f"export-step-{step}/model.safetensors").values()}
        having = {path.name for path in (run / "checkpoints").glob("step-*") if _saved_tensors(path) <= found}
        assert having == {f"step-{step}"}
        return run / f"export-step-{step}"

    return write


@pytest.fixture(scope="session")
def reverse() -> dict[str, Any]:
    """Data of the task that the warmed model half knows."""
    arguments = {"count": 2000, "eval_count": 64, "length": 4, "letters": LETTERS}
    return {"train": "algorithms.tasks:reverse", "eval": "algorithms.tasks:reverse", "arguments": arguments}


@pytest.fixture(scope="session")
def warm_model(tandem: Callable[..., Job], reverse: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that the SFT job has taught to reverse strings about half of the time: its exported directory.

    The process of the tests that needs it first trains it for all.
    """
    several = "PYTEST_XDIST_WORKER" in os.environ
    together = tmp_path_factory.getbasetemp().parent if several else tmp_path_factory.getbasetemp()
    with FileLock(together / "warm.lock", timeout=DEADLINE_S):
        pointer = together / "warm"
        if not pointer.exists():
            pointer.write_text(str(_warm_model(tandem, reverse)))
        return Path(pointer.read_text())


def _warm_model(tandem: Callable[..., Job], reverse: dict[str, Any]) -> Path:
    config = {
        "algorithm": {
            "name": "sft",
            "steps": 200,
            "samples_per_update": 64,
            "eval_every": 2,
            "stop_when": {"metric": "eval/sequence_probability", "at_least": 0.35},
        },
        "model": {"init": {"hidden_size": 64, "layers": 2, "heads": 2, "alphabet": LETTERS, "max_positions": 128}},
        "data": reverse | {"max_length": 32},
        "policy": {"optimizer": {"lr": 3e-3}},
    }
    job = tandem(config)
    assert job.wait() == 0, job.text
    assert job.unknown_metrics() == []
    assert 0.35 <= job.metrics()[-1]["eval/sequence_probability"] < 0.7
    return job.directory / "export"


@pytest.fixture(scope="module")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A small Ray cluster in this process, with a home of its own; modules share it, one after the other."""
    import ray

    if not ray.is_initialized():
        _start_ray(tmp_path_factory.mktemp("home"))
    yield
    # Of what a module has left running the next one shall know nothing.
    if not _all_is_free(patience_s=10):
        ray.shutdown()


def _start_ray(directory: Path) -> None:
    import ray

    home = os.environ.get("HOME")
    os.environ["HOME"] = str(directory)
    with preloaded_workers():
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
    os.environ.pop("HOME") if home is None else os.environ.update(HOME=home)


def _all_is_free(patience_s: float) -> bool:
    import ray

    deadline = time.monotonic() + patience_s
    while ray.available_resources().get("CPU") != ray.cluster_resources().get("CPU"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def pytest_sessionfinish() -> None:
    """The Ray that modules have shared ends."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
