"""Models that do not fit one process: with ZeRO-3 a rank never holds more than its share, a tensor and the buckets.

Two ranks load a model, train it for a step, save and export it; once with ZeRO-3, and once with ZeRO-0, where each
holds all of it. What a process held at most says the kernel: VmHWM of /proc/self/status, which clear_refs sets back.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from safetensors.torch import load_file

from actors.config import ModelConfig, ModelInit, OptimizerConfig, TrainerConfig
from actors.episodes import Sequence
from actors.group import ActorGroup, Slot
from actors.models.load import load_model
from actors.models.lora import plain_parameters
from actors.models.skeleton import write_skeleton
from actors.train.engine import gathered
from actors.train.policy import PolicyWorker
from actors.train.worker import Totals
from algorithms.offline.sft import sft_loss

LR = 1e-3
SHARE = 0.6
"""Of the states of the model that a rank may hold; its own share is half of them."""
INIT = ModelInit(hidden_size=512, intermediate_size=2048, layers=10, heads=4, max_positions=64, tie_embeddings=False)
"""Of 42 million parameters: 168 MB in float32."""
SMALL = INIT.model_copy(update={"layers": 1, "hidden_size": 64, "intermediate_size": 64})
BUCKET = 1_000_000
BUCKETS = {
    "reduce_bucket_size": BUCKET,
    "stage3_prefetch_bucket_size": BUCKET,
    "stage3_max_live_parameters": BUCKET,
    "stage3_max_reuse_distance": 0,
    "sub_group_size": BUCKET,
}
STAGES: dict[int, dict[str, Any]] = {0: {}, 3: {"deepspeed": {"zero_optimization": BUCKETS}}}
TOTALS = Totals(tokens=60, sequences=4, trained_tokens=60)


def memory(field: str) -> int:
    """Bytes that this process holds (VmRSS), or has held at most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


class MeasuredWorker(PolicyWorker):
    """A policy that says what its process held at most in each part of its work, beyond what it held before."""

    base: int
    held: dict[str, int]

    def measure(self, part: str) -> None:
        """Note the peak since the last time."""
        self.held[part] = memory("VmHWM") - self.base
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now

    def load_module(self) -> torch.nn.Module:
        """The policy's, measured."""
        self.measure("before")
        module = super().load_module()
        self.measure("load")
        return module

    def do_all(self, address: str, port: int, model: ModelConfig, directory: str, output: Path) -> dict[str, float]:
        """Load, train for a step, save and export; returns the metrics of the step and what the process held."""
        self.model_config, self.directory = model, directory
        self.held, self.base = {}, memory("VmRSS")
        self.build(address, port, 1)
        self.measure("build")
        generator = np.random.default_rng(self.rank)
        tokens = [generator.integers(3, 90, 20) for _ in range(2)]
        plan = [[Sequence(token_ids=each, action_mask=np.arange(20) > 4)] for each in tokens]
        metrics = self.learn(plan, TOTALS, sft_loss)
        self.measure("step")
        self.save(output / "checkpoint")
        self.measure("save")
        self.held["rest"] = memory("VmRSS") - self.base
        self.export(output / "export")
        self.measure("export")
        self.write_weights(output / "weights")
        self.measure("weights")
        kept = [tensor.clone() for _, tensor in plain_parameters(self.hf_model, gathered, merged=True)]
        self.measure("gather")
        assert len(kept) == len(list(self.hf_model.parameters()))
        return metrics | self.held


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A directory with a model in several files, and the bytes of its weights."""
    directory = tmp_path_factory.mktemp("model")
    given = ModelConfig(init=INIT)
    whole = load_model(given, write_skeleton(given, directory))
    whole.save_pretrained(directory, max_shard_size="40MB")
    assert len(list(directory.glob("*.safetensors"))) > 3
    return directory, 4 * whole.num_parameters()


@pytest.fixture(scope="module")
def found(
    local_ray: None, model: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, tuple[list[dict[str, float]], Path]]]:
    """ZeRO stage -> what each rank says, and where it wrote."""
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
    small = write_skeleton(ModelConfig(init=SMALL), tmp_path_factory.mktemp("small"))
    results = {}
    for stage, settings in STAGES.items():
        output = tmp_path_factory.mktemp(f"zero-{stage}")
        optimizer = OptimizerConfig(lr=LR, max_grad_norm=1e6)
        group = TrainerConfig(zero_stage=stage, optimizer=optimizer, timeout_s=120, **settings)
        ranks = ActorGroup("policy", MeasuredWorker, [slot] * 2, timeout_s=240, log_directory=str(output))
        ranks.spawn(ModelConfig(init=SMALL), small, group, 0)
        address, port = ranks.gather([ranks.submit(0, MeasuredWorker.address)], "address")[0]
        # What imports and first calls take is not the model's.
        ranks.call(MeasuredWorker.do_all, address, port, ModelConfig(init=SMALL), small, output / "small")
        directory = str(model[0])
        said = ranks.call(MeasuredWorker.do_all, address, port, ModelConfig(path=directory), directory, output)
        results[stage] = said, output
        ranks.shutdown()
    remove_placement_group(placement)
    yield results


def test_a_rank_holds_its_share_alone(model: tuple[Path, int], found: Any) -> None:
    """60 % of the states are never exceeded by two ranks with ZeRO-3; with ZeRO-0 they are by each."""
    weights = model[1]
    states = weights * 4  # weights, gradients and two moments
    for stage, (ranks, _) in found.items():
        print(stage, [{part: round(value / weights, 3) for part, value in rank.items()} for rank in ranks])
    for rank in found[3][0]:
        assert rank["load"] < SHARE * weights
        assert max(rank[part] for part in ("load", "build", "step", "save", "export", "weights")) < SHARE * states
        for part in ("save", "export", "weights"):
            assert rank[part] - rank["rest"] < 0.15 * weights, part
    for rank in found[0][0]:
        assert rank["build"] > weights > SHARE * weights
        assert rank["step"] > SHARE * states


def test_what_a_rank_holds_shows(model: tuple[Path, int], found: Any) -> None:
    """The limits above mean something: gathering all of the model breaks them."""
    for rank in found[3][0]:
        assert rank["gather"] - rank["rest"] > 0.9 * model[1]
        assert rank["gather"] > SHARE * 4 * model[1]


def test_both_compute_the_same(model: tuple[Path, int], found: Any) -> None:
    """The loss bit for bit, norm and trained weights but for the order of sums; no weight stays as it was."""
    (whole, first), (shared, second) = found[0], found[3]
    for one, other in zip(whole, shared, strict=True):
        assert math.isfinite(one["loss"]) and one["loss"] == other["loss"]
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    for name in ("export/model.safetensors", "weights"):
        expected, given = load_file(first / name), load_file(second / name)
        assert given.keys() == expected.keys()
        apart = torch.cat([(given[each] - tensor).abs().flatten() for each, tensor in expected.items()])
        # Gradients of two micro-batches and two ranks are added up in another order. Adam's first step goes by lr
        # wherever a gradient is larger than its epsilon: of one that is nearly 0, rounding decides how far.
        assert float((apart > 1e-7).double().mean()) < 1e-3 and float(apart.max()) < 2 * LR
    start = {each: tensor for file in model[0].glob("*.safetensors") for each, tensor in load_file(file).items()}
    assert start.keys() == expected.keys()
    assert all(not torch.equal(tensor, expected[each]) for each, tensor in start.items())


def test_both_write_the_same(found: Any) -> None:
    """Files and settings of an export, one file for a model of this size."""
    directories = [output / "export" for _, output in found.values()]
    names, others = ({path.name for path in directory.iterdir()} for directory in directories)
    assert names == others
    assert [name for name in names if "safetensors" in name] == ["model.safetensors"]
    for name in names - {"model.safetensors"}:
        contents = [(directory / name).read_text() for directory in directories]
        assert contents[0] == contents[1], name
        if name.endswith(".json"):
            json.loads(contents[0])
