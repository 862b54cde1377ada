"""Whether memory, GPUs and disk hold a configuration: refused by a lower bound, warned about by the whole estimate."""

from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from launch.checks import check
from launch.checks.capacity import check_nodes, check_resources, gpu_settings, machine_line
from launch.checks.findings import Findings
from launch.checks.fits import check_bucket, check_disk, check_memory, check_room, copied_bytes, kept_bytes
from launch.checks.known_sizes import memory_of
from launch.config import RunConfig, validate
from launch.settings.file import parse
from launch.sizes import machine
from launch.sizes.estimate import GIB, DecoderShape, Memory, parameter_count
from launch.sizes.machine import Machine, memory_here

SHAPE = DecoderShape(
    hidden_size=2048, layers=16, heads=16, kv_heads=16, head_dim=128, intermediate_size=8192, vocab_size=32000,
    tie_embeddings=True,
)  # fmt: skip
COUNT = parameter_count(SHAPE)
SECTIONS: dict[str, dict[str, Any]] = {
    "sft": {"algorithm": {"name": "sft", "steps": 1}, "model": {"path": "m"}, "data": {"train": "rows.jsonl"}},
    "grpo": {
        "algorithm": {"name": "grpo"},
        "model": {"path": "m"},
        "data": {"train": "rows.jsonl"},
        "reward": {"functions": ["exact_match"]},
    },
    "dpo": {"algorithm": {"name": "dpo", "steps": 1}, "model": {"path": "m"}, "data": {"train": "rows.jsonl"}},
}


def job(name: str = "sft", **sections: Any) -> RunConfig:
    values = {key: dict(value) for key, value in SECTIONS[name].items()}
    for key, value in sections.items():
        values[key] = values.get(key, {}) | value
    return validate(values)


def a_machine(**changes: Any) -> Machine:
    return Machine(**({"cpus": 8, "gpus": 0, "memory": 64 * GIB, "free": 64 * GIB, "shared": 32 * GIB} | changes))


def warned(config: RunConfig, there: Machine, *, known: bool = True, filled: float = 1.0) -> list[str]:
    found = Findings(config, shape=SHAPE, parameters=COUNT) if known else Findings(config)
    return check_memory(config, memory_of(found), found.parameters, there, filled=filled)


def refused(config: RunConfig, there: Machine, *, known: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        warned(config, there, known=known)
    (line,) = caught.value.problems
    return line


def test_a_model_that_no_memory_holds_is_refused_with_its_largest_part() -> None:
    """1.14 billion parameters: 4.3 GiB of weights, as much of gradients, twice as much of moments."""
    assert COUNT == 1_139_345_408
    line = refused(job(), a_machine(memory=16 * GIB))
    assert line == (
        "model.path: must fit this machine's memory of 16.0 GiB, and all processes take 17.0 GiB at least, "
        "most of it the optimizer state of policy (8.5 GiB), got m of 1,139,345,408 parameters"
    )
    assert warned(job(), a_machine(memory=18 * GIB, free=None)) == []
    ranks = job(policy={"ranks": 4})
    assert "all processes take 67.9 GiB at least" in refused(ranks, a_machine())
    assert warned(job(policy={"ranks": 4, "zero_stage": 3}), a_machine(free=None)) == []


def test_what_is_copied_for_a_checkpoint_counts_where_it_is_written_beside_training() -> None:
    """4.3 GiB of weights and 8.5 of moments, once without ZeRO and with it: of adapters alone nothing to speak of."""
    sft = {"policy": Memory(weights=4 * COUNT, gradients=4 * COUNT, optimizer=8 * COUNT)}
    assert copied_bytes(job(), sft) == copied_bytes(job(policy={"ranks": 2}), sft) == 12 * COUNT
    divided = {"policy": Memory(weights=2 * COUNT, gradients=2 * COUNT, optimizer=4 * COUNT)}
    assert copied_bytes(job(policy={"ranks": 2, "zero_stage": 3}), divided) == 12 * COUNT
    offloaded = {"policy": Memory(weights=1, weights_offloaded=4 * COUNT, gradients=1, optimizer_offloaded=8 * COUNT)}
    assert copied_bytes(job(policy={"zero_stage": 3, "offload_optimizer": True}), offloaded) == 12 * COUNT
    assert copied_bytes(job(model={"lora": {}}), sft) == copied_bytes(job(checkpoint={"beside": False}), sft) == 0
    (line,) = warned(job(), a_machine(free=30 * GIB), filled=0.01)
    assert "up to 31.0 GiB" in line and line.endswith(", checkpoint.beside=false)")


def test_copies_in_memory_count_where_they_are_taken() -> None:
    """That which counts, and the one on its way: 25.5 GiB for 4.3 of weights and 8.5 of moments."""
    grpo = {"policy": Memory(weights=4 * COUNT, gradients=4 * COUNT, optimizer=8 * COUNT)}
    every = job("grpo", checkpoint={"memory_every": 5, "beside": False})
    assert kept_bytes(job("grpo"), grpo) == kept_bytes(every, grpo) == 24 * COUNT
    for none in ({"checkpoint": {"memory_every": None}}, {"run": {"max_restarts": 0}}, {"model": {"lora": {}}}):
        assert kept_bytes(job("grpo", **none), grpo) == 0
    assert kept_bytes(job(), grpo) == 0, "which goes back to checkpoints alone"
    (line,) = warned(job("grpo"), a_machine(free=30 * GIB), filled=0.01)
    assert line.endswith(", checkpoint.beside=false, checkpoint.memory_every=null)")
    (fewer,) = warned(job("grpo", checkpoint={"memory_every": None}), a_machine(free=30 * GIB), filled=0.01)
    assert taken(line) - taken(fewer) == pytest.approx(24 * COUNT / GIB, abs=0.11)


def taken(line: str) -> float:
    return float(line.partition("up to ")[2].partition(" GiB")[0])


def test_what_is_not_trained_has_neither_gradients_nor_optimizer_state() -> None:
    for model in ({"lora": {}}, {"freeze": ["model.layers.*"]}):
        assert warned(job(model=model), a_machine(memory=5 * GIB, free=None)) == []
    evaluated = job("grpo", algorithm={"steps": 0, "eval_every": 1}, data={"eval": "rows.jsonl"})
    assert warned(evaluated, a_machine(memory=10 * GIB, free=None)) == []


def test_parameters_that_are_offloaded_count_in_the_machines_memory_and_not_on_its_gpu() -> None:
    """1.14 billion parameters in fp32: 4.3 GiB of weights, as much of gradients, 12.7 of optimizer state."""
    policy = {"gpus_per_rank": 1, "zero_stage": 3, "offload_optimizer": True}
    there = a_machine(gpus=1, memory=15 * GIB, free=None, gpu_memory=7 * GIB)
    assert "policy.gpus_per_rank: must leave policy the 8.5 GiB" in refused(job(policy=policy), there)
    line = refused(job(policy=policy | {"offload_parameters": True}), there)
    assert "all processes take 17.0 GiB" in line, "the optimizer's state and the weights"
    there = a_machine(gpus=1, memory=20 * GIB, free=None, gpu_memory=7 * GIB)
    assert warned(job(policy=policy | {"offload_parameters": True}), there) == []


@pytest.mark.parametrize(("memory_gib", "fields"), [(1, []), (400, ["rollout.memory_gib"])])
def test_more_processes_than_cores_are_no_second_mistake_of_memory(memory_gib: int, fields: list[str]) -> None:
    """Unless one of them does not fit either."""
    findings = Findings(job("grpo", rollout={"engines": 300, "memory_gib": memory_gib}))
    check_room(findings, a_machine(), crowded=True)
    assert [line.partition(":")[0] for line in findings.problems] == fields
    findings.problems.clear()
    check_room(findings, a_machine())
    assert [line.partition(":")[0] for line in findings.problems] == ["rollout.memory_gib"]


@pytest.mark.parametrize("known", [True, False])
def test_a_cache_that_no_memory_holds_is_refused_whatever_the_model(known: bool) -> None:
    line = refused(job("grpo", rollout={"memory_gib": 4096}), a_machine(), known=known)
    assert line.startswith("rollout.memory_gib: must fit this machine's memory of 64.0 GiB, and all processes take 4,")
    assert line.endswith("most of it the key-value cache of rollout (4,096 GiB), got 4096")
    line = refused(job("grpo", rollout={"memory_gib": 10**6}), a_machine(), known=known)
    assert len(line) < 250


def test_the_whole_estimate_is_compared_with_what_is_free() -> None:
    (line,) = warned(job(), a_machine(free=18 * GIB))
    assert (
        line.startswith("memory: all processes take up to ") and "18.0 GiB of this machine's 64.0 GiB are free" in line
    )
    on_the_path = {"beside": False}
    assert warned(job(checkpoint=on_the_path), a_machine(free=19 * GIB), filled=0.01) == []


def test_an_object_store_has_its_limits() -> None:
    with pytest.raises(UserError, match=r"cluster.object_store_mib: .* 75, got 1"):
        job(cluster={"object_store_mib": 1})
    line = refused(job(cluster={"object_store_mib": 20000}), a_machine(shared=GIB), known=False)
    assert line == (
        "cluster.object_store_mib: must not exceed this machine's free space in /dev/shm (1024 MiB), got 20000"
    )
    (warning,) = warned(job(), a_machine(shared=64 * 2**20), known=False)
    assert "/dev/shm has 64 MiB free" in warning and "--shm-size=256m" in warning


def test_groups_on_gpus_take_the_gpus_memory() -> None:
    on_gpu = job(policy={"gpus_per_rank": 1})
    assert warned(on_gpu, a_machine(gpus=1, memory=4 * GIB, gpu_memory=24 * GIB)) == []
    assert refused(on_gpu, a_machine(gpus=1, gpu_memory=8 * GIB)).startswith("policy.gpus_per_rank: must leave policy")
    shared = {"policy": {"gpus_per_rank": 1}, "rollout": {"gpus_per_engine": 1}, "cluster": {"placement": "shared"}}
    line = refused(job("grpo", **shared), a_machine(gpus=1, gpu_memory=24 * GIB))
    assert line == (
        "rollout.gpu_memory_utilization: must leave policy the 17.0 GiB that its weights, gradients and optimizer "
        "state take, and a GPU of 24.0 GiB has 14.4 GiB beside the engine's share, got 0.4"
    )
    shared["rollout"]["gpu_memory_utilization"] = 0.85
    assert refused(job("grpo", **shared), a_machine(gpus=1, gpu_memory=24 * GIB)).endswith(
        "has 3.6 GiB beside the engine's share, got 0.85"
    )
    del shared["rollout"]["gpu_memory_utilization"]
    both = shared | {"algorithm": {"name": "grpo", "steps": 2, "kl_coef": 0.1}, "reference": {"gpus_per_rank": 1}}
    assert refused(job("grpo", **both), a_machine(gpus=1, gpu_memory=34 * GIB)) == (
        "rollout.gpu_memory_utilization: must leave policy, reference, which share a GPU, the 21.2 GiB that their "
        "weights, gradients and optimizer state take, and a GPU of 34.0 GiB has 20.4 GiB beside the engine's share, "
        "got 0.4"
    )
    assert warned(job("grpo", **shared), a_machine(gpus=1, gpu_memory=141 * GIB)) == []


def test_the_largest_tensor_fits_the_transfer_on_a_shared_gpu() -> None:
    """2048 x 32000 numbers of 4 bytes."""
    shared = {"policy": {"gpus_per_rank": 1}, "cluster": {"placement": "shared"}}
    rollout = {"gpus_per_engine": 1, "transfer": {"bucket_mib": 249}}
    with pytest.raises(UserError) as caught:
        check_bucket(job("grpo", **shared, rollout=rollout), SHAPE)
    rule = "must hold the model's largest tensor (250 MiB) on a shared GPU"
    assert caught.value.problems == (f"rollout.transfer.bucket_mib: {rule}, got 249",)
    adapters = {"model": {"init": None, "path": "m", "lora": {}}} | shared  # the base goes whole, once
    with pytest.raises(UserError, match=rule.replace("(", r"\(").replace(")", r"\)")):
        check_bucket(job("grpo", **adapters, rollout=rollout), SHAPE)
    check_bucket(job("grpo", **shared, rollout={"gpus_per_engine": 1}), SHAPE)


def test_a_disk_must_hold_the_model_and_should_hold_the_checkpoints() -> None:
    config = job(checkpoint={"every": 5, "keep": 3})
    with pytest.raises(UserError, match=r"run.output: must be on a disk with room for the trained model \(4.2 GiB\)"):
        check_disk(config, COUNT, 0, 4 * GIB)
    (line,) = check_disk(config, COUNT, COUNT * 8, 50 * GIB)
    assert line == (
        "run.output: outputs has 50.0 GiB free, and 4 checkpoints of 12.7 GiB with the trained model take 55.2 GiB "
        "(fewer: checkpoint.keep)"
    )
    assert check_disk(config, COUNT, COUNT * 8, 60 * GIB) == check_disk(config, None, 0, 1) == []


def test_memory_is_that_of_the_tightest_control_group(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert memory_here(tmp_path) == (None, None)
    write("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n")
    assert memory_here(tmp_path) == (1000 * 1024, 600 * 1024)
    write("proc/self/cgroup", "0::/a/b\n")  # version 2
    for directory, limit in {"a": "512000", "a/b": "max"}.items():
        write(f"sys/fs/cgroup/{directory}/memory.max", limit + "\n")
        write(f"sys/fs/cgroup/{directory}/memory.current", "300000\n")
        write(f"sys/fs/cgroup/{directory}/memory.stat", "anon 1\ninactive_file 100000\n")
    assert memory_here(tmp_path) == (512000, 312000)
    write("proc/self/cgroup", "5:cpu:/\n4:hugetlb,memory:/docker/x\n")  # version 1, seen from within its container
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "256000\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "56000\n")
    write("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 6000\n")
    assert memory_here(tmp_path) == (256000, 206000)
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_here(tmp_path) == (1000 * 1024, 600 * 1024)


def test_devices_that_are_hidden_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.machine_gpus() == 2
    for shown, count in {"": 0, "-1": 0, "1": 1, "0,1,2": 2}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert machine.machine_gpus() == count


@pytest.mark.parametrize(
    ("name", "gpus", "settings"),
    [
        ("sft", 2, "policy.gpus_per_rank=1 policy.ranks=2"),
        ("sft", 1, "policy.gpus_per_rank=1"),
        (
            "dpo",
            2,
            "cluster.placement=shared policy.gpus_per_rank=1 policy.ranks=2 "
            "reference.gpus_per_rank=1 reference.ranks=2",
        ),
        ("grpo", 4, "policy.gpus_per_rank=1 policy.ranks=2 rollout.gpus_per_engine=1 rollout.engines=2"),
        ("grpo", 1, "cluster.placement=shared policy.gpus_per_rank=1 rollout.gpus_per_engine=1"),
    ],
)
def test_gpus_that_a_run_leaves_alone_are_said_with_what_would_use_them(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, settings: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (line,) = check_resources(job(name), a_machine(gpus=gpus))
    count = f"{gpus} GPU{'s' * (gpus > 1)}, which this run does not use; to use {'them' if gpus > 1 else 'it'}"
    assert line == f"policy.gpus_per_rank: this machine has {count}: {settings}"
    assert check_resources(job(name, cluster={"gpus": 0}), a_machine(gpus=gpus)) == []
    sections: dict[str, dict[str, Any]] = {}
    for section, _, rest in (item.partition(".") for item in gpu_settings(job(name), gpus)):
        key, _, value = rest.partition("=")
        sections.setdefault(section, {})[key] = parse(value, key)
    assert check_resources(job(name, **sections), a_machine(gpus=gpus)) == []


def test_gpus_that_are_told_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a warning where a configuration is checked, and a mistake where it is run."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    two = {"policy": {"gpus_per_rank": 1}, "rollout": {"gpus_per_engine": 1}, "cluster": {"gpus": 2}}
    config = job("grpo", **two)
    rule = "cluster.gpus: must not exceed this machine's GPUs"
    hint = " (for one GPU: cluster.placement=shared, as in configs/grpo-1gpu.yaml)"
    for gpus in (0, 1):
        assert check_resources(config, a_machine(gpus=gpus)) == [
            f"cluster.gpus: 2 asked for and this machine has {gpus}: `tandem run` would not start on it"
        ]
        with pytest.raises(UserError) as caught:
            check_nodes(config, a_machine(gpus=gpus))
        (line,) = caught.value.problems
        assert line == (f"{rule} ({gpus}); RAY_ADDRESS or `tandem submit` takes a cluster, got 2{hint * (gpus == 1)}")
    check_nodes(config, a_machine(gpus=2))
    with pytest.raises(UserError) as caught:
        check_resources(job("grpo", **(two | {"cluster": {}})), a_machine(gpus=1))
    needs = "needs 2 GPUs in all (policy 1 x 1 + rollout 1 x 1)"
    assert caught.value.problems == (f"policy.ranks: {needs}, got 1 GPU on this machine{hint}",)
    with pytest.raises(
        UserError, match=r"policy.ranks: needs 1 GPU in all \(policy 1 x 1\), got 0 GPUs on this machine"
    ):
        check_resources(job(policy={"gpus_per_rank": 1}), a_machine())
    with pytest.raises(UserError, match=r"got 1 GPU by cluster.gpus \(this machine has 0\)"):
        check_resources(job("grpo", **(two | {"cluster": {"gpus": 1}})), a_machine())
    told = "this machine has 8 CPUs and 0 GPUs, the run's Ray is told 2 GPUs (cluster)"
    assert machine_line(config, a_machine()) == told
    (warning,) = check_resources(job(policy={"ranks": 9, "cpus_per_rank": 1}, cluster={"cpus": 16}), a_machine())
    assert warning.startswith("cluster.cpus: 16 are told to Ray, the groups ask for 9, and this machine has 8")


def test_check_asks_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`check` and `run` compare with this machine, `submit` does not."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    monkeypatch.setattr(check, "this_machine", lambda **_: a_machine(memory=GIB, free=GIB, gpus=1))
    config = job("grpo", model={"path": None, "init": {}}, rollout={"memory_gib": 3})
    with pytest.raises(UserError, match=r"rollout.memory_gib: must fit this machine's memory of 1.0 GiB"):
        check.preflight(config)
    assert check.preflight(config, elsewhere=True) == []
    config = job("grpo", model={"path": None, "init": {}}, cluster={"gpus": 1})
    monkeypatch.setattr(check, "this_machine", lambda **_: a_machine(gpus=1))
    assert any("which this run does not use" in line for line in check.preflight(config))
