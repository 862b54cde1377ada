"""Models that do not fit one process: under ZeRO-3 a rank never holds more than its share, a tensor and the buckets.

Two ranks load a model, train it for a step and export it, with ZeRO-3 and, for comparison, with each rank holding all
of it. The kernel says what each process held at most (VmHWM of /proc/self/status, which a 5 in clear_refs sets back).
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from safetensors.torch import load_file

from actors.batch import Sequence
from actors.config import ModelConfig, ModelInit, OptimizerConfig, TrainerConfig
from actors.group import ActorGroup, Slot
from actors.models.load import load_model
from actors.models.skeleton import write_skeleton
from actors.train.policy import PolicyWorker
from actors.train.worker import Totals
from algorithms.offline.sft import sft_loss

INIT = ModelInit(hidden_size=512, intermediate_size=2048, layers=10, heads=4, max_positions=64, tie_embeddings=False)
SMALL = INIT.model_copy(update={"layers": 1, "hidden_size": 64, "intermediate_size": 64})
BUCKET = 2_000_000
BUCKETS = {
    "reduce_bucket_size": BUCKET,
    "stage3_prefetch_bucket_size": BUCKET,
    "stage3_max_live_parameters": BUCKET,
    "stage3_max_reuse_distance": 0,
    "sub_group_size": BUCKET,
}


def status(field: str) -> int:
    """Bytes that the kernel says this process holds (VmRSS), or has held at most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Measured(PolicyWorker):
    """A policy that says how much its process held."""

    base = 0
    peaks: dict[str, int]

    def load_module(self) -> torch.nn.Module:
        forget_peak()
        module = super().load_module()
        self.peaks["load"] = status("VmHWM") - self.base
        self.peaks["rss load"] = status("VmRSS") - self.base
        forget_peak()
        return module

    def run(self, address: str, port: int, model: ModelConfig, directory: str, export: Path) -> dict[str, Any]:
        """Load, train for a step and export; returns what the step says, and what the process held at most."""
        self.model_config, self.directory = model, directory
        self.peaks = {}
        self.base = status("VmRSS")
        t = time.time()
        self.build(address, port, 1)
        self.peaks["build"] = status("VmHWM") - self.base
        self.peaks["rss build"] = status("VmRSS") - self.base
        self.peaks["t build"] = time.time() - t
        forget_peak()
        generator = np.random.default_rng(self.rank)
        sequences = [Sequence(token_ids=generator.integers(3, 90, 20), action_mask=np.arange(20) > 4) for _ in range(2)]
        found = self.learn([[each] for each in sequences], Totals(tokens=60, sequences=4, trained_tokens=60), sft_loss)
        self.peaks["step"] = status("VmHWM") - self.base
        self.peaks["rss step"] = status("VmRSS") - self.base
        self.peaks["t step"] = time.time() - t
        forget_peak()
        self.export(export)
        self.peaks["export"] = status("VmHWM") - self.base
        self.peaks["t export"] = time.time() - t
        return found | self.peaks


def test_x(local_ray, tmp_path):
    t = time.time()
    torch.set_num_threads(2)
    model = ModelConfig(init=INIT)
    directory = write_skeleton(model, tmp_path / "model")
    small = write_skeleton(ModelConfig(init=SMALL), tmp_path / "small")
    whole = load_model(model, directory)
    n = whole.num_parameters()
    whole.save_pretrained(directory, max_shard_size="40MB")
    del whole
    print("saved", n, time.time() - t)
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(
        placement=placement,
        bundle=0,
        cpus=0.1,
        gpus=0,
        threads=1,
        env={"MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "100000", "MALLOC_MMAP_THRESHOLD_": "100000"},
    )
    for stage in (3, 0):
        settings: dict[str, Any] = {"deepspeed": {"zero_optimization": BUCKETS}} if stage else {}
        group = TrainerConfig(zero_stage=stage, optimizer=OptimizerConfig(lr=1e-3), timeout_s=120, **settings)
        actors = ActorGroup("policy", Measured, [slot] * 2, timeout_s=240, log_directory=str(tmp_path))
        actors.spawn(ModelConfig(init=SMALL), small, group, 0)
        address, port = actors.gather([actors.submit(0, Measured.address)], "address")[0]
        actors.call(Measured.run, address, port, ModelConfig(init=SMALL), small, tmp_path / f"small-{stage}")
        print("warm", time.time() - t)
        for r in actors.call(
            Measured.run, address, port, ModelConfig(path=directory), directory, tmp_path / f"export-{stage}"
        ):
            print(stage, {k: (round(v / (4 * n), 3) if isinstance(v, int) else v) for k, v in r.items()})
        print("done", time.time() - t)
        actors.shutdown()
    a, b = (load_file(tmp_path / f"export-{s}" / "model.safetensors") for s in (0, 3))
    print(
        a.keys() == b.keys(),
        max(float((a[k] - b[k]).abs().max()) for k in a),
        sum(torch.equal(a[k], b[k]) for k in a),
        len(a),
    )
    remove_placement_group(placement)
