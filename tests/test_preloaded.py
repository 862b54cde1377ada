"""Workers forked with their imports done are what Ray would have started: same command, environment, threads."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.util.placement_group import placement_group, remove_placement_group

from actors.group import ActorGroup, Slot
from tests.preloaded import SOCKET
from tests.preloaded_client import context, forked, merged


class Witness:
    """Says what its process is."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.loaded = {name for name in ("deepspeed", "vllm") if name in sys.modules}

    def tell(self) -> dict[str, Any]:
        """What it had loaded at its start, its threads, variables and command, and its parent's command."""
        import torch

        return {
            "loaded": self.loaded,
            "threads": torch.get_num_threads(),
            "variables": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OWN", "CUDA_VISIBLE_DEVICES")},
            "program": Path(sys.argv[0]).name,
            "directory": os.getcwd(),
            "parent": Path(f"/proc/{os.getppid()}/cmdline").read_text().replace("\0", " "),
        }


def told(name: str, threads: int, log: Path, **env: str) -> dict[str, Any]:
    """What a rank of a group of this name says."""
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(placement=placement, bundle=0, cpus=0.5, gpus=0, threads=threads, env={"OWN": "a=b c"} | env)
    group = ActorGroup(name, Witness, [slot], timeout_s=60, log_directory=str(log))
    group.spawn()
    found = group.call(Witness.tell)[0]
    group.shutdown()
    remove_placement_group(placement)
    return found


def test_a_rank_is_forked_from_a_process_with_its_modules(local_ray: None, tmp_path: Path) -> None:
    """One of a trainer has DeepSpeed, an engine vLLM; OpenMP's threads are those of its own environment."""
    for name, loaded, threads in (("policy", "deepspeed", 2), ("policy", "deepspeed", 1), ("rollout", "vllm", 1)):
        found = told(name, threads, tmp_path)
        assert "tests.preloaded" in found["parent"]
        assert (found["loaded"], found["threads"], found["program"]) == ({loaded}, threads, "default_worker.py")
        assert found["variables"] == {"OMP_NUM_THREADS": str(threads), "OWN": "a=b c", "CUDA_VISIBLE_DEVICES": ""}


def test_without_an_answer_it_starts_as_ray_starts_it(local_ray: None, tmp_path: Path) -> None:
    """All else is equal."""
    given = told("policy", 1, tmp_path)
    found = told("policy", 1, tmp_path, **{SOCKET: str(tmp_path / "nobody")})
    assert "tests.preloaded" not in found["parent"] and found["loaded"] == set()
    assert {name: value for name, value in found.items() if name not in ("parent", "loaded")} == {
        name: value for name, value in given.items() if name not in ("parent", "loaded")
    }
    assert not forked(str(tmp_path / "nobody"), {})


def test_a_runtime_environments_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """And may name the process's own, as Ray says."""
    monkeypatch.setenv("OWN", "process")
    arguments = ['--serialized-runtime-env-context={"env_vars": {"OWN": "${OWN}-2", "OTHER": "3"}}']
    assert merged(context(arguments)["env_vars"]) == dict(os.environ) | {"OWN": "process-2", "OTHER": "3"}
    assert context([]) == {}
