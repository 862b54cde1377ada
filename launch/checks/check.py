"""What can be known to be wrong before anything starts: model, data, rewards, resources, output directory.

Imports neither torch nor ray nor vllm. `check` prints the findings; `run`, `submit` and `k8s` look at them first.
"""

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace

from actors.config import UserError
from actors.models.family import LENGTHS_DECIDE
from actors.models.tokenizer import chat_template_of
from actors.models.tried import TRIED
from launch.checks.capacity import check_resources
from launch.checks.chat_template import check_chat_template
from launch.checks.data_checks import check_resumed, is_elsewhere, one_per_column
from launch.checks.engine_family import check_engine_family
from launch.checks.engine_options import check_engine_options
from launch.checks.findings import Findings
from launch.checks.fits import check_bucket, check_room
from launch.checks.other_models import say_it_is_loaded
from launch.checks.output import check_output
from launch.checks.reward_checks import RewardProbe
from launch.checks.rope import check_rope, lengths_decide
from launch.checks.tokenizer_process import Aside
from launch.config import RunConfig, validate
from launch.exports.hub import check_can_push
from launch.kinds.kind import JobKind
from launch.kinds.table import job_kind
from launch.models.files import Policy, check_names, check_tokenizer, read_policy
from launch.run.checkpoint import Checkpoints
from launch.run.manifest import Checkpoint, Damaged
from launch.run.ray_address import open_warnings
from launch.settings.file import apply_overrides
from launch.settings.literal_secrets import plain_http_warnings
from launch.settings.named_code import check_code_is_there
from launch.settings.rules_kubernetes import auth_warnings
from launch.sizes.estimate import decoder_shape
from launch.sizes.machine import this_machine
from launch.sizes.placement import demands
from launch.storage.address import check_apart, check_package

_COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")
"""Families whose first position is the one behind the padding token's number."""
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
"""Fields that say how many positions a model has."""


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


def takes(config: RunConfig, override: str) -> bool:
    """Whether a run of this configuration may have another setting, `section.field=value`, by the rules of settings,
    the model's sizes, and this machine's cores, GPUs and memory; files, data and rewards stay what they are."""
    try:
        changed = validate(apply_overrides(config.model_dump(mode="json", exclude_unset=True), [override]))
    except UserError:
        return False
    findings, kind = Findings(changed, code=False), job_kind(changed)
    with findings.collecting():
        findings.warnings += check_resources(changed, this_machine())
    with findings.collecting():
        _check_batches(changed, kind)
    with findings.collecting():
        _check_model(findings, kind)
    check_room(findings, this_machine(with_gpu_memory=any(item.gpus for item in demands(changed))))
    return not findings.problems


def _examine(findings: Findings, rewards: RewardProbe) -> None:
    config, elsewhere = findings.config, findings.elsewhere
    kind, crowded = job_kind(config), False
    if not elsewhere:
        with findings.collecting():
            # First, as a directory of somebody else's has no checkpoints to look for.
            check_output(config)
            findings.checkpoint = _latest(config)
            findings.warnings += findings.checkpoint.passed_over if findings.checkpoint else ()
        # Too few CPUs or GPUs and too little memory have one cause, which is told once: see `check_room`.
        told = len(findings.problems)
        with findings.collecting():
            findings.warnings += check_resources(config, this_machine())
        crowded = len(findings.problems) > told
    with findings.collecting():
        _check_batches(config, kind)
    if not findings.code:
        with findings.collecting():
            findings.warnings += check_code_is_there(config)
    # While the other process imports the tokenizers' library.
    sets = kind.read_sets(findings)
    policy = None
    with findings.collecting():
        policy = _check_model(findings, kind)
    with findings.collecting():
        check_bucket(config, findings.shape)
    if not elsewhere:
        # nvidia-smi takes a second: asked only for what will be on GPUs.
        on_gpus = any(item.gpus for item in demands(config))
        check_room(findings, this_machine(with_gpu_memory=on_gpus), crowded=crowded)
        with findings.collecting():
            _check_tracking(config)
        with findings.collecting():
            if config.run.hub_model_id:
                check_can_push("run.hub_model_id", config.run.hub_model_id)
        with findings.collecting():
            if config.run.storage:
                check_package("run.storage", config.run.storage)
                check_apart(config.run.storage, config.directory)
        with findings.collecting():
            kind.check_packages()
    with findings.collecting():
        findings.warnings.extend(check_engine_options(config.rollout))
    readable = False
    if _template_is_here(findings) and policy and not findings.problems:
        with findings.collecting():
            findings.aside.call(check_tokenizer, config, policy)
            if kind.role != "encoder" and (policy.tokenizer or config.model.init):
                findings.notes += findings.aside.call(check_chat_template, config)
            readable = policy.tokenizer
    kind.check_data(findings, rewards, sets, tokenise=readable)
    if findings.rows and findings.complete and (problem := kind.steps_problem(findings.rows)):
        findings.problems.append(problem)
    if findings.checkpoint and not findings.problems:
        with findings.collecting():
            check_resumed(findings, findings.checkpoint)
    findings.notes += kind.notes()
    open_to_all = auth_warnings(config) + ([] if findings.elsewhere else open_warnings())
    findings.warnings.extend(plain_http_warnings(config) + open_to_all + kind.warnings())


def _latest(config: RunConfig) -> Checkpoint | None:
    """Where the run would go on; None also where that is in storage, perhaps."""
    try:
        return Checkpoints(config).latest()
    except Damaged:
        if config.run.storage:  # which the run asks for a whole one
            return None
        raise


def _template_is_here(findings: Findings) -> bool:
    """Whether the tokenizer's chat template can be looked at: one of model.chat_template may be on the cluster."""
    model = findings.config.model
    if model.chat_template and is_elsewhere(findings, "model.chat_template", model.chat_template):
        return False
    # Also where nothing of the model is here: a file that is missing is told of before the run loads anything.
    with findings.collecting():
        chat_template_of(model)
    return True


def _check_batches(config: RunConfig, kind: JobKind) -> None:
    samples = kind.update_samples
    ranks = {"policy": config.policy.ranks} | ({"critic": config.critic.ranks} if config.critic else {})
    for name, count in ranks.items():
        if samples and count > samples:
            raise UserError(f"{name}.ranks: must not exceed the samples of an update ({samples}), got {count}")


def _check_model(findings: Findings, kind: JobKind) -> Policy | None:
    """Learn the model's size, without its tokenizer; None where nothing of it is on this machine."""
    config = findings.config
    if config.model.path is not None and is_elsewhere(findings, "model.path", config.model.path):
        return None
    policy = read_policy(config)
    # A snapshot without weights says its sizes, and has no directory.
    directory = policy and policy.directory
    if config.model.init is None and directory is None:
        lacks = "does not hold it" if policy is None else "does not hold its weights"
        say_it_is_loaded(findings, "model.path", str(config.model.path), config.model.revision, lacks)
    if policy is None:
        return None
    check_names(config, policy)
    _learn_size(findings, policy, kind)
    if policy.family and policy.fields.get("model_type") not in TRIED:
        untried = f"{policy.values['model_type']} is of a kind that Tandem does not know"
        findings.warnings.append(f"model.path: {untried}: the run compares it with transformers before it trains it")
    _check_stop_tokens(config, policy.fields.get("vocab_size"))
    findings.notes += check_rope(policy.values, kind)
    if kind.samples_responses:
        findings.notes += check_engine_family(config, policy.values)
    if directory or config.model.init:
        kind.check_model(policy.values, directory)
    return policy


def _learn_size(findings: Findings, policy: Policy, kind: JobKind) -> None:
    values = policy.fields
    findings.shape = shape = decoder_shape(values)
    findings.parameters, findings.family = policy.parameters, policy.family
    if policy.family and policy.family.way == "packed" and not kind.samples_responses and lengths_decide(values):
        findings.family = replace(policy.family, way="rows", why=LENGTHS_DECIDE)
    padding, positions = values.get("pad_token_id"), _positions(values)
    if positions and values["model_type"] in _COUNT_FROM_PADDING:
        positions -= (padding if isinstance(padding, int) else 0) + 1
    name, longest = kind.longest()
    if positions and longest > positions:
        raise UserError(f"{name}: must not exceed the model's max_position_embeddings ({positions}), got {longest}")
    if shape:
        kind.check_shape(shape)


def _positions(values: Mapping[str, object]) -> int:
    """Positions that a model has or can be stretched to, 0 where it does not say."""
    given = next((value for name in _POSITIONS if isinstance(value := values.get(name), int)), 0)
    rope = values.get("rope_parameters") or values.get("rope_scaling")
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) == "dynamic":
        factor = rope.get("factor")
        return int(given * factor) if isinstance(factor, int | float) and factor > 1 else given
    return given


def _check_stop_tokens(config: RunConfig, vocabulary: object) -> None:
    if not isinstance(vocabulary, int):
        return
    if beyond := [token for token in config.rollout.stop_token_ids if token >= vocabulary]:
        raise UserError(
            f"rollout.stop_token_ids: must be below the size of the model's vocabulary ({vocabulary}), got {beyond[0]}"
        )


def _check_tracking(config: RunConfig) -> None:
    # Looked for, not imported, which is the run's to do.
    if config.tracking.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tracking.tensorboard: needs the package tensorboard, which is not installed, got true")
