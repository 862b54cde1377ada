"""The vLLM engine of one rollout worker, on a thread of its own: requests and control calls go in between its steps.

    submit --> [ calls ] --> add to vLLM, step, step, ... --> [ segments ] --> poll
                   ^---- pause, weights, adapters, canary

The engine runs in this very process on CPU (it starts and generates fastest so) and where weights come by ipc, else on
GPU in vLLM's own processes; all are driven by the same thread through vLLM's public `LLM` and `LLMEngine`.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

import numpy as np
from vllm import LLM, RequestOutput, SamplingParams
from vllm.inputs import TokensInput, tokens_input
from vllm.lora.request import LoRARequest
from vllm.v1.engine import FinishReason

from actors.config_rollout import OnUpdate
from actors.pulse import Pulse, Work
from actors.rollout.adapter_files import adapter_directory
from actors.rollout.answers import fail, fulfil
from actors.rollout.begun import NOTHING, ended_before, refused, stops_at
from actors.rollout.continuing import WholeAccount
from actors.rollout.occupancy import Occupancy
from actors.rollout.samples import RunningSample, TakenRequest
from actors.rollout.types import EngineStats, Request, Sampling, Segment
from actors.rollout.vllm_counts import count_preemptions, has_untold, sampled_tokens, scheduler_of
from actors.rollout.vllm_options import prompt_logprob_params
from actors.rollout.worker import Adapter
from actors.weights.binding import ADAPTER_ID

T = TypeVar("T")


class EngineThread:
    """Owns the vLLM engine: everything that touches it runs on this thread, between steps. See `Engine`."""

    def __init__(
        self,
        build: Callable[[], LLM],
        params: Callable[[Sampling], SamplingParams],
        slots: int,
        on_update: OnUpdate = "recompute",
    ) -> None:
        """`params` are vLLM's for one response; `slots`: responses that vLLM works on at one time; `on_update`: what
        becomes of them when new weights come."""
        self._build = build
        self._params = params
        self._slots = slots
        self._on_update: OnUpdate = on_update
        self._calls: queue.Queue[tuple[Callable[[], object], Future[Any]]] = queue.Queue()
        self._running: dict[str, RunningSample] = {}
        self._canaries: dict[str, Future[RequestOutput]] = {}
        self._segments: list[Segment] = []
        self._given: list[Segment] = []
        """By the last poll: whoever has asked for them may not have got them yet."""
        self._news = threading.Condition()
        """Of `_segments` and `_lost`."""
        self._lost: Exception | None = None
        self._salt = ""
        self._names = count()
        self._paused = False
        self._adapter: LoRARequest | None = None
        self._preemptions: int | None = None
        self._generated = 0
        self._discarded = 0
        self._sampled = 0
        self._occupancy = Occupancy(slots)
        self._round: float | None = None
        """When the thread last came round, by time.monotonic; None while it waits for something to do."""
        self.version = -1
        """Of the weights in service; -1 before the first."""
        self._work = Work()
        self.ready: Future[None] = Future()
        # A daemon: its loop has no end, and must not keep the process alive.
        threading.Thread(target=self._run, name="vllm-engine", daemon=True).start()

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run a function on the engine thread, between two steps."""
        future: Future[T] = Future()
        self._calls.put((function, future))
        return future

    def submit(self, requests: list[Request], seed: int | None) -> None:
        """Take requests; one that vLLM refuses ends as refused. See `Engine`."""
        self.call(lambda: self._guarded(lambda: self._take(requests, seed)))

    def abort(self, requests: list[int]) -> None:
        """End these requests; see `Engine`."""
        self.call(lambda: self._guarded(lambda: self._abort(set(requests))))

    def abort_older(self, version: int) -> None:
        """End the requests of which older weights have sampled a token; see `Engine`."""
        self.call(lambda: self._guarded(lambda: self._abort(self._older(version))))

    def progress(self, requests: list[int]) -> "Future[list[Segment]]":
        """What their samples have so far; see `Engine`."""
        return self.call(lambda: self._progress(set(requests)))

    def poll(self, wait_s: float) -> list[Segment]:
        """Segments that have ended; see `Engine`."""
        with self._news:
            self._news.wait_for(lambda: self._segments or self._lost, timeout=wait_s)
            if self._lost and not self._segments:
                raise self._lost
            self._given, self._segments = self._segments, []
            return self._given

    def pulse(self) -> Pulse:
        """What the engine thread does now; called on any other, as an engine that hangs shall answer, too."""
        if self._lost is not None:
            raise self._lost
        return self._work.pulse()

    def stats(self) -> EngineStats:
        """How the engine is; see `Engine`."""
        # Read once, as the engine thread sets them meanwhile.
        samples, seen = len(self._running), self._round
        llm = getattr(self, "llm", None)  # none before it is built
        scheduler = scheduler_of(llm)
        inside = {sample.inside: sample.brought for sample in list(self._running.values())}
        # A sample that ends just now is in neither number: what was told is not taken back.
        self._sampled = max(self._sampled, self._generated + self._discarded + sampled_tokens(llm, inside))
        return EngineStats(
            version=self.version,
            running=min(samples, self._slots),
            waiting=max(0, samples - self._slots),
            slots=self._slots,
            cache_used=float(scheduler.kv_cache_manager.usage) if scheduler else None,
            preemptions=self._preemptions,
            generated_tokens=self._generated,
            discarded_tokens=self._discarded,
            sampled_tokens=self._sampled,
            **self._occupancy.seconds(),
            silent_s=0.0 if seen is None else time.monotonic() - seen,
            lost=f"{type(self._lost).__name__}: {self._lost}" if self._lost else "",
        )

    def logprobs(self, token_ids: list[int]) -> np.ndarray:
        """Logprobs of every token but the first at temperature 1, [L-1]. Runs on the engine thread, which steps on."""
        output: Future[RequestOutput] = Future()
        self._canaries[self._add(self._prompt(token_ids), prompt_logprob_params())[0]] = output
        # It ends also when the engine is lost: that answers every canary.
        while not output.done():
            self._step()
        steps = output.result().prompt_logprobs
        assert steps is not None
        pairs = zip(steps[1:], token_ids[1:], strict=True)
        return np.array([step[token].logprob for step, token in pairs], dtype=np.float32)  # type: ignore[index]

    def pause(self) -> None:
        """Stop stepping, keeping all running requests. Runs on the engine thread."""
        # Level 0: scheduling alone stops, weights and cache stay where they are.
        self.llm.sleep(level=0, mode="keep")
        self._paused = True
        self._take_in()

    def resume(self) -> None:
        """Go on with the weights there are; what becomes of running requests is as `on_update` says.

        Runs on the engine thread. An engine that cannot do it is lost: it would stand still, or use what is old.
        """
        try:
            # Before scheduling goes on: no step may read keys and values of old weights that are to be forgotten.
            if self._on_update == "recompute":
                self.llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
            # Half of new weights samples nothing: what runs is about to be aborted, with what it has.
            elif self.version >= 0:
                self._begin_anew(everything=self._on_update == "restart")
            self.llm.wake_up(tags=["scheduling"])
        except Exception as error:
            self._lose(error)
            raise
        self._paused = False

    @property
    def has_adapter(self) -> bool:
        """Whether requests use one."""
        return self._adapter is not None

    def forget_adapter(self) -> None:
        """Let requests use no adapter, until one is loaded again; those that use it end as they are."""
        if self.has_adapter:
            self._abort({sample.taken.request.id for sample in self._running.values()})
        self._adapter = None

    def load_adapter(self, adapter: Adapter) -> list[str]:
        """Let all requests from now on use this adapter in place of the one before. Runs on the engine thread.

        Returns, per worker process, the digest of its tensors that a layer computes with.
        """
        # vLLM loads adapters from files only; they are needed no longer than that.
        with adapter_directory(adapter) as directory:
            self.llm.llm_engine.add_lora(LoRARequest("policy", ADAPTER_ID, directory, load_inplace=True))
            # A request of its own: `load_inplace` would load the files again with every batch.
            self._adapter = LoRARequest("policy", ADAPTER_ID, directory)
            return self.llm.collective_rpc("bind_digest", args=(directory,))

    def _take(self, requests: list[Request], seed: int | None) -> None:
        """Queue the samples of requests, in order; with a seed, the sampler starts anew from it."""
        if seed is not None:
            self.llm.collective_rpc("reseed", args=(seed,))
            # A cached prefix must not outlive its weights, nor decide what is computed together after a resume.
            self._salt = str(seed)
        for request in requests:
            stop = stops_at(request.sampling, NOTHING, self.version)
            taken = TakenRequest(request, self._params(replace(request.sampling, max_tokens=stop)), stop)
            prompt = self._prompt(request.token_ids)
            for index in range(request.sampling.samples):
                self._start(taken, index, prompt)

    def _start(self, taken: TakenRequest, index: int, prompt: TokensInput, *, anew: bool = False) -> None:
        """Queue a sample; one that was begun goes on, or with `anew` starts from its prompt."""
        try:
            if taken.request.media:
                raise ValueError("an engine that takes tokens only cannot take media")
            if taken.request.begun and not anew:
                self._go_on(taken, index)
                return
            name, inside = self._add(prompt, taken.params)
        except Exception as error:  # A refused request is its caller's alone.
            self._tell([refused(taken.request.id, index, error)])
        else:
            self._running[name] = RunningSample(taken, index, inside, taken.stops_at)

    def _go_on(self, taken: TakenRequest, index: int) -> None:
        """Queue a sample that was begun; tell of one that has nothing left to do. Raises why it cannot go on."""
        request = taken.request
        if ended := ended_before(request, index, self.version):
            self._tell([taken.ended(ended)], brought=len(ended.token_ids))
            return
        begun, sampling = request.begun[index], request.sampling
        brought, stop = len(begun.token_ids), stops_at(sampling, begun, self.version)
        params = self._params(replace(sampling, max_tokens=stop - brought))
        processor = self.llm.llm_engine.output_processor
        account = WholeAccount.of(processor.tokenizer, request.token_ids, begun, params)
        name, inside = self._add(self._prompt(request.token_ids + begun.token_ids.tolist()), params)
        account.replace(processor.request_states[inside])
        self._running[name] = RunningSample(taken, index, inside, stop, brought)

    def _begin_anew(self, *, everything: bool) -> None:
        """Let samples start again, in the same order: those without a token of here, or all, from their prompts."""
        engine = self.llm.llm_engine
        for name, sample in list(self._running.items()):
            tokens = self._state(sample).detokenizer.num_output_tokens() - sample.brought
            # One without a token, too: its prompt's salt would find keys and values of old weights.
            if everything or not tokens:
                del self._running[name]
                engine.abort_request([sample.inside], internal=True)
                self._discarded += tokens
                prompt = self._prompt(sample.taken.request.token_ids)
                self._start(sample.taken, sample.index, prompt, anew=everything)

    def _prompt(self, token_ids: list[int]) -> TokensInput:
        """A prompt as vLLM has it once it is rendered: raw tokens, it would render anew for every sample."""
        # Salted, so that no keys and values are found that other weights, or another seed, have left.
        return tokens_input(token_ids, cache_salt=f"{self._salt} {self.version}")

    def _add(self, prompt: TokensInput, params: SamplingParams) -> tuple[str, str]:
        """Give vLLM a request; returns the name that its outputs bear, and the one that vLLM has for it inside."""
        name = str(next(self._names))
        return name, self.llm.llm_engine.add_request(name, prompt, params, lora_request=self._adapter)

    def _abort(self, requests: set[int]) -> None:
        ended, brought = [], 0
        for name, sample in list(self._running.items()):
            if sample.taken.request.id in requests:
                # vLLM drops what an aborted request has.
                ended.append(sample.end(self._so_far(sample)))
                brought += sample.brought
                self.llm.llm_engine.abort_request([sample.inside], internal=True)
                del self._running[name]
        self._tell(ended, brought)

    def _progress(self, requests: set[int]) -> list[Segment]:
        samples = [each for each in self._running.values() if each.taken.request.id in requests]
        running = [sample.so_far(self._so_far(sample)) for sample in samples]
        with self._news:
            return running + [each for each in (*self._given, *self._segments) if each.request in requests]

    def _so_far(self, sample: RunningSample) -> Any:
        """What vLLM would tell of a response if it ended now: its own account of it, which stays as it is."""
        return self._state(sample).make_request_output([], None, FinishReason.ABORT, None).outputs[0]

    def _older(self, version: int) -> set[int]:
        """Requests of which weights before this version have sampled a token."""
        samples = self._running.values()
        return {each.taken.request.id for each in samples if each.oldest(self._state(each)) < version}

    def _state(self, sample: RunningSample) -> Any:
        """vLLM's account of a request."""
        return self.llm.llm_engine.output_processor.request_states[sample.inside]

    def _run(self) -> None:
        try:
            with self._work.on("start"):
                self.llm = self._build()
                if scheduler := scheduler_of(self.llm):
                    self._preemptions = 0
                    count_preemptions(scheduler, self._preempted)
        except Exception as error:  # Reported to whoever waits for the engine, in its own process.
            self._lose(error)
            self.ready.set_exception(error)
        else:
            self.ready.set_result(None)
        while True:
            busy = self._busy()
            if not busy:
                self._occupancy.note(len(self._running), steps=False)
            self._round = time.monotonic() if busy else None
            self._run_calls(wait=not busy)
            if self._busy():
                self._step()

    def _busy(self) -> bool:
        try:
            return self._lost is None and not self._paused and self.llm.llm_engine.has_unfinished_requests()
        except Exception as error:  # As in a step.
            self._lose(error)
            return False

    def _run_calls(self, wait: bool) -> None:
        """Run queued calls; with `wait`, sleep until there is one. A lost engine answers each with what ended it."""
        while wait or not self._calls.empty():
            function, future = self._calls.get()
            wait = False
            self._round = time.monotonic()
            self._occupancy.note(len(self._running), steps=False)
            if self._lost is not None:
                fail(future, self._lost)
                continue
            try:
                with self._work.on("call", goes_on=True):
                    answer = function()
            except Exception as error:  # Belongs to the caller, who holds the future.
                fail(future, error)
            else:
                fulfil(future, answer)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do what nobody waits for: where it fails, the engine cannot be relied on any more."""
        # To take and to end requests is part of working on them.
        self._occupancy.note(len(self._running), steps=not self._paused)
        try:
            work()
        except Exception as error:
            self._lose(error)

    def _preempted(self) -> None:
        self._preemptions = (self._preemptions or 0) + 1

    def _step(self) -> None:
        self._occupancy.note(len(self._running), steps=True)
        try:
            ended, brought = [], 0
            with self._work.on("step", goes_on=True):
                outputs: list[Any] = self.llm.llm_engine.step()
            self._work.progressed()
            for output in (each for each in outputs if each.finished):
                if canary := self._canaries.pop(output.request_id, None):
                    fulfil(canary, output)
                else:
                    sample = self._running.pop(output.request_id)
                    ended.append(sample.end(output.outputs[0]))
                    brought += sample.brought
            self._tell(ended, brought)
        except Exception as error:
            self._lose(error)

    def _tell(self, ended: list[Segment], brought: int = 0) -> None:
        """Samples have ended; `brought`: tokens of them that were not sampled here."""
        if ended:
            with self._news:
                self._segments += ended
                self._generated += sum(len(segment.token_ids) for segment in ended) - brought
                self._news.notify_all()

    def _lose(self, error: Exception) -> None:
        """The engine is lost: tell everybody who waits for it, now and from now on."""
        with self._news:
            self._lost = error
            self._news.notify_all()
        for canary in self._canaries.values():
            fail(canary, error)
        self._canaries.clear()
        self._running.clear()

    def _take_in(self) -> None:
        """Take in what old weights have sampled and vLLM has not told yet: later it would pass for the new ones'."""
        while has_untold(self.llm) and self._lost is None:
            self._step()
