"""From a RunConfig to running groups and the loop of a job that learns from given data: sft, reward, dpo."""

from pathlib import Path
from typing import Any

from actors.models.skeleton import write_skeleton
from actors.models.tokenizer import load_tokenizer
from algorithms.batches import row_order
from algorithms.config_offline import DPOConfig, OfflineConfig, RewardModelConfig
from algorithms.data.reading import run_data
from algorithms.offline.comparable import require_comparable
from launch.config import RunConfig
from launch.run.groups import Groups, built, reference_sync, start_building, start_loading
from launch.run.reserve import Placement
from launch.run.saves import RunCheckpointer, Saves, resume
from launch.screen.reporter import RunReporter


def build_offline(config: RunConfig, placement: Placement, reporter: RunReporter, groups: Groups) -> Any:
    """Start the groups of an SFT, reward-model or preference run and return its loop."""
    reporter.phase("loading libraries")
    from actors.train.critic import RewardModelWorker
    from actors.train.policy import PolicyWorker
    from actors.train.reference import ReferenceWorker

    algorithm = config.algorithm
    assert isinstance(algorithm, OfflineConfig)
    worker = RewardModelWorker if isinstance(algorithm, RewardModelConfig) else PolicyWorker
    directory = write_skeleton(config.model, config.directory / "model")
    reporter.phase("loading model")
    policy = groups.add("policy", worker, config.policy.timeout_s, placement)
    policy.spawn(config.model, directory, config.policy, config.run.seed)
    extra = _reference(config, directory, placement, groups, policy)
    reference = extra["reference"] if config.reference_group else None
    loading = start_loading(reference, ReferenceWorker.build) if reference else []
    saves = Saves({"policy": policy} | ({"reference": extra["reference"]} if config.reference.sync_every else {}))
    reporter.phase("reading data")
    found = run_data(algorithm, config.data, load_tokenizer(directory), max_prompt_tokens=0)
    for note in found.notes:
        reporter.note(note)
    if isinstance(algorithm, DPOConfig) and algorithm.unpaired:
        require_comparable(found, algorithm, config.data, seed=config.run.seed)
    updates = algorithm.updates(found.drawn(config.data.weights))
    reporter.phase("loading model")
    built(policy, start_building(policy, updates), reporter)
    if reference:
        built(reference, loading, reporter)
    loop = _loop_class(config)(
        config=algorithm,
        policy=policy,
        rows=found.train,
        batches=row_order(found.sizes, config.data.weights, seed=config.run.seed, shuffle=config.data.shuffle),
        evaluation=found.held_out,
        checkpoint=RunCheckpointer(config, saves, placement.nodes),
        reporter=reporter,
        micro_batch_tokens=config.policy.micro_batch_tokens,
        total_updates=updates,
        **extra,
    )
    resume(config, saves, loop, reporter)
    return loop


def _loop_class(config: RunConfig) -> Any:
    from algorithms.offline.dpo import DPO
    from algorithms.offline.reward_model import RewardModel
    from algorithms.offline.sft import SFT

    return {"sft": SFT, "reward": RewardModel, "dpo": DPO}[config.algorithm.name]


def _reference(config: RunConfig, directory: str, placement: Placement, groups: Groups, policy: Any) -> dict[str, Any]:
    """For preference losses: who gives reference logprobs, and how."""
    if not isinstance(config.algorithm, DPOConfig):
        return {}
    from actors.train.policy import PolicyWorker
    from actors.train.reference import ReferenceWorker

    reference, method, sync = None, None, None
    if config.reference_group:
        reference = groups.add("reference", ReferenceWorker, config.reference.timeout_s, placement)
        plain = config.model.model_copy(update={"lora": None, "freeze": []})
        reference.spawn(plain, directory, config.reference, config.run.seed)
        method = ReferenceWorker.outputs
        sync = reference_sync(config, policy, reference) if config.reference.sync_every else None
    elif config.reference_needed:
        reference, method = policy, PolicyWorker.reference_outputs
    return {
        "reference": reference,
        "read_reference": method,
        "reference_tokens": (config.reference if config.reference_group else config.policy).micro_batch_tokens,
        "cache": _reference_cache(config, directory),
        "max_length": config.data.max_length,
        "sync_reference": sync,
    }


def _reference_cache(config: RunConfig, directory: str) -> Any:
    """Where precomputed reference logprobs are kept, shared by the runs of an output directory."""
    from algorithms.offline.reference_cache import ReferenceCache, model_content

    assert isinstance(config.algorithm, DPOConfig)
    if config.algorithm.reference == "live":
        return None
    init = config.model.init.model_dump_json() if config.model.init else ""
    content = model_content(
        Path(directory) if not config.model.init else Path("init"),
        f"{config.model.dtype} {config.model.quantize} {init}",
    )
    return ReferenceCache(Path(config.run.output) / "reference-logprobs", content)
