"""What an EngineThread asks of vLLM, and answers: a program, as vLLM is imported, around an engine that is not there.

Its output is JSON, by the name of each scene below; `tests/test_engine_thread.py` says what is expected.
"""

import json
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors.quick_import import quick_vllm, without_science

without_science()
with quick_vllm(compiled=False):
    from actors.config import LoraConfig
    from actors.config_rollout import OnUpdate
    from actors.rollout import vllm_options
    from actors.rollout.engine import EngineThread
    from actors.rollout.occupancy import Occupancy
    from actors.rollout.types import Media, Request, Sampling, Segment
    from actors.rollout.worker import Adapter

REFUSED = 666
"""A prompt of this token is too long."""
BROKEN = 667
"""The engine does not survive a prompt of this one."""
DEADLINE_S = 20
ONE, TWO = (Sampling(samples=samples, temperature=1.0, max_tokens=9) for samples in (1, 2))
Scene = Callable[[], Any]


class FakeLLM:
    """Takes three steps for a request, a token in each, and notes what is asked of it; `gate` lets it step."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.left: dict[str, int] = {}
        self.prompts: dict[str, list[int]] = {}
        self.steps = 0
        self.gate = threading.Event()
        self.gate.set()
        self.llm_engine = self.output_processor = self
        self.engine_core = SimpleNamespace()
        self.request_states = self
        self.files: list[str] = []

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)

    def add_request(self, request_id: str, prompt: Any, params: Any, *, lora_request: Any) -> str:
        tokens = prompt["prompt_token_ids"]
        if REFUSED in tokens:
            raise ValueError("the prompt is too long")
        self.asked.append(
            ["add", request_id, tokens, prompt["cache_salt"], _shown(params), _shown_adapter(lora_request)]
        )
        self.left[request_id], self.prompts[request_id] = 3, tokens
        return f"{request_id} inside"

    def __getitem__(self, inside: str) -> Any:
        """The state of a request, by the name that it has inside."""
        name = inside.removesuffix(" inside")
        tokens = 3 - self.left[name]
        return SimpleNamespace(
            make_request_output=lambda *_: SimpleNamespace(outputs=[self._completion(name, "abort")]),
            detokenizer=SimpleNamespace(num_output_tokens=lambda: tokens),
            weight_version_starts=[("5", 0)] if tokens else [],
        )

    def get(self, inside: str) -> Any:
        """The state of a request that has not ended."""
        name = inside.removesuffix(" inside")
        if name not in self.left:
            return None
        sampled = 3 - self.left[name]
        return SimpleNamespace(detokenizer=SimpleNamespace(num_output_tokens=lambda: sampled))

    def abort_request(self, request_ids: list[str], internal: bool) -> None:
        assert internal, "an outside name would be looked up among those that vLLM has made longer"
        self.asked.append(["abort", *request_ids])
        for inside in request_ids:
            del self.left[inside.removesuffix(" inside")]

    def step(self) -> list[Any]:
        self.gate.wait(DEADLINE_S)
        if any(BROKEN in self.prompts[request] for request in self.left):
            raise RuntimeError("a kernel failed")
        self.steps += 1
        found = []
        for request in list(self.left):
            self.left[request] -= 1
            done = self.left[request] == 0
            tokens = self.prompts[request]
            logprobs = [None, *({token: SimpleNamespace(logprob=-0.5 * token), 99: 0} for token in tokens[1:])]
            outputs = [self._completion(request, "stop")]
            found.append(SimpleNamespace(request_id=request, finished=done, outputs=outputs, prompt_logprobs=logprobs))
            if done:
                del self.left[request]
        return found

    def _completion(self, request: str, reason: str) -> Any:
        tokens = list(range(3 - self.left[request]))
        return SimpleNamespace(
            token_ids=tuple(tokens),
            logprobs=SimpleNamespace(token_ids=tokens, logprobs=[-0.25 * token for token in tokens]),
            weight_versions=[SimpleNamespace(version="5", start=0, end=len(tokens))],
            finish_reason=reason,
            stop_reason=None,
            text=f"after {self.steps} steps",
        )

    def collective_rpc(self, method: str, *, args: Any = ()) -> Any:
        self.asked.append(["rpc", method, *args] if method == "reseed" else ["rpc", method])
        return ["of q_proj"]

    def add_lora(self, request: Any) -> None:
        directory = Path(request.lora_path)
        self.asked.append(["add_lora", _shown_adapter(request), {f.name: f.read_text() for f in directory.iterdir()}])
        self.files.append(str(directory))

    def sleep(self, **options: Any) -> None:
        self.asked.append(["sleep", options])

    def wake_up(self, **options: Any) -> None:
        self.asked.append(["wake_up", options])

    def reset_prefix_cache(self, **options: Any) -> None:
        self.asked.append(["reset_prefix_cache", options])


def _shown(params: Any) -> Any:
    if isinstance(params, str):
        return params
    names = ("temperature", "max_tokens", "prompt_logprobs", "detokenize", "logprobs")
    return {name: getattr(params, name) for name in names}


def _shown_adapter(request: Any) -> Any:
    return request and {"name": request.lora_name, "number": request.lora_int_id, "again": request.load_inplace}


def engine(on_update: OnUpdate = "recompute", slots: int = 2) -> tuple[Any, FakeLLM]:
    """An engine that is ready."""
    llm: Any = FakeLLM()
    thread = EngineThread(lambda: llm, lambda sampling: "params", slots, on_update)  # type: ignore[arg-type, return-value]
    thread.ready.result(DEADLINE_S)
    thread.version = 5
    return thread, llm


def ask(thread: Any, prompts: dict[int, list[int]], seed: int | None = None, sampling: Any = ONE, **more: Any) -> None:
    """Submit requests, by id."""
    requests = [Request(id=each, token_ids=tokens, sampling=sampling, **more) for each, tokens in prompts.items()]
    thread.submit(requests, seed)


def segments(thread: Any, count: int) -> list[Segment]:
    """So many, in the order in which they end."""
    found: list[Segment] = []
    until = time.monotonic() + DEADLINE_S
    while len(found) < count and time.monotonic() < until:
        found += thread.poll(1.0)
    assert len(found) == count, found
    return found


def texts(thread: Any, count: int) -> list[str]:
    return [segment.text for segment in segments(thread, count)]


def failing(function: Callable[[], Any]) -> str:
    """The error's text."""
    try:
        return f"no error but {function()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def told(future: "Future[Any]") -> Any:
    """The result, or the error's text."""
    try:
        return future.result(DEADLINE_S)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def call(thread: Any, function: Callable[[], Any]) -> Any:
    return told(thread.call(function))


def seeded() -> Any:
    """Three prompts with a seed, one without, and one with another."""
    thread, llm = engine()
    for prompts, seed in (({3: [1, 2], 1: [3], 2: [4]}, 11), ({5: [1, 2]}, None), ({6: [1, 2]}, 12)):
        ask(thread, prompts, seed)
        segments(thread, len(prompts))
    return llm.asked


def finished() -> Any:
    """A segment comes with each sample's end, whichever request it is of; nothing comes before, and none twice."""
    thread, llm = engine()
    llm.gate.clear()
    ask(thread, {1: [1], 2: [2]}, sampling=TWO)
    early = thread.poll(0.05)
    llm.gate.set()
    found = segments(thread, 4)
    first = found[0]
    return {
        "early": early,
        "places": [[segment.request, segment.index] for segment in found],
        "tokens": first.token_ids,
        "logprobs": [first.logprobs.tolist(), str(first.logprobs.dtype)],
        "versions": [[span.version, span.start, span.end] for span in first.versions],
        "finish": [first.finish, first.ended_by, first.error, first.text],
        "again": thread.poll(0.05),
        "left": len(thread._running),
    }


def refused() -> Any:
    """Of three prompts one is too long, and one has an image: both are told, and the others go on."""
    thread, _ = engine()
    ask(thread, {1: [1], 2: [REFUSED], 3: [3]}, 4)
    ask(thread, {4: [4]}, media=(Media(kind="image", data=b""),))
    found = {segment.request: [segment.finish, segment.error, segment.token_ids] for segment in segments(thread, 4)}
    return [found[each] for each in sorted(found)]


def aborted() -> Any:
    """Two of three requests, one of which has ended: the other's samples come with what they have, and no more."""
    thread, llm = engine()
    ask(thread, {1: [1]})
    ended = texts(thread, 1)
    llm.gate.clear()
    ask(thread, {2: [2]}, sampling=TWO)
    ask(thread, {3: [3]})
    call(thread, lambda: setattr(llm, "step", _one_step(llm)))
    thread.abort([1, 2, 99])
    found = segments(thread, 3)
    return {
        "ended": ended,
        "cut": [[each.request, each.index, each.finish, each.token_ids] for each in found],
        "asked": [each for each in llm.asked if each[0] == "abort"],
    }


def updated() -> Any:
    """New weights come when one of two requests has a token, and when half of them has come only."""
    found = {}
    on_updates: tuple[OnUpdate, ...] = ("recompute", "keep_cache", "restart")
    for on_update in on_updates:
        thread, llm = engine(on_update)
        _one_has_a_token(thread, llm)
        llm.asked.clear()
        call(thread, lambda thread=thread: _use(thread, 6))
        asked = [each for each in llm.asked if each[0] != "sleep"]
        told = {each.request: [each.finish, each.token_ids] for each in segments(thread, 3)}
        found[on_update] = {"asked": asked, "told": [told[1], told[2]], "discarded": thread.stats().discarded_tokens}
    thread, llm = engine("restart")
    _one_has_a_token(thread, llm)
    llm.asked.clear()
    call(thread, lambda: _use(thread, -1))
    found["half"] = [each[0] for each in llm.asked]
    return found


def _one_has_a_token(thread: Any, llm: FakeLLM) -> None:
    """Request 1 has, request 2 of two samples has not; the engine is paused."""
    call(thread, thread.pause)
    ask(thread, {1: [1]})
    call(thread, lambda: llm.step() and None)
    ask(thread, {2: [2]}, sampling=TWO)
    call(thread, lambda: None)


def _use(thread: Any, version: int) -> None:
    thread.pause()
    thread.version = version
    thread.resume()


def not_resumed() -> Any:
    """An engine that cannot forget old keys and values, or begin anew, is lost: it would stand still for ever."""
    found = []
    on_updates: tuple[OnUpdate, ...] = ("recompute", "keep_cache", "restart")
    for on_update, broken in zip(on_updates, ("reset_prefix_cache", "wake_up", "abort_request"), strict=True):
        thread, llm = engine(on_update)
        _one_has_a_token(thread, llm)
        setattr(llm, broken, lambda *_, **__: [][0])
        found += [call(thread, thread.resume), failing(lambda thread=thread: thread.poll(1.0))]
    return found


def older() -> Any:
    """Requests end of which older weights have sampled a token, also one of a sample that has ended; not what waits."""
    thread, llm = engine()
    _one_has_a_token(thread, llm)
    thread.abort_older(5)
    same = thread.poll(0.1)
    call(thread, lambda: setattr(thread, "version", 6))
    thread.abort_older(6)
    [first] = segments(thread, 1)
    thread.abort_older(10**9)
    waiting = thread.poll(0.1)
    [ended, going] = thread._running
    llm.left[ended] = 1
    call(thread, lambda: thread._running.pop(ended).end(llm._completion(ended, "stop")))
    thread.abort_older(6)
    [second] = segments(thread, 1)
    return {
        "same": same,
        "first": [first.request, first.finish, first.token_ids],
        "waiting": waiting,
        "second": [second.request, second.finish, second.token_ids],
        "left": [len(thread._running), going in llm.left],
    }


def taken_in() -> Any:
    """What old weights have sampled, and vLLM has not told yet, is taken in before new ones come: outputs of a process
    of its own, and batches of this one that are on their way."""
    found = []
    for batches in ([0, 3, 2], [0], None):
        thread, llm = engine()
        queued: Any = [(None, SimpleNamespace(total_num_scheduled_tokens=each), None) for each in batches or ()]
        outputs: queue.Queue[int] = queue.Queue()
        if batches is None:
            outputs.put(1)
            outputs.put(2)
            llm.engine_core = SimpleNamespace(outputs_queue=outputs)
        else:
            llm.engine_core = SimpleNamespace(engine_core=SimpleNamespace(batch_queue=queued))

        def step(llm: Any = llm, queued: Any = queued, outputs: Any = outputs) -> list[Any]:
            llm.asked.append(["step"])
            queued.pop() if queued else outputs.get_nowait()
            return []

        llm.step = step  # type: ignore[method-assign]
        call(thread, thread.pause)
        found.append([each[0] for each in llm.asked])
    return found


def _one_step(llm: FakeLLM) -> Callable[[], list[Any]]:
    """Steps that need no gate."""
    llm.gate.set()
    return type(llm).step.__get__(llm)


def lost() -> Any:
    """A step fails: all who wait are told, those who come later as well, and the thread goes on answering."""
    thread, llm = engine()
    llm.gate.clear()
    ask(thread, {1: [1], 2: [BROKEN]})
    call(thread, lambda: llm.gate.set())
    found = [failing(lambda: [thread.poll(5.0), thread.poll(5.0)]), failing(lambda: thread.poll(1.0))]
    ask(thread, {3: [3]})
    thread.abort([3])
    again = [call(thread, lambda: "still there"), call(thread, lambda: "again"), failing(lambda: thread.poll(1.0))]
    return [*found, *again, thread.stats().lost]


def unseeded() -> Any:
    """An engine that cannot start its sampler anew cannot be relied on."""
    thread, llm = engine()
    llm.collective_rpc = lambda *_, **__: [][0]
    ask(thread, {1: [1]}, 11)
    return failing(lambda: thread.poll(5.0))


def unbuilt() -> Any:
    """There never was an engine."""

    def build() -> Any:
        raise ValueError("no memory")

    thread = EngineThread(build, lambda sampling: "params", slots=2)  # type: ignore[arg-type, return-value]
    return [told(thread.ready), call(thread, lambda: "there"), failing(lambda: thread.poll(1.0)), thread.stats().lost]


def failing_call() -> Any:
    """A call that fails is its caller's affair."""
    thread, _ = engine()
    first = call(thread, lambda: [][0])
    return [first, call(thread, lambda: "next")]


def left() -> Any:
    """Callers who have gone: the thread goes on for the others."""
    thread, llm = engine()
    llm.gate.clear()
    ask(thread, {3: [3]})
    asked, fails = thread.call(lambda: "an answer"), thread.call(lambda: [][0])
    gone = [future.cancel() for future in (asked, fails)]
    llm.gate.set()
    return {"gone": gone, "other": len(segments(thread, 1)), "call": call(thread, lambda: "still there")}


def strange() -> Any:
    """An engine that answers what nobody asked, cannot say whether it works, or does not say what sampled a token, is
    lost; all who wait are told."""
    found = []
    unknown = SimpleNamespace(request_id="other", finished=True, outputs=[None])
    for name, answer in (("step", lambda: [unknown]), ("has_unfinished_requests", lambda: [][0])):
        thread, llm = engine()
        llm.gate.clear()
        ask(thread, {1: [1]})
        setattr(llm, name, answer)
        llm.gate.set()
        found += [failing(lambda thread=thread: thread.poll(5.0)), call(thread, lambda: "there")]
    for change in (_no_versions, _a_version_less, _an_overlap, _other_logprobs):
        thread, llm = engine()
        complete = llm._completion
        llm._completion = lambda *each, change=change, complete=complete: change(complete(*each))  # type: ignore[method-assign]
        ask(thread, {1: [1]})
        found.append(failing(lambda thread=thread: thread.poll(5.0)))
    return found


def _no_versions(completion: Any) -> Any:
    completion.weight_versions = None
    return completion


def _a_version_less(completion: Any) -> Any:
    completion.weight_versions[0].start = 1
    return completion


def _an_overlap(completion: Any) -> Any:
    completion.weight_versions.append(SimpleNamespace(version="6", start=2, end=3))
    return completion


def _other_logprobs(completion: Any) -> Any:
    completion.logprobs.token_ids = [*completion.logprobs.token_ids[:-1], 77]
    return completion


def versions() -> Any:
    """A response that went on with new weights has two; weights that sampled nothing of it have no part in it."""
    found = []
    for spans in ([("5", 0, 1), ("6", 1, 3)], [("4", 0, 0), ("5", 0, 3)]):
        thread, llm = engine()
        complete = llm._completion

        def changed(*each: Any, complete: Any = complete, spans: Any = spans) -> Any:
            completion = complete(*each)
            named = ("version", "start", "end")
            completion.weight_versions = [SimpleNamespace(**dict(zip(named, span, strict=True))) for span in spans]
            return completion

        llm._completion = changed  # type: ignore[method-assign]
        ask(thread, {1: [1]})
        found.append([[span.version, span.start, span.end] for span in segments(thread, 1)[0].versions])
    return found


def paused() -> Any:
    """Nothing is stepped between pause and resume, though a request is running; calls are answered."""
    thread, llm = engine()
    call(thread, thread.pause)
    ask(thread, {1: [1]})
    time.sleep(0.2)
    steps, answer = llm.steps, call(thread, lambda: "answered")
    call(thread, thread.resume)
    done = texts(thread, 1)
    return {"steps": steps, "answer": answer, "done": done, "asked": [each for each in llm.asked if each[0] != "add"]}


def between_steps() -> Any:
    """A call while a request is running waits for one step, not for the request's end."""
    thread, llm = engine()
    llm.gate.clear()
    ask(thread, {1: [1]})
    call(thread, lambda: None)
    asked = thread.call(lambda: llm.steps)
    llm.gate.set()
    return {"at": told(asked), "end": texts(thread, 1)}


def counted() -> Any:
    """How many samples run and wait, tokens of those that ended, and since when the thread has not come round."""
    thread, llm = engine()
    idle = thread.stats()
    llm.gate.clear()
    ask(thread, {1: [1], 2: [2]}, sampling=TWO)
    call(thread, lambda: None)
    time.sleep(0.3)
    busy = thread.stats()
    llm.gate.set()
    segments(thread, 4)
    end = thread.stats()
    return {
        "idle": [idle.version, idle.running, idle.waiting, idle.slots, idle.silent_s, idle.generated_tokens],
        "unknown": [idle.cache_used, idle.preemptions],
        "busy": [busy.running, busy.waiting, 0.2 < busy.silent_s < DEADLINE_S],
        "end": [end.running, end.waiting, end.generated_tokens, end.lost],
    }


def spent() -> Any:
    """Seconds of an engine by a clock of its own: with nothing to do (1), paused so (2) and with a sample (4); in a
    step with one of four slots filled (8) and with two (16); in a call (32), and as it takes another sample (64).
    When its samples have ended, it has nothing to do (128)."""
    clock = SimpleNamespace(now=0.0)

    def passes(seconds: float) -> None:
        clock.now += seconds

    thread, llm = engine(slots=4)
    thread._occupancy = Occupancy(4, lambda: clock.now)
    found = []
    passes(1)
    call(thread, thread.pause)
    passes(2)
    found.append(thread.stats())
    ask(thread, {1: [1]})
    call(thread, lambda: None)
    passes(4)
    found.append(thread.stats())
    llm.gate.clear()
    call(thread, thread.resume)
    _until(lambda: thread.pulse().method == "step")
    passes(8)
    found.append(thread.stats())
    llm.gate.set()
    segments(thread, 1)
    _until(lambda: thread._round is None)
    passes(128)
    stopped, goes_on = _stops_after(llm, llm.steps + 1)
    ask(thread, {2: [2]}, sampling=TWO)
    assert stopped.wait(DEADLINE_S)
    passes(16)
    found.append(thread.stats())
    thread.call(lambda: passes(32))
    add = llm.add_request
    llm.add_request = lambda *each, **more: (passes(64), add(*each, **more))[1]  # type: ignore[method-assign]
    ask(thread, {3: [3]})
    goes_on.set()
    segments(thread, 3)
    call(thread, lambda: None)
    found.append(thread.stats())
    rows = [[each.idle_s, each.busy_s, each.underfilled_s, each.paused_s] for each in found]
    return {"seconds": rows, "tokens": [each.sampled_tokens for each in found]}


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not true() and time.monotonic() < until:
        time.sleep(0.001)
    assert true()


def _stops_after(llm: FakeLLM, steps: int) -> tuple[threading.Event, threading.Event]:
    """The step after so many says so by the first event, and waits for the second."""
    stopped, goes_on, step = threading.Event(), threading.Event(), llm.step

    def stops() -> list[Any]:
        if llm.steps == steps:
            stopped.set()
            goes_on.wait(DEADLINE_S)
        return step()

    llm.step = stops  # type: ignore[method-assign]
    return stopped, goes_on


def canary() -> Any:
    """Logprobs of all tokens but the first, while another request goes on."""
    thread, llm = engine()
    call(thread, thread.pause)
    ask(thread, {1: [1]})
    found = call(thread, lambda: thread.logprobs([4, 5, 6]))
    call(thread, thread.resume)
    return {
        "logprobs": found.tolist(),
        "dtype": str(found.dtype),
        "asked": llm.asked[-3],
        "other": texts(thread, 1),
    }


def adapter() -> Any:
    """Requests from then on use it; its files are needed no longer than that."""
    thread, llm = engine()
    ask(thread, {1: [1]})
    segments(thread, 1)
    bound = call(thread, lambda: thread.load_adapter(Adapter(config="{}", weights=b"weights")))
    ask(thread, {2: [1]})
    segments(thread, 1)
    return {"bound": bound, "asked": llm.asked, "left": [Path(file).exists() for file in llm.files]}


def ranks() -> Any:
    """vLLM has room for adapters of some ranks: the smallest that is enough."""
    import actors.models.lora

    actors.models.lora.adapted_layer_kinds = lambda directory, lora: [directory, *lora.targets]  # type: ignore[assignment]
    options = [vllm_options._adapter_options("model", LoraConfig(rank=rank, targets=["q"])) for rank in (1, 8, 9, 512)]
    return {"rank": [each.pop("max_lora_rank") for each in options], "others": options[0]}


SCENES: list[Scene] = [
    seeded,
    finished,
    refused,
    aborted,
    updated,
    not_resumed,
    older,
    taken_in,
    lost,
    unseeded,
    unbuilt,
    failing_call,
    left,
    strange,
    versions,
    paused,
    between_steps,
    counted,
    spent,
    canary,
    adapter,
    ranks,
]

if __name__ == "__main__":
    print("told", json.dumps({scene.__name__: scene() for scene in SCENES}))
