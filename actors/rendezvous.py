"""How processes meet: stores that listen on one address of this node, a loopback one where all of a run is on one node.

Whoever can reach a store or a gloo port of torch.distributed can write into it: neither asks for a token. torch's own
server listens on every address of the node, whatever address it is given; a socket of our own does not.
"""

import os
import socket
import sys
from datetime import timedelta

import psutil
import ray
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Store

from actors.group import ONE_NODE

_LOOPBACK = "127.0.0.1"


def node_address() -> str:
    """This node's address, as the run's other processes reach it."""
    return _LOOPBACK if os.environ.get(ONE_NODE) else ray.util.get_node_ip_address()


def meet_on_node_address() -> None:
    """Let gloo, NCCL and vLLM meet their peers on `node_address`, unless the user names an interface.

    Left alone, gloo takes the address that the host's name resolves to: on many machines a loopback one, which no other
    node reaches. NCCL finds the right one by itself between nodes.
    """
    address = node_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(item.address == address for item in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            if address == _LOOPBACK:
                os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    if address == _LOOPBACK:
        os.environ.setdefault("VLLM_HOST_IP", address)


def listener(address: str, port: int = 0) -> socket.socket:
    """A socket that listens on this address alone; port 0 is any that is free."""
    return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def free_port() -> int:
    """A TCP port that is free on this node now, for what takes no socket."""
    with listener(node_address()) as probe:
        return probe.getsockname()[1]


def serve_store(at: socket.socket, world_size: int, timeout_s: float) -> TCPStore:
    """The store of a meeting, served at a listening socket, which it takes over."""
    address, port = at.getsockname()[:2]
    # Detached, as the store closes it: a socket that Python collects would close it, too.
    return _store(address, port, world_size, timeout_s, is_master=True, master_listen_fd=at.detach())


def join_store(address: str, port: int, world_size: int, timeout_s: float) -> TCPStore:
    """The store that another process serves; waits for it."""
    return _store(address, port, world_size, timeout_s, is_master=False)


def _store(
    address: str,
    port: int,
    world_size: int,
    timeout_s: float,
    *,
    is_master: bool,
    master_listen_fd: int | None = None,
    use_libuv: bool = True,
) -> TCPStore:
    return TCPStore(
        address,
        port,
        world_size,
        timeout=timedelta(seconds=timeout_s),
        # The others come only once they are told of the port, which is after this call.
        wait_for_workers=False,
        is_master=is_master,
        master_listen_fd=master_listen_fd,
        use_libuv=use_libuv,
    )


def bind_stores_to_their_address() -> None:
    """From now on, a store that a library makes by an address (tcp://, env://) listens on that address alone.

    vLLM's workers meet so, and take no store. `_create_c10d_store` of torch 2.13 makes every such store.
    """
    module = sys.modules["torch.distributed.rendezvous"]
    original = module._create_c10d_store
    # Asked for again, it would wrap its own function.
    if getattr(original, "binds", False):
        return

    def create(
        hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True
    ) -> Store:
        # As torch decides who serves: rank 0, unless an agent of torchrun does.
        if rank or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return original(hostname, port, rank, world_size, timeout, use_libuv)
        return _store(
            hostname,
            port,
            world_size,
            timeout.total_seconds(),
            is_master=True,
            use_libuv=use_libuv,
            master_listen_fd=listener(hostname, port).detach(),
        )

    vars(create)["binds"] = True
    vars(module)["_create_c10d_store"] = create
