"""What vLLM counts, or can be made to count, without statistics of every token, which would cost each step."""

from collections.abc import Callable, Mapping
from typing import Any


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
