"""From a RunConfig to a running group and the loop of a job that learns to compare texts: embedding, reranker."""

from actors.models.hub_cache import located
from actors.models.skeleton import write_skeleton
from actors.train.encoder import EncoderWorker
from algorithms.data.row_contents import Contents
from algorithms.encoder.batches import TaskBatches
from algorithms.encoder.data import training_tasks
from algorithms.encoder.held_out import held_out
from launch.kinds.encoder import EncoderKind
from launch.kinds.kind import Loop
from launch.run.checkpointer import RunCheckpointer
from launch.run.groups import built, start_building
from launch.run.reserved import Placement
from launch.run.roster import Roster
from launch.run.saves import Saves, resume
from launch.screen.reporter import RunReporter


def build_encoder(kind: EncoderKind, placement: Placement, reporter: RunReporter, roster: Roster) -> Loop:
    """Start the group of an embedding or reranker run and return its loop."""
    config, algorithm = kind.config, kind.algorithm
    directory = write_skeleton(config.model, config.directory / "model")
    reporter.phase("loading model")
    policy = roster.add("policy", EncoderWorker, config.policy.timeout_s, placement)
    # Each once: several settings may name the same model.
    guides = sorted({located(path, field=f"algorithm.{name}") for name, path in algorithm.guides.items()})
    policy.spawn(config.model, directory, config.policy, config.run.seed, kind.head(), guides)
    reporter.phase("reading data")
    contents = Contents()
    tasks = training_tasks(algorithm, config.data, contents=contents)
    updates = algorithm.updates(sum(len(task.rows) for task in tasks))
    building = start_building(policy, updates)
    # While the ranks load the model.
    evaluation = held_out(config.data, reranker=kind.reranks, contents=contents)
    reporter.phase("loading model")
    built(policy, building, reporter)
    if not kind.reranks:
        # A check knows the size only of a model without further modules behind its pooling.
        kind.check_size(policy.call(EncoderWorker.dimension)[0])
    saves = Saves(roster.members("policy"), contents)
    loop = kind.loop_class()(
        config=algorithm,
        roster=roster,
        rows=[],  # those of all tasks are in `batches`, which draws from one task at a time
        batches=TaskBatches(tasks, seed=config.run.seed, shuffle=config.data.shuffle),
        evaluation=evaluation,
        checkpoint=RunCheckpointer(config, saves, placement.nodes, reporter),
        reporter=reporter,
        micro_batch_tokens=config.policy.micro_batch_tokens,
        total_updates=updates,
    )
    resume(config, saves, loop, reporter)
    return loop
