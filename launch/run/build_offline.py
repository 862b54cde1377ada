"""From a RunConfig to running groups and the loop of a job that learns from given data: sft, reward, dpo."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from actors.models.skeleton import write_skeleton
from actors.models.tokenizer import load_tokenizer, with_chat_template
from algorithms.batches import row_order
from algorithms.data.run_data import run_data
from launch.kinds.kind import Loop
from launch.kinds.offline import DPOKind, OfflineKind
from launch.run.checkpointer import RunCheckpointer
from launch.run.groups import built, reference_sync, start_building, start_loading
from launch.run.reserved import Placement
from launch.run.roster import Roster
from launch.run.saves import Saves, resume
from launch.screen.reporter import RunReporter

if TYPE_CHECKING:
    from algorithms.offline.reference_cache import ReferenceCache


def build_offline(kind: OfflineKind, placement: Placement, reporter: RunReporter, roster: Roster) -> Loop:
    """Start the groups of an SFT, reward-model or preference run and return its loop."""
    reporter.phase("loading libraries")
    from actors.train.frozen import ReferenceWorker

    config, algorithm = kind.config, kind.algorithm
    worker, _ = kind.policy_worker()
    directory = write_skeleton(config.model, config.directory / "model")
    reporter.phase("loading model")
    policy = roster.add("policy", worker, config.policy.timeout_s, placement)
    policy.spawn(config.model, directory, config.policy, config.run.seed)
    # Starts the reference, if there is to be one: it loads its model while this process reads the data.
    extra = kind.loop_arguments(directory, placement, roster)
    reference = roster.get("reference")
    loading = start_loading(reference, ReferenceWorker.build) if reference else []
    reporter.phase("reading data")
    # No limit of prompts: rows are prompts with responses, and data.max_length is theirs.
    tokenizer = with_chat_template(load_tokenizer(directory), config.model)
    told = partial(reporter.progress, what="rows")
    found = run_data(algorithm, config.data, tokenizer, max_prompt_tokens=0, told=told)
    for note in found.notes:
        reporter.note(note)
    kind.require_rows(found)
    # One that stays as it is, is read from its directory again.
    members = roster.members("policy", *(["reference"] if config.reference.sync_every else []))
    saves = Saves(members, found.contents)
    updates = algorithm.updates(found.drawn(config.data.weights))
    reporter.phase("loading model")
    built(policy, start_building(policy, updates), reporter)
    if reference:
        built(reference, loading, reporter)
    loop = kind.loop_class()(
        config=algorithm,
        roster=roster,
        rows=found.train,
        batches=row_order(found.sizes, config.data.weights, seed=config.run.seed, shuffle=config.data.shuffle),
        evaluation=found.held_out,
        checkpoint=RunCheckpointer(config, saves, placement.nodes, reporter),
        reporter=reporter,
        micro_batch_tokens=config.policy.micro_batch_tokens,
        total_updates=updates,
        **extra,
    )
    resume(config, saves, loop, reporter)
    return loop


def preference_arguments(kind: DPOKind, directory: str, placement: Placement, roster: Roster) -> dict[str, object]:
    """What the loop of preference losses takes beside those of every loop: who gives reference logprobs, and how."""
    from actors.train.frozen import ReferenceWorker
    from actors.train.policy import PolicyWorker

    config, reference, method, sync = kind.config, None, None, None
    if config.reference_group:
        group = roster.add("reference", ReferenceWorker, config.reference.timeout_s, placement)
        plain = config.model.model_copy(update={"lora": None, "freeze": []})
        group.spawn(plain, directory, config.reference, config.run.seed)
        reference, method = "reference", ReferenceWorker.outputs
        sync = reference_sync(config, roster) if config.reference.sync_every else None
    elif config.reference_needed:
        reference, method = "policy", PolicyWorker.reference_outputs
    return {
        "reference": reference,
        "read_reference": method,
        "reference_tokens": (config.reference if config.reference_group else config.policy).micro_batch_tokens,
        "cache": _reference_cache(kind, directory),
        "max_length": config.data.max_length,
        "sync_reference": sync,
    }


def _reference_cache(kind: DPOKind, directory: str) -> "ReferenceCache | None":
    """Where precomputed reference logprobs are kept, shared by the runs of an output directory."""
    from algorithms.offline.reference_cache import ReferenceCache, model_content

    config = kind.config
    if kind.algorithm.reference == "live":  # live: computed anew in every update
        return None
    init = config.model.init.model_dump_json() if config.model.init else ""
    content = model_content(
        # A new model is what its numbers and its seed make of it: its directory holds no weights.
        Path(directory) if not config.model.init else Path("init"),
        f"{config.model.dtype} {config.model.quantize} {init}",
    )
    return ReferenceCache(Path(config.run.output) / "reference-logprobs", content)
