"""A Ray cluster of several nodes on one machine: each node has network, process, mount and host name of its own.

    tb-xxxx (bridge) --- node 1 (head, dashboard)   10.x.y.1
                     --- node 2                     10.x.y.2
                     --- node 3                     10.x.y.3

Needs root. Names are private to one bed, and everything it starts ends with it, also when the process that made it is
killed: each node's first process has its parent's death as a signal.
"""

import contextlib
import ctypes
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60
_PARENT_DEATH_SIGNAL = 1


_TOO_SLOW = "The current node timed out during startup"


class BedError(RuntimeError):
    """A command of the bed failed, or something did not come in time."""


@functools.cache
def missing() -> str | None:
    """Why there can be no bed on this machine; None when there can."""
    if os.geteuid() != 0:
        return "a cluster of network namespaces needs root"
    for tool in ("ip", "unshare", "nsenter", "mount"):
        if shutil.which(tool) is None:
            return f"a cluster of network namespaces needs the command {tool}"
    probe = subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "sh",
            "-c",
            "mount -t tmpfs tmpfs /mnt && ip link add tb type bridge",
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    return f"this machine gives no namespaces: {probe.stderr.strip()}" if probe.returncode else None


@dataclass
class Node:
    """One node; `init` is the process on this machine that all its processes descend from."""

    number: int
    address: str
    namespace: str
    link: str
    resources: list[str]
    process: subprocess.Popen[bytes] | None = None
    init: int = 0
    log: Path = field(default_factory=Path)


class Bed:
    """The nodes of a cluster, started and ended together."""

    def __init__(self, *nodes: list[str], token: str, environment: dict[str, str] | None = None) -> None:
        """`nodes`: options of `ray start` for each; the first one is the head.

        `environment`: further variables of all nodes.
        """
        self.token = token
        self.directory = Path(tempfile.mkdtemp(prefix="tb", dir="/tmp"))  # short: Ray's sockets are below it
        tag = f"{random.randrange(2**16):04x}"
        self.bridge = f"tb-{tag}"
        self.subnet = _free_subnet()
        self.nodes = [
            Node(number, f"{self.subnet}.{number}", f"tb-{tag}-{number}", f"tbv-{tag}-{number}", options)
            for number, options in enumerate(nodes, 1)
        ]
        self.environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),  # not another checkout, which may be the one that is installed
            "HOME": str(self.directory / "home"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_worker_niceness": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "30",
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            **(environment or {}),
        }

    @property
    def dashboard(self) -> str:
        """Address of the head's dashboard and Jobs API."""
        return f"http://{self.nodes[0].address}:8265"

    def start(self) -> None:
        """Connect and start all nodes; raises BedError when one does not come up."""
        (self.directory / "home").mkdir()
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.subnet}.254/24", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")
        (self.directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        for node in self.nodes:
            self._connect(node)
        for node in self.nodes:  # One after the other: Ray gives a node 30 s, of which others on the cores take some.
            self._start_in_time(node)
        self._wait_for_port(self.nodes[0].address, 8265)
        self.wait_for_nodes(len(self.nodes))

    def _start_in_time(self, node: Node) -> None:
        """Start a node's Ray and wait for it; once more, should it be one of those that were too slow for Ray."""
        self.start_node(node)
        for _ in _until(2 * DEADLINE_S, f"Ray on {node.namespace}"):
            said = node.log.read_text(errors="replace")
            if said.rpartition(_TOO_SLOW)[2].count("Ray runtime started"):
                return
            if node.process is not None and node.process.poll() is not None:
                if said.count(_TOO_SLOW) != 1:
                    raise BedError(f"Ray on {node.namespace} ended:\n{said[-1500:]}")
                with node.log.open("a") as log:
                    log.write("once more\n")
                self.start_node(node)

    def start_node(self, node: Node) -> None:
        """Start a node's Ray, without waiting for it."""
        node.log = self.directory / f"node{node.number}.log"
        hosts = "127.0.0.1 localhost\n" + "".join(
            f"{other.address} node{other.number}\n" for other in self.nodes if other is not node
        )
        # A node's own name is a loopback address, as many distributions have it: nothing may rely on names.
        (self.directory / f"hosts{node.number}").write_text(f"{hosts}127.0.1.1 node{node.number}\n")
        head = ["--head", "--port=6379", "--dashboard-host=0.0.0.0"]
        join = [f"--address={self.nodes[0].address}:6379"]
        ray = [
            *(head if node is self.nodes[0] else join),
            f"--node-ip-address={node.address}",
            f"--temp-dir={self.directory}/n{node.number}",
            "--object-store-memory=100000000",
            "--memory=4000000000",
            "--disable-usage-stats",
            "--block",
            *node.resources,
        ]
        setup = f"""
            mount -t tmpfs -o size=512m tmpfs /dev/shm
            mount --bind {self.directory}/hosts{node.number} /etc/hosts
            mount --bind {self.directory}/resolv.conf /etc/resolv.conf
            hostname node{node.number}
            exec ray start "$@"
        """
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        command = ["ip", "netns", "exec", node.namespace, "unshare", *spaces, "bash", "-ec", setup, "node", *ray]
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        node.init = self._first_child(node)

    def command(self, node: Node, *arguments: str) -> list[str]:
        """A command that runs inside a node."""
        return ["nsenter", "-t", str(node.init), "--mount", "--pid", "--uts", "--ipc", "--net", "--", *arguments]

    def hide(self, node: Node, package: str) -> None:
        """Let a node have no such Python package, as if it had not been installed there."""
        site = next((BIN.parent / "lib").glob("python3*")) / "site-packages"
        upper = self.directory / f"upper{node.number}"
        # Its upper layer must not be an overlay itself, which the machine's file system may be.
        script = f"""
            mkdir -p {upper} && mount -t tmpfs tmpfs {upper} && mkdir {upper}/u {upper}/w
            mknod {upper}/u/{package} c 0 0
            mount -t overlay overlay -o lowerdir={site},upperdir={upper}/u,workdir={upper}/w {site}
        """
        _run(*self.command(node, "bash", "-ec", script))

    def show(self, node: Node) -> None:
        """Undo `hide`."""
        site = next((BIN.parent / "lib").glob("python3*")) / "site-packages"
        _run(*self.command(node, "bash", "-ec", f"umount {site} && umount {self.directory}/upper{node.number}"))

    def processes(self, node: Node) -> list[str]:
        """Command lines of a node's processes."""
        return [command for _, command in self._commands(node)]

    def pids(self, node: Node, part: str) -> list[int]:
        """Numbers, on this machine, of a node's processes whose command line has this part."""
        return [pid for pid, command in self._commands(node) if part in command]

    def _commands(self, node: Node) -> list[tuple[int, str]]:
        found = []
        for pid in map(int, _run("ip", "netns", "pids", node.namespace).split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append((pid, command))
        return found

    @contextlib.contextmanager
    def cut(self, node: Node, seconds: float) -> Iterator[None]:
        """Let nothing pass between a node and the others within the block, and for so many seconds at least; nobody is
        told of it."""
        until = time.monotonic() + seconds
        _run("ip", "link", "set", node.link, "down")
        try:
            yield
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            _run("ip", "link", "set", node.link, "up")

    def start_again(self, node: Node) -> None:
        """Start one that was powered off."""
        node.log.unlink()  # what it has said before is about another Ray
        self._start_in_time(node)

    def terminate(self, node: Node) -> None:
        """Ask a node to leave (SIGTERM, as Kubernetes does): Ray drains it."""
        os.kill(node.init, signal.SIGTERM)

    def power_off(self, node: Node) -> None:
        """End all processes of a node at once."""
        if node.process is None:
            return
        if node.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.init or node.process.pid, signal.SIGKILL)
        node.process.wait(DEADLINE_S)
        node.process, node.init = None, 0

    def wait_for_nodes(self, count: int, deadline_s: float = DEADLINE_S) -> None:
        """Wait until so many nodes are alive."""
        program = (
            "import ray, sys, time\n"
            "ray.init(address='auto', log_to_driver=False, logging_level='ERROR')\n"
            f"until = time.monotonic() + {deadline_s}\n"
            f"while sum(node['Alive'] for node in ray.nodes()) != {count}:\n"
            "    if time.monotonic() > until: sys.exit('nodes are missing')\n"
            "    time.sleep(0.2)\n"
        )
        try:
            self.run(self.nodes[0], "python", "-c", program, deadline_s=deadline_s + 30)
        except BedError as error:
            logs = "\n".join(f"{node.log.name}:\n{node.log.read_text()[-1500:]}" for node in self.nodes)
            raise BedError(f"{error}\n{logs}") from None

    def run(self, node: Node, *arguments: str, deadline_s: float = DEADLINE_S) -> str:
        """Output of a command inside a node; raises BedError when it fails."""
        return _run(*self.command(node, *arguments), environment=self.environment, deadline_s=deadline_s)

    def stop(self) -> None:
        """End and remove everything."""
        for node in reversed(self.nodes):
            self.power_off(node)
            _try("ip", "netns", "del", node.namespace)
            _try("ip", "link", "del", node.link)
        _try("ip", "link", "del", self.bridge)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _connect(self, node: Node) -> None:
        _run("ip", "netns", "add", node.namespace)
        _run("ip", "link", "add", node.link, "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
        _run("ip", "link", "set", node.link, "master", self.bridge, "up")
        inside = ("ip", "-n", node.namespace)
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "addr", "add", f"{node.address}/24", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        _run(*inside, "route", "add", "default", "via", f"{self.subnet}.254")

    def _first_child(self, node: Node) -> int:
        assert node.process is not None
        children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children")
        for _ in _until(DEADLINE_S, f"node {node.number}"):
            if found := children.read_text().split():
                return int(found[0])
        raise AssertionError("unreachable")

    def _wait_for_port(self, address: str, port: int) -> None:
        for _ in _until(DEADLINE_S, f"{address}:{port}"):
            with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
                return


@contextlib.contextmanager
def running(bed: Bed) -> Iterator[Bed]:
    """The bed, started, and ended whatever happens."""
    try:
        bed.start()
        yield bed
    finally:
        bed.stop()


def _free_subnet() -> str:
    taken = _run("ip", "-o", "addr")
    while True:
        subnet = f"10.{random.randint(100, 250)}.{random.randint(1, 250)}"
        if f" {subnet}." not in taken:
            return subnet


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _until(deadline_s: float, what: str) -> Iterator[None]:
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        yield
        time.sleep(0.1)
    raise BedError(f"{what} did not come within {deadline_s:g} s")


def _run(*command: str, environment: dict[str, str] | None = None, deadline_s: float = DEADLINE_S) -> str:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=deadline_s, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise BedError(
            f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def _try(*command: str) -> None:
    subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
