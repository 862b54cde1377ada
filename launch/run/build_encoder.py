"""From a RunConfig to a running group and the loop of a job that learns to compare texts: embedding, reranker."""

from typing import Any

from actors.config import EncoderHead
from actors.models.hub_cache import located
from actors.models.skeleton import write_skeleton
from actors.train.encoder import EncoderWorker
from algorithms.config_encoder import EmbeddingConfig, EncoderConfig, Prompts
from algorithms.encoder.batches import TaskBatches
from algorithms.encoder.data import training_tasks
from algorithms.encoder.held_out import held_out
from launch.config import RunConfig
from launch.models.files import require_size
from launch.run.groups import Groups, built, start_building
from launch.run.reserve import Placement
from launch.run.saves import RunCheckpointer, Saves, resume
from launch.screen.reporter import RunReporter


def build_encoder(config: RunConfig, placement: Placement, reporter: RunReporter, groups: Groups) -> Any:
    """Start the group of an embedding or reranker run and return its loop."""
    from algorithms.encoder.embedding import Embedding
    from algorithms.encoder.reranker import Reranker

    algorithm: Any = config.algorithm
    reranker = not isinstance(algorithm, EmbeddingConfig)
    directory = write_skeleton(config.model, config.directory / "model")
    reporter.phase("loading model")
    policy = groups.add("policy", EncoderWorker, config.policy.timeout_s, placement)
    guides = sorted({located(path, field=f"algorithm.{name}") for name, path in algorithm.guides.items()})
    policy.spawn(config.model, directory, config.policy, config.run.seed, head_of(config), guides)
    reporter.phase("reading data")
    tasks = training_tasks(algorithm, config.data)
    updates = algorithm.updates(sum(len(task.rows) for task in tasks))
    building = start_building(policy, updates)
    evaluation = held_out(config.data, reranker=reranker)
    reporter.phase("loading model")
    built(policy, building, reporter)
    if isinstance(algorithm, EmbeddingConfig):
        require_size(algorithm, policy.call(EncoderWorker.dimension)[0])
    make: Any = Reranker if reranker else Embedding
    saves = Saves({"policy": policy})
    loop = make(
        config=algorithm,
        policy=policy,
        rows=[],
        batches=TaskBatches(tasks, seed=config.run.seed, shuffle=config.data.shuffle),
        evaluation=evaluation,
        checkpoint=RunCheckpointer(config, saves, placement.nodes),
        reporter=reporter,
        micro_batch_tokens=config.policy.micro_batch_tokens,
        total_updates=updates,
    )
    resume(config, saves, loop, reporter)
    return loop


def head_of(config: RunConfig) -> EncoderHead:
    """What the workers must know of the algorithm to make its model."""
    algorithm = config.algorithm
    assert isinstance(algorithm, EncoderConfig)
    if isinstance(algorithm, EmbeddingConfig):
        return EncoderHead(
            kind="embedding",
            pooling=algorithm.pooling,
            normalize=algorithm.normalize,
            max_tokens=algorithm.max_tokens,
            prompts=_kept_prompts(algorithm),
        )
    prompt = getattr(algorithm, "prompt", None)
    kept = {} if prompt is None else {"query": prompt}
    return EncoderHead(kind="reranker", max_tokens=algorithm.max_tokens, prompts=kept)


def _kept_prompts(algorithm: EmbeddingConfig) -> dict[str, str]:
    """Instructions that the model keeps: those that all tasks share as its defaults, and each task's under its name.

    Only tasks that read queries and passages have a say in the defaults: the texts of a pair are no passages.
    """
    tasks = algorithm.by_name
    kept = {f"{name}_{kind}": text for name, task in tasks.items() if name for kind, text in _given(task.prompts)}
    deciding = [task for task in tasks.values() if task.rows == "ranking"] or list(tasks.values())
    for kind in ("query", "document"):
        texts = {dict(_given(task.prompts)).get(kind) for task in deciding}
        if len(texts) == 1 and (text := texts.pop()) is not None:
            kept[kind] = text
    return kept


def _given(prompts: Prompts) -> list[tuple[str, str]]:
    """(name in sentence-transformers, instruction) of those that are given."""
    named = (("query", prompts.query), ("document", prompts.passage))
    return [(name, text) for name, text in named if text is not None]
