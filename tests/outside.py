"""What somebody else on the network reaches of a run on this machine, tried with harmless requests and no token."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import psutil

_METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/GetCoreWorkerStats",
    "ReporterService/GetTraceback",
    "MetricsService/Export",
)
"""One of each of Ray's services, all without effect when they are sent nothing."""
_JOIN = (
    "import ray, sys\n"
    "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
    "print('joined', ray.get(ray.remote(lambda: 1).remote()))\n"
)


def outside_address() -> str:
    """This machine's address as others see it; a UDP socket finds it without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]


def process_name(pid: int) -> str:
    """What a process is called, without the directory of its program; empty when it has ended."""
    try:
        return " ".join(psutil.Process(pid).cmdline()).split(" -")[0].rpartition("/")[2]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


@contextlib.contextmanager
def paused(driver: int, parent: int) -> Iterator[None]:
    """Within the block, the driver of a run stands still, and the process that has started it: who looks at another
    one alone would take it for frozen."""
    pids = driver, parent
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def driver_of(parent: int) -> int:
    """Id of the driver that this process of a run has started; the other child is its guard."""
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[-1])


def reachable_ports(pids: Iterable[int]) -> dict[int, str]:
    """TCP ports of these processes that listen on more than a loopback address -> what the process is called."""
    found: dict[int, str] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and not connection.laddr.ip.startswith(("127.", "::1")):
                    found[connection.laddr.port] = process_name(pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def answer(address: str, port: int) -> str:
    """How a port answers to who has no token: refused, what it let through, or that it is none of Ray's."""
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", "/")
        status = connection.getresponse().status
        return "refused" if status == 401 else f"answers a plain request with {status}"
    except (http.client.HTTPException, OSError):
        pass
    finally:
        connection.close()
    codes = {}
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        for method in _METHODS:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=5)
                codes[method] = "OK"
            except grpc.RpcError as error:
                codes[method] = error.code().name
    if "OK" in codes.values():
        return f"answers {[method for method, code in codes.items() if code == 'OK']}"
    return "refused" if "UNAUTHENTICATED" in codes.values() else f"asks for no token {sorted(set(codes.values()))}"


def join_without_token(address: str, wait_s: float = 10) -> str:
    """What a driver of somebody else's is told that joins a cluster and starts a task; Ray's would ask for minutes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryFile("w+") as output:
        driver = subprocess.Popen([sys.executable, "-c", _JOIN, address], env=environment, stdout=output, stderr=output)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(wait_s)
        driver.kill()
        driver.wait()
        output.seek(0)
        return output.read()


def open_server() -> tuple[socket.socket, int]:
    """A port of this process that takes anything and answers nothing, on every address; close the socket to end it."""
    server = socket.create_server(("", 0))

    def serve() -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    return server, server.getsockname()[1]
