"""What vLLM counts, or can be made to count, without statistics of every token, which would cost each step."""

import queue
from collections.abc import Callable, Mapping
from typing import Any

_NOTHING: queue.Queue[Any] = queue.Queue()


def scheduler_of(llm: Any) -> Any:
    """The scheduler of an `LLM`, where it is in this process; None where it is not, or where there is no `LLM` yet."""
    core = getattr(llm.llm_engine.engine_core, "engine_core", None) if llm is not None else None
    return getattr(core, "scheduler", None)


def count_preemptions(scheduler: Any, counted: Callable[[], None]) -> None:
    """Let a scheduler tell of each sample that loses its place in the cache."""
    preempt = scheduler._preempt_request

    def told(*args: object, **options: object) -> object:
        counted()
        return preempt(*args, **options)

    scheduler._preempt_request = told


def sampled_tokens(llm: Any, samples: Mapping[str, int]) -> int:
    """Tokens so far of those of these samples that have not ended, but for those that they have brought along.

    By the names of samples within vLLM. From any thread.
    """
    if llm is None:
        return 0
    # Counted when somebody asks, not as they come.
    states = llm.llm_engine.output_processor.request_states
    found = [(states.get(name), brought) for name, brought in samples.items()]
    return sum(state.detokenizer.num_output_tokens() - brought for state, brought in found if state is not None)


def has_untold(llm: Any) -> bool:
    """Whether an engine that is paused has sampled what it has not told yet."""
    core = llm.llm_engine.engine_core
    # Of an engine core in a process of its own, these are all: it had paused when it said so.
    if not getattr(core, "outputs_queue", _NOTHING).empty():
        return True
    # In this process, with steps that overlap; what a paused scheduler adds to the queue is empty.
    batches = getattr(getattr(core, "engine_core", None), "batch_queue", None) or ()
    return any(batch.total_num_scheduled_tokens for _, batch, _ in batches)
