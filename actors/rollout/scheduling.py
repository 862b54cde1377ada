"""What vLLM's scheduler knows: how much of the cache is in use, and how often a sample has lost its place in it."""

from typing import Any


class Scheduling:
    """Of an engine, where its scheduler is in this process; nothing is known before it is built, or where it is not."""

    preemptions: int | None = None

    def __init__(self, llm: Any = None) -> None:
        """Counts preemptions from now on."""
        core = getattr(llm.llm_engine.engine_core, "engine_core", None) if llm is not None else None
        self._scheduler = getattr(core, "scheduler", None)
        if self._scheduler is None:
            return
        # vLLM counts them only together with statistics of every token, which would cost each step.
        self.preemptions, preempt = 0, self._scheduler._preempt_request

        def counted(*args: object, **options: object) -> object:
            self.preemptions = (self.preemptions or 0) + 1
            return preempt(*args, **options)

        self._scheduler._preempt_request = counted

    @property
    def cache_used(self) -> float | None:
        """Share of the key-value cache, in [0, 1]."""
        return float(self._scheduler.kv_cache_manager.usage) if self._scheduler else None
