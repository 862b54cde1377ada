"""The DeepSpeed engine on one rank, at every ZeRO stage: clipping, warm-up, averages, and settings passed through."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, get_scheduler

from actors.config import FrozenGroupConfig, LoraConfig, OptimizerConfig, TrainerConfig, UserError
from actors.config_deepspeed import FIELDS, OURS
from actors.files import stored
from actors.models.lora import add_adapters, plain_parameters
from actors.train.engine import (
    TrainingEngine,
    _checkpoint_files,
    checkpoint_types,
    gathered,
    inference_module,
)
from actors.train.frozen import ReferenceWorker
from actors.train.policy import PolicyWorker
from actors.train.schedule import rate_schedule
from tests.one_rank import (
    SMALL,
    STAGES,
    STAGES_AND_DTYPES,
    UPDATES,
    Net,
    alone,  # noqa: F401
    assert_equal,
    engine,
    train,
    weights,
)

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize("stage", STAGES)
def test_only_max_grad_norm_clips(stage: int) -> None:
    """DeepSpeed's own default would clip to 1: a step of SGD is lr x gradient."""
    trained, net = engine(stage), Net()
    train(trained, 0)
    torch.manual_seed(100)
    (((net(torch.randn(7, 6)) ** 2).sum()) * 30).backward()
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients)) > 10
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.data -= 0.5 * parameter.grad
    expected = {name: parameter.detach() for name, parameter in net.model.named_parameters()}
    assert_equal(weights(trained), expected, rtol=1e-4, atol=1e-4)


def rates(updates: int, **settings: Any) -> list[float]:
    """Learning rates of all updates, of a peak of 1, as the optimizer gets them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = rate_schedule(optimizer, OptimizerConfig(name="sgd", lr=1.0, **settings), updates)
    found = []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warmup_is_a_share_of_all_updates_rounded_up() -> None:
    assert rates(35, warmup_ratio=0.1) == rates(35, warmup_updates=4) != rates(35, warmup_updates=3)
    assert rates(8, warmup_ratio=0.5, schedule="linear")[:5] == [0.25, 0.5, 0.75, 1, 1]


HALF = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("schedule", "settings", "expected"),
    [
        ("constant", {}, [1] * 6),
        ("constant_with_warmup", {}, [1] * 6),
        ("constant_with_warmup", {"warmup_updates": 1}, [1] * 6),
        ("constant_with_warmup", {"warmup_updates": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("constant_with_warmup", {"warmup_updates": 8}, [0.125, 0.25, 0.375, 0.5, 0.625, 0.75]),
        ("constant_with_warmup", {"warmup_ratio": 1}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
        ("linear", {}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", {"warmup_updates": 2}, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", {"warmup_updates": 2}, [0.5, 1, 1, 0.5 + HALF / 2, 0.5, 0.5 - HALF / 2]),
        (
            "cosine_with_min_lr",
            {"warmup_updates": 2, "min_lr_ratio": 0.2},
            [0.5, 1, 1, 0.6 + 0.4 * HALF, 0.6, 0.6 - 0.4 * HALF],
        ),
    ],
)
def test_schedules_have_these_values(schedule: str, settings: dict[str, Any], expected: list[float]) -> None:
    """No update is made with rate 0: the first of a warm-up of n has 1/n of the peak, the n-th all of it."""
    assert rates(6, schedule=schedule, **settings) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"])
def test_after_the_warmup_schedules_are_those_of_transformers(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    specific = {"min_lr_rate": 0.1} if schedule == "cosine_with_min_lr" else None
    theirs = get_scheduler(
        schedule, optimizer, num_warmup_steps=3, num_training_steps=17, scheduler_specific_kwargs=specific
    )
    ours = rates(17, schedule=schedule, warmup_updates=3)
    for update in range(17):
        if update >= 3:
            assert ours[update] == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_is_that_of_the_definition_and_is_resumed(stage: int, tmp_path: Path) -> None:
    """average <- decay average + (1 - decay) weights, at every stage; frozen weights stay what they are."""
    trained = engine(stage, optimizer=SMALL, ema_decay=0.75)
    expected = weights(trained)
    for update in range(UPDATES):
        train(trained, update)
        for name, weight in weights(trained).items():
            expected[name] = 0.75 * expected[name] + 0.25 * weight
        if update == 1:
            trained.save(tmp_path)
    own = weights(trained)
    with trained.averaged():
        averaged = weights(trained)
    assert_equal(averaged, expected, atol=1e-6)
    assert_equal(weights(trained), own)
    assert float((averaged["0.weight"] - own["0.weight"]).abs().max()) > 1e-2
    again = engine(stage, optimizer=SMALL, ema_decay=0.75)
    again.load(tmp_path)
    for update in range(2, UPDATES):
        train(again, update)
    with again.averaged():
        assert_equal(weights(again), averaged)
    assert_equal(weights(again), own)
    train(again, 9)  # training goes on after an export


@pytest.mark.parametrize(("stage", "dtype"), STAGES_AND_DTYPES)
def test_the_schedule_of_a_longer_run_holds_from_the_first_update_on(stage: int, dtype: str, tmp_path: Path) -> None:
    """A finished cosine run has rate 0; that of 10 updates is in its middle after 5: no update is made at rate 0."""
    cosine = OptimizerConfig(name="sgd", lr=0.5, schedule="cosine", max_grad_norm=1e6)
    first = engine(stage, dtype=dtype, updates=5, optimizer=cosine)
    for update in range(5):
        train(first, update)
    first.save(tmp_path)
    assert first.learning_rate == 0
    longer = engine(stage, dtype=dtype, updates=10, optimizer=cosine)
    assert longer.load(tmp_path) == (0, pytest.approx(0.25))
    found, before = [], weights(longer)
    for update in range(5, 10):
        found.append(longer.learning_rate)
        train(longer, update)
        if update == 5:
            assert float((weights(longer)["0.weight"] - before["0.weight"]).abs().max()) > 1e-2
    assert found == pytest.approx([0.25 * (1 + math.cos(math.pi * update / 10)) for update in range(5, 10)])
    same = engine(stage, dtype=dtype, updates=5, optimizer=cosine)
    assert same.load(tmp_path) == (0, 0)


class Mark:
    """Unpickled without care, it makes a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.directory),)


@pytest.mark.parametrize(("stage", "dtype"), [*((stage, "fp32") for stage in STAGES), (1, "bf16"), (3, "bf16")])
def test_a_file_that_names_code_is_refused_and_runs_none(stage: int, dtype: str, tmp_path: Path) -> None:
    """Each file of a real checkpoint in turn: by the look before loading, and by loading itself."""
    trained = engine(stage, dtype=dtype, ema_decay=0.5)
    train(trained, 0)
    hashes = trained.save(tmp_path / "good")
    files = sorted(path.relative_to(tmp_path / "good") for path in (tmp_path / "good").rglob("*.pt"))
    assert {str(file) for file in files} == hashes.keys()
    assert stored.faults(tmp_path / "good", hashes, checkpoint_types()) == []
    trained.load(tmp_path / "good")
    marker = tmp_path / "marker"
    for number, file in enumerate(files):
        bad = tmp_path / f"bad-{number}"
        shutil.copytree(tmp_path / "good", bad)
        value = torch.load(bad / file, weights_only=False)
        torch.save([*value, Mark(marker)] if isinstance(value, list) else value | {"further": Mark(marker)}, bad / file)
        (found,) = stored.faults(bad, {str(file): None}, checkpoint_types())
        assert found == (f"{bad / file} holds more than data: posix.mkdir", False)
        with pytest.raises(UserError) as caught:
            trained.load(bad)
        assert caught.value.problems == (f"checkpoint.resume: {found.line}; it was not loaded",)
    assert not marker.exists()


@pytest.mark.parametrize("stage", STAGES)
def test_the_types_of_deepspeed_are_all_and_needed(stage: int, tmp_path: Path) -> None:
    """At no stage does a checkpoint name more than the list, and beside stage 0 not less than two of it."""
    trained = engine(stage, optimizer=SMALL, ema_decay=0.5)
    train(trained, 0)
    trained.save(tmp_path)
    named = {
        name for path in tmp_path.rglob("*.pt") for name in torch.serialization.get_unsafe_globals_in_checkpoint(path)
    }
    known = {f"{kind.__module__}.{kind.__qualname__}" for kind in checkpoint_types()}
    assert named <= known
    assert len(named) == {0: 0, 1: 3, 2: 3, 3: 2}[stage]


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_averages_of_bf16_are_kept_in_float32(stage: int) -> None:
    trained = engine(stage, dtype="bf16", optimizer=SMALL, ema_decay=0.75)
    for update in range(UPDATES):
        train(trained, update)
    assert {average.dtype for average in trained.averages} == {torch.float32}
    own = weights(trained)
    with trained.averaged():
        averaged = weights(trained)
    plain = engine(0, optimizer=SMALL, ema_decay=0.75)
    for update in range(UPDATES):
        train(plain, update)
    with plain.averaged():
        assert_equal({n: w.float() for n, w in averaged.items()}, weights(plain), atol=0.02)
    assert_equal(weights(trained), own)


class Adapted(torch.nn.Module):
    """A frozen language model with adapters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        self.model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))
        add_adapters(self.model, LoraConfig(rank=2), seed=0)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(batch).logits


class Shared(Adapted):
    """With more in its base than in its adapters, and a frozen tensor that has two names, as a head has."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
        add_adapters(self.model, LoraConfig(rank=2), seed=0)
        self.head = torch.nn.ParameterList([self.model.get_output_embeddings().weight])


@pytest.mark.parametrize("stage", [0, 3])
def test_of_adapters_the_factors_are_averaged(stage: int) -> None:
    group = TrainerConfig(zero_stage=stage, optimizer=SMALL, ema_decay=0.75)
    trained, plain = TrainingEngine(Adapted(), group, "fp32", UPDATES), Adapted()
    expected = weights(trained)
    for update in range(UPDATES):
        batch = torch.arange(12).reshape(2, 6) + update
        trained.backward((trained.forward(batch) ** 2).sum(), last=True)
        trained.step()
        for name, weight in weights(trained).items():
            expected[name] = 0.75 * expected[name] + 0.25 * weight
    assert sum(average.numel() for average in trained.averages) < 2000, "of the adapters alone"
    plain.model.load_state_dict(expected, strict=False)
    with trained.averaged():
        assert_equal(weights(trained), expected, atol=1e-6)
        merged = {
            name: tensor.clone() for name, tensor in plain_parameters(trained.module.model, gathered, merged=True)
        }
    assert_equal(merged, dict(plain_parameters(plain.model, gathered, merged=True)), atol=1e-6)


def written(directory: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(path.stat().st_size for path in directory.rglob("*.pt"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_what_is_trained_and_not_the_frozen_base(stage: int, tmp_path: Path) -> None:
    """Under none of a tensor's names; what it is loaded into has the base from where training began."""
    group = TrainerConfig(zero_stage=stage, optimizer=SMALL)
    trained, again = (TrainingEngine(Shared(), group, "fp32", UPDATES) for _ in range(2))
    base = {name: weight for name, weight in weights(trained).items() if "lora" not in name}
    for update in range(UPDATES):
        trained.backward((trained.forward(torch.arange(12).reshape(2, 6) + update) ** 2).sum(), last=True)
        trained.step()
    trained.save(tmp_path)
    files = tmp_path.rglob("*model_states.pt")
    names = {name for file in files for name in stored.read(file, checkpoint_types())["module"]}
    assert names and all("lora" in name for name in names)
    assert written(tmp_path) < sum(weight.nbytes for weight in base.values()) / 3
    assert any(not torch.equal(weight, weights(again)[name]) for name, weight in weights(trained).items())
    again.load(tmp_path)
    assert_equal(weights(again), weights(trained))
    assert_equal({name: weight for name, weight in weights(again).items() if name in base}, base)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_that_holds_the_frozen_base_too_is_loaded(stage: int, tmp_path: Path) -> None:
    """As older ones do."""
    trained, again = engine(stage), engine(stage)
    train(trained, 0)
    trained.frozen.clear()
    trained.files = trained.engine.checkpoint_engine = _checkpoint_files(set())
    trained.engine.save_checkpoint(str(tmp_path), tag="state", exclude_frozen_parameters=False)
    again.load(tmp_path)
    assert_equal(weights(again), weights(trained))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trained, other = engine(0), engine(0)
    trained.save(tmp_path)
    for name, line in (("0.bias", "it has model.0.bias"), ("9.bias", "it lacks model.9.weight, model.9.bias")):
        changed = engine(0)
        if name == "0.bias":
            changed.module.model[0].bias = None
        else:
            changed.module.model.add_module("9", torch.nn.Linear(3, 3))
        with pytest.raises(ValueError, match=f"the checkpoint is of another model: {line}"):
            changed.load(tmp_path)
    other.load(tmp_path)


@pytest.mark.parametrize("offload_optimizer", [False, True])
def test_offloaded_parameters_are_trained_as_others(offload_optimizer: bool, tmp_path: Path) -> None:
    plain = engine(3, optimizer=SMALL, ema_decay=0.75)
    moved = engine(3, optimizer=SMALL, ema_decay=0.75, offload_parameters=True, offload_optimizer=offload_optimizer)
    assert moved.engine.optimizer.offload_param
    assert not plain.engine.optimizer.offload_param
    for update in range(UPDATES):
        train(plain, update)
        train(moved, update)
    assert_equal(weights(moved), weights(plain), atol=1e-6)
    with plain.averaged(), moved.averaged():
        assert_equal(weights(moved), weights(plain), atol=1e-6)
    moved.save(tmp_path)
    again = engine(3, optimizer=SMALL, ema_decay=0.75, offload_parameters=True, offload_optimizer=offload_optimizer)
    again.load(tmp_path)
    assert_equal(weights(again), weights(moved))


def test_a_frozen_model_may_be_offloaded() -> None:
    held = inference_module(Net(), FrozenGroupConfig(zero_stage=3, offload_parameters=True), "fp32")
    with torch.no_grad():
        torch.testing.assert_close(held(torch.ones(2, 6)), Net()(torch.ones(2, 6)), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"zero_stage": 3}, {"zero_stage": 3, "offload_parameters": True}])
def test_a_reference_moves_towards_the_policy(settings: dict[str, Any], tmp_path: Path) -> None:
    """reference <- mix policy + (1 - mix) reference, adapters merged; what is saved is restored."""
    policy, reference, again = (kind.__new__(kind) for kind in (PolicyWorker, ReferenceWorker, ReferenceWorker))
    policy.rank, policy.hf_model = 0, Adapted().model
    with torch.no_grad():
        for parameter in policy.hf_model.parameters():
            parameter.add_(0.1)
    group = FrozenGroupConfig.model_validate(settings)
    for worker in (reference, again):
        worker.rank, worker.group, worker.hf_model = 0, group, LlamaForCausalLM(policy.hf_model.config)
        worker.module = inference_module(worker.hf_model, group, "fp32")

    def own(worker: ReferenceWorker) -> dict[str, torch.Tensor]:
        found = {}
        for name, parameter in worker.hf_model.named_parameters():
            with gathered([parameter]):
                found[name] = parameter.detach().clone()
        return found

    before = own(reference)
    merged = dict(plain_parameters(policy.hf_model, gathered, merged=True))  # type: ignore[arg-type]
    policy.write_weights(tmp_path / "sent")
    reference.follow(tmp_path / "sent", 0.25)
    expected = {name: 0.75 * before[name] + 0.25 * merged[name] for name in before}
    assert_equal(own(reference), expected, atol=1e-6)
    assert reference.save(tmp_path / "kept")[0][0] == "weights.safetensors"
    again.load(tmp_path / "kept")
    assert_equal(own(again), own(reference))
    reference.follow(tmp_path / "sent", 1.0)
    assert_equal(own(reference), {name: merged[name] for name in before})


def test_settings_reach_deepspeed() -> None:
    zero = {"reduce_bucket_size": 1000, "stage3_param_persistence_threshold": 10, "sub_group_size": 20}
    passed = {"zero_optimization": zero, "wall_clock_breakdown": True, "comms_logger": {"enabled": True}}
    trained = engine(3, optimizer=SMALL, ema_decay=0.75, deepspeed=passed)
    config = trained.engine._config
    assert (config.zero_config.reduce_bucket_size, config.zero_config.sub_group_size) == (1000, 20)
    assert config.zero_config.stage == 3
    assert config.wall_clock_breakdown
    assert config.comms_config.comms_logger.enabled
    plain = engine(3, optimizer=SMALL, ema_decay=0.75)
    for update in range(UPDATES):
        train(trained, update)
        train(plain, update)
    assert len(trained.averages) > len(plain.averages)  # sub-groups
    with trained.averaged(), plain.averaged():
        assert_equal(weights(trained), weights(plain), atol=1e-6)
    assert_equal(weights(trained), weights(plain), atol=1e-6)


def test_the_table_is_that_of_the_installed_deepspeed() -> None:
    """Every field that DeepSpeed has is either passed through or refused with a reason, and no other is."""
    import deepspeed.runtime.config as source
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.profiling import constants as profiling
    from deepspeed.runtime import constants
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    def names(model: Any) -> set[str]:
        return {field.alias or name for name, field in model.model_fields.items()}

    zero = FIELDS["zero_optimization"]
    ours = {field.removeprefix("zero_optimization.") for field in OURS if "." in field}
    assert zero.keys() | ours == names(DeepSpeedZeroConfig)
    assert zero.keys() & ours == set()
    assert zero["leaf_module"].keys() == names(DeepSpeedZeroLeafModuleConfig)
    assert FIELDS["comms_logger"].keys() == names(CommsLoggerConfig)
    assert FIELDS["timers"]["throughput"].keys() == names(DeepSpeedThroughputTimerConfig)
    profiler = {value for name, value in vars(profiling).items() if name.startswith("FLOPS_") and "DEFAULT" not in name}
    assert FIELDS["flops_profiler"].keys() | {"flops_profiler"} == {each for each in profiler if "{" not in str(each)}
    assert FIELDS.keys() & OURS.keys() == set()
    # What the rest of the configuration's source names as keys.
    text = Path(source.__file__).read_text(encoding="utf-8")
    top = {
        value
        for name, value in vars(constants).items()
        if isinstance(value, str)
        and f"param_dict, {name}," in text.replace("\n", " ").replace("(param_dict, ", "param_dict, ")
    }
    assert top - FIELDS.keys() - OURS.keys() == set()
