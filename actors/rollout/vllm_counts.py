"""What vLLM counts, or can be made to count, without statistics of every token, which would cost each step."""

from collections.abc import Callable, Iterable
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


def sampled_tokens(llm: Any, samples: Iterable[str]) -> int:
    """Tokens so far of those of these samples, by their names within vLLM, that have not ended. From any thread."""
    if llm is None:
        return 0
    # Counted when somebody asks, not as they come.
    states = [llm.llm_engine.output_processor.request_states.get(name) for name in samples]
    return sum(state.detokenizer.num_output_tokens() for state in states if state is not None)
