"""What an EngineThread asks of vLLM, and answers: a program, as vLLM is imported, around an engine that is not there.

Its output is JSON, by the name of each scene below; `tests/test_engine_thread.py` says what is expected.
"""

import json
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
    from actors.rollout import engine as rollout_engine
    from actors.rollout.engine import EngineThread
    from actors.rollout.worker import Adapter

REFUSED = 666
"""A prompt of this token is too long."""
BROKEN = 667
"""The engine does not survive a prompt of this one."""
DEADLINE_S = 20
Scene = Callable[[], Any]


class FakeLLM:
    """Takes three steps for a request, and notes what is asked of it; `gate` lets it step."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.left: dict[str, int] = {}
        self.prompts: dict[str, list[int]] = {}
        self.steps = 0
        self.gate = threading.Event()
        self.gate.set()
        self.llm_engine = self
        self.files: list[str] = []

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)

    def add_request(self, request_id: str, prompt: Any, params: Any, *, lora_request: Any) -> None:
        tokens = prompt["prompt_token_ids"]
        if REFUSED in tokens:
            raise ValueError("the prompt is too long")
        self.asked.append(
            ["add", request_id, tokens, prompt["cache_salt"], _shown(params), _shown_adapter(lora_request)]
        )
        self.left[request_id], self.prompts[request_id] = 3, tokens

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
            found.append(SimpleNamespace(request_id=request, finished=done, steps=self.steps, prompt_logprobs=logprobs))
            if done:
                del self.left[request]
        return found

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


def engine() -> tuple[Any, FakeLLM]:
    """An engine that is ready."""
    llm: Any = FakeLLM()
    thread = EngineThread(lambda: llm)
    thread.ready.result(DEADLINE_S)
    thread.version = 5
    return thread, llm


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
    for prompts, seed in (([(3, [1, 2]), (1, [3]), (2, [4])], 11), ([(5, [1, 2])], None), ([(6, [1, 2])], 12)):
        call(thread, lambda prompts=prompts, seed=seed: thread.start(prompts, "params", seed))
        for number, _ in prompts:
            told(thread.output(number))
    return llm.asked


def finished() -> Any:
    """An output is there after its last step; a number that is forgotten may be used again."""
    thread, _ = engine()
    early = thread.output(1)
    call(thread, lambda: thread.start([(1, [1])], "params", None))
    steps = [told(early).steps]
    same = thread.output(1) is early
    thread.forget(1)
    again = thread.output(1)
    waits = not again.done()
    call(thread, lambda: thread.start([(1, [1])], "params", None))
    return {"steps": [*steps, told(again).steps], "same": same, "waits": waits, "left": len(thread._running)}


def refused() -> Any:
    """One of three prompts is refused: its caller is told, and the others go on."""
    thread, _ = engine()
    call(thread, lambda: thread.start([(1, [1]), (2, [REFUSED]), (3, [3])], "params", 4))
    found = [told(thread.output(number)) for number in (1, 2, 3)]
    return [each if isinstance(each, str) else each.finished for each in found]


def lost() -> Any:
    """A step fails: all who wait are told, those who come later as well, and the thread goes on answering."""
    thread, llm = engine()
    llm.gate.clear()
    waiting = thread.output(9)
    call(thread, lambda: thread.start([(1, [1]), (2, [BROKEN])], "params", None))
    llm.gate.set()
    found = [told(each) for each in (thread.output(1), thread.output(2), waiting)]
    return [*found, told(thread.output(10)), call(thread, lambda: "still there"), call(thread, lambda: "again")]


def unbuilt() -> Any:
    """There never was an engine."""

    def build() -> Any:
        raise ValueError("no memory")

    thread = EngineThread(build)
    return [told(thread.ready), call(thread, lambda: "there"), told(thread.output(1))]


def failing_call() -> Any:
    """A call that fails is its caller's affair."""
    thread, _ = engine()
    first = call(thread, lambda: [][0])
    return [first, call(thread, lambda: "next")]


def left() -> Any:
    """Callers who have gone, of a call, of an output and of a refused prompt: the thread goes on for the others."""
    thread, llm = engine()
    llm.gate.clear()
    output, refusal = thread.output(1), thread.output(2)
    call(thread, lambda: thread.start([(1, [1]), (3, [3])], "params", None))
    asked, failing = thread.call(lambda: "an answer"), thread.call(lambda: [][0])
    gone = [future.cancel() for future in (output, refusal, asked, failing)]
    llm.gate.set()
    call(thread, lambda: thread.start([(2, [REFUSED])], "params", None))
    return {"gone": gone, "other": told(thread.output(3)).finished, "call": call(thread, lambda: "still there")}


def strange() -> Any:
    """An engine that answers what nobody asked, or cannot say whether it works, is lost; all who wait are told."""
    found = []
    for name, answer in (
        ("step", lambda: [SimpleNamespace(request_id="other", finished=True)]),
        ("has_unfinished_requests", lambda: [][0]),
    ):
        thread, llm = engine()
        llm.gate.clear()
        call(thread, lambda thread=thread: thread.start([(1, [1])], "params", None))
        setattr(llm, name, answer)
        llm.gate.set()
        found += [told(thread.output(1)), told(thread.output(2)), call(thread, lambda: "there")]
    return found


def paused() -> Any:
    """Nothing is stepped between pause and resume, though a request is running; calls are answered."""
    thread, llm = engine()
    call(thread, thread.pause)
    call(thread, lambda: thread.start([(1, [1])], "params", None))
    time.sleep(0.2)
    steps, answer = llm.steps, call(thread, lambda: "answered")
    call(thread, thread.resume)
    done = told(thread.output(1)).finished
    return {"steps": steps, "answer": answer, "done": done, "asked": [each for each in llm.asked if each[0] != "add"]}


def between_steps() -> Any:
    """A call while a request is running waits for one step, not for the request's end."""
    thread, llm = engine()
    llm.gate.clear()
    call(thread, lambda: thread.start([(1, [1])], "params", None))
    asked = thread.call(lambda: llm.steps)
    llm.gate.set()
    return {"at": told(asked), "end": told(thread.output(1)).steps}


def canary() -> Any:
    """Logprobs of all tokens but the first, while another request goes on."""
    thread, llm = engine()
    call(thread, thread.pause)
    call(thread, lambda: thread.start([(1, [1])], "params", None))
    found = call(thread, lambda: thread.logprobs([4, 5, 6]))
    call(thread, thread.resume)
    return {
        "logprobs": found.tolist(),
        "dtype": str(found.dtype),
        "asked": llm.asked[-3],
        "other": told(thread.output(1)).steps,
    }


def adapter() -> Any:
    """Requests from then on use it; its files are needed no longer than that."""
    thread, llm = engine()
    call(thread, lambda: thread.start([(1, [1])], "params", None))
    told(thread.output(1))
    bound = call(thread, lambda: thread.load_adapter(Adapter(config="{}", weights=b"weights")))
    call(thread, lambda: thread.start([(2, [1])], "params", None))
    told(thread.output(2))
    return {"bound": bound, "asked": llm.asked, "left": [Path(file).exists() for file in llm.files]}


def ranks() -> Any:
    """vLLM has room for adapters of some ranks: the smallest that is enough."""
    import actors.models.lora

    actors.models.lora.adapted_layer_kinds = lambda directory, lora: [directory, *lora.targets]  # type: ignore[assignment]
    options = [
        rollout_engine._adapter_options("model", LoraConfig(rank=rank, targets=["q"])) for rank in (1, 8, 9, 512)
    ]
    return {"rank": [each.pop("max_lora_rank") for each in options], "others": options[0]}


SCENES: list[Scene] = [
    seeded,
    finished,
    refused,
    lost,
    unbuilt,
    failing_call,
    left,
    strange,
    paused,
    between_steps,
    canary,
    adapter,
    ranks,
]

if __name__ == "__main__":
    print("told", json.dumps({scene.__name__: scene() for scene in SCENES}))
