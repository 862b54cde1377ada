"""The configuration: scalars are what a person means, and every contradiction is one line."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.config import UserError
from algorithms.config import SFTConfig
from launch.checks.check import examine, preflight
from launch.checks.known_sizes import arithmetic_of
from launch.checks.report import batch_lines
from launch.config import RunConfig, load, validate
from launch.settings.file import parse

GRPO: dict[str, Any] = {
    "algorithm": {"name": "grpo"},
    "model": {"init": {}},
    "data": {"train": "algorithms.tasks:reverse", "eval": "algorithms.tasks:reverse"},
    "reward": {"functions": ["exact_match"]},
    "rollout": {"max_prompt_tokens": 32, "max_response_tokens": 16},
}


def config_with(tmp_path: Path, *overrides: str) -> RunConfig:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(GRPO))
    return load(str(path), list(overrides))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6), ("2e1", 20.0), ("-.5E3", -500.0), ("1.", 1.0), (".inf", float("inf")), ("010", 10),
        ("0x1F", 31), ("0o17", 15), ("-3", -3), ("~", None), ("", None), ("null", None), ("true", True),
        ("yes", "yes"), ("on", "on"), ("2026-01-02", "2026-01-02"), ("12:30", "12:30"), ("1_000", "1_000"),
        ("1e3x", "1e3x"), ("e3", "e3"), ('"1e3"', "1e3"), ("'7'", "7"), ("[1e3, \"1e3\"]", [1000.0, "1e3"]),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse(text, "test")
    assert (found, type(found)) == (value, type(value))


def test_overrides_and_file_read_scalars_alike(tmp_path: Path) -> None:
    config = config_with(tmp_path, "policy.optimizer.lr=1e-6", 'rollout.stop=["1e3"]', "run.name='2e1'")
    assert (config.policy.optimizer.lr, config.rollout.stop, config.run.name) == (1e-6, ["1e3"], "2e1")
    with pytest.raises(UserError, match=r"^run\.name: must be text, in quotes, got 20\.0$"):
        config_with(tmp_path, "run.name=2e1")


def test_a_file_cannot_build_objects() -> None:
    with pytest.raises(UserError, match=r"tags are not allowed, got !!python/object/apply:os\.getcwd"):
        parse("!!python/object/apply:os.getcwd []", "test")


CONTRADICTIONS = {
    "policy.optimizer={schedule: constant, warmup_updates: 5}": "policy.optimizer.warmup_updates must be 0 with "
    "schedule constant (constant_with_warmup warms up), got 5",
    "policy.optimizer={name: adam, weight_decay: 0.1}": "policy.optimizer.weight_decay must be 0 for adam, "
    "which would scale it like a gradient (adamw does not), got 0.1",
    "policy.optimizer={name: sgd, eps: 0.1}": "policy.optimizer.eps must be left out for sgd, "
    "which has no moments, got 0.1",
    "policy.optimizer.betas=[0.9, 1.0]": "policy.optimizer.betas.1: must be below 1, got 1.0",
    "algorithm={name: grpo, eval_temperature: 0, eval_samples_per_prompt: 4}": "algorithm.eval_samples_per_prompt must "
    "be 1 with eval_temperature 0, which gives the same response every time, got 4",
    "reference.zero_stage=1": "reference.zero_stage must be 0 or 3 for a group without optimizer and gradients, got 1",
    "reference={zero_stage: 3, offload_optimizer: true}": "reference.offload_optimizer must be false for a group "
    "without optimizer, got true",
    "model.dtype=bf16": "policy.zero_stage must be 1, 2 or 3 with model.dtype bf16, "
    "as DeepSpeed accumulates the gradients of stage 0 in bf16, got 0",
    "model.attention=flash_attention_2": "model.attention flash_attention_2 needs dtype bf16, got fp32",
    "rollout={tensor_parallel: 2, gpus_per_engine: 1}": "rollout.gpus_per_engine must be 0 or tensor_parallel (2), "
    "got 1",
    "reward.deadline_s=1e-9": "reward.deadline_s: must be at least 0.1, got 1e-09",
    "rollout.timeout_s=0.09": "rollout.timeout_s: must be at least 0.1, got 0.09",
    "rollout.start_timeout_s=0": "rollout.start_timeout_s: must be at least 0.1, got 0",
    "rollout.transfer.timeout_s=-1": "rollout.transfer.timeout_s: must be at least 0.1, got -1",
    "policy.timeout_s=0.001": "policy.timeout_s: must be at least 0.1, got 0.001",
    "cluster.wait_s=0.01": "cluster.wait_s: must be at least 0.1, got 0.01",
    "reward={functions: [my.py:f, {name: my.py:f, weight: 2}]}": "reward.functions.1 must differ from the others (to "
    "count one twice give it the weight 2), got my.py:f again",
    "reward={models: [m, n, m]}": "reward.models.2 must differ from the others (to count one twice give it the weight "
    "2), got m again",
    "reward={endpoints: ['http://a', 'http://a']}": "reward.endpoints.1 must differ from the others (to count one "
    "twice give it the weight 2), got http://a again",
    "run.seed=2147483648": "run.seed: must be below 2147483648, got 2147483648",
    "run.seed=-1": "run.seed: must be at least 0, got -1",
}


@pytest.mark.parametrize("override", CONTRADICTIONS)
def test_a_contradiction_is_one_line(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError) as caught:
        config_with(tmp_path, override)
    assert caught.value.problems == (CONTRADICTIONS[override],)


def test_groups_share_gpus_in_equal_parts(tmp_path: Path) -> None:
    shared = "cluster.placement=shared"
    config_with(tmp_path, shared, "policy.gpus_per_rank=1", "rollout.gpus_per_engine=1")
    config_with(tmp_path, shared, "policy.gpus_per_rank=0.5")
    with pytest.raises(UserError) as caught:
        config_with(tmp_path, shared, "policy.gpus_per_rank=0.5", "rollout.gpus_per_engine=1")
    rule = "cluster.placement shared needs groups that ask for the same, at most 1, GPU"
    assert str(caught.value) == f"{rule}, got policy.gpus_per_rank 0.5, rollout.gpus_per_engine 1"
    two = "rollout={tensor_parallel: 2, gpus_per_engine: 2, max_prompt_tokens: 32, max_response_tokens: 16}"
    with pytest.raises(UserError, match=r"at most 1, GPU, got rollout\.gpus_per_engine 2"):
        config_with(tmp_path, shared, two)


def test_a_resolved_configuration_can_be_run_again(tmp_path: Path) -> None:
    config = config_with(tmp_path, "policy.optimizer={name: sgd, lr: 1e-3}", "algorithm.kl_coef=0.1")
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json"), indent=2))
    assert load(str(tmp_path / "config.json"), []) == config


def test_a_truncated_distribution_is_a_warning(tmp_path: Path) -> None:
    quiet = ["data.arguments={count: 8, eval_count: 8}", f"run.output={tmp_path}"]
    assert preflight(config_with(tmp_path, *quiet)) == []
    settings = ["top_p=0.9", "top_k=5", "min_p=0.05", "repetition_penalty=1.2", "presence_penalty=0.5"]
    lines = preflight(config_with(tmp_path, *quiet, *(f"rollout.{setting}" for setting in settings)))
    assert [line.partition(":")[0] for line in lines] == [f"rollout.{each.replace('=', ' ')}" for each in settings]


def test_what_ends_a_response_is_in_the_vocabulary(tmp_path: Path) -> None:
    quiet = ["data.arguments={count: 8, eval_count: 8}", f"run.output={tmp_path}"]
    assert preflight(config_with(tmp_path, *quiet, "rollout.stop_token_ids=[5, 102]")) == []
    with pytest.raises(UserError) as caught:
        preflight(config_with(tmp_path, *quiet, "rollout.stop_token_ids=[5, 103]"))
    assert (
        str(caught.value) == "rollout.stop_token_ids: must be below the size of the model's vocabulary (103), got 103"
    )


def test_a_stop_string_is_one_that_texts_contain(tmp_path: Path) -> None:
    """The engine's text has no special tokens: a response would never be ended by one."""
    quiet = ["data.arguments={count: 8, eval_count: 8}", f"run.output={tmp_path}"]
    assert preflight(config_with(tmp_path, *quiet, "rollout.stop=['ab', '<|end']")) == []
    with pytest.raises(UserError) as caught:
        preflight(config_with(tmp_path, *quiet, "rollout.stop=['ab', 'a<|end|>']"))
    assert str(caught.value) == (
        "rollout.stop.1: must hold no special token, as the text that is searched has none "
        "(rollout.stop_token_ids=[2] stops at it, the end-of-sequence token always does), got 'a<|end|>'"
    )


@pytest.mark.parametrize(
    ("epochs", "sequences", "per_update", "updates"), [(2, 100, 30, 7), (1, 90, 30, 3), (3, 1, 8, 1)]
)
def test_epochs_are_counted_once_for_check_and_run(epochs: int, sequences: int, per_update: int, updates: int) -> None:
    algorithm = SFTConfig(name="sft", epochs=epochs, samples_per_update=per_update)
    assert algorithm.updates(sequences) == updates
    assert SFTConfig(name="sft", steps=5).updates(sequences) == 5


def test_epochs_of_reinforcement_are_steps_over_the_prompts(tmp_path: Path) -> None:
    quiet = ["data.arguments={count: 41, eval_count: 8}", f"run.output={tmp_path}", "algorithm.epochs=3"]
    found = examine(config_with(tmp_path, *quiet, "algorithm.prompts_per_step=4"))
    assert (found.rows, arithmetic_of(found).steps) == (41, 31)
    assert batch_lines(found)[1] == "31 steps are 3.02 passes over 41 prompts"
    ppo = "algorithm={name: ppo, epochs: 3, prompts_per_step: 16, critic_warmup_steps: %d}"
    assert arithmetic_of(examine(config_with(tmp_path, *quiet[:2], ppo % 7, "critic={}"))).steps == 8
    with pytest.raises(UserError) as caught:
        examine(config_with(tmp_path, *quiet[:2], ppo % 8, "critic={}"))
    assert str(caught.value) == (
        "algorithm.critic_warmup_steps must be below the steps of epochs 3 (8), or the policy never learns, got 8"
    )


def test_a_user_error_keeps_its_lines_on_its_way_from_an_actor() -> None:
    error = pickle.loads(pickle.dumps(UserError("a: first", "b: second")))
    assert (error.problems, str(error)) == (("a: first", "b: second"), "a: first\nb: second")


def test_several_problems_are_several_lines() -> None:
    with pytest.raises(UserError) as caught:
        validate({**GRPO, "run": {"seed": -1}, "policy": {"ranks": 0}})
    assert [line.partition(":")[0] for line in caught.value.problems] == ["policy.ranks", "run.seed"]


def test_the_critics_learning_rate_stays_where_another_setting_of_its_optimizer_is_given() -> None:
    given = {"algorithm": {"name": "ppo"}, "model": {"init": {}}, "data": {"train": "rows.jsonl"}}
    given |= {"reward": {"functions": ["exact_match"]}, "critic": {"optimizer": {"warmup_updates": 3}}}
    config = validate(given)
    assert config.critic is not None and config.critic.optimizer.lr == 9e-6
    assert config.policy.optimizer.lr == 1e-6
