"""What a rollout worker makes of the engine's completions, and in which order it puts weights into service.

The engine and its completions are made by hand; `tests/test_stop_strings.py` has the texts, `tests/test_sync.py` real
engines.
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.batch import Rollout, VersionSpan
from actors.config_rollout import RolloutConfig
from actors.rollout.types import RolloutInfo, Sampling
from actors.rollout.worker import Adapter, RolloutWorker, _info
from actors.weights.offer import Offer


class FakeEngine:
    """Runs calls at once, and notes what is asked of it; `outputs` are those of prompts that are done."""

    def __init__(self, outputs: dict[int, Any] | None = None) -> None:
        self.asked: list[Any] = []
        self.outputs = outputs or {}
        self.broken = False
        self.version = 3
        self.llm = SimpleNamespace(
            collective_rpc=self._told("collective_rpc", ["account"]),
            **{
                name: self._told(name)
                for name in (
                    "init_weight_transfer_engine",
                    "start_weight_update",
                    "update_weights",
                    "finish_weight_update",
                    "update_weight_version",
                )
            },
        )
        self.pause, self.resume, self.start, self.forget = map(self._told, ("pause", "resume", "start", "forget"))
        self.forget_adapter = self._told("forget_adapter")

    def fail_at(self, name: str, error: Exception) -> None:
        """Let a call fail: a method of the engine, or of vLLM's, or by collective_rpc."""
        owner: Any = self if hasattr(self, name) else self.llm
        told = getattr(owner, name, None) or self.llm.collective_rpc

        def fail(*args: Any, **options: Any) -> Any:
            told(*args, **options)
            raise error

        def call(method: str, **options: Any) -> Any:
            return fail(method, **options) if method == name else told(method, **options)

        setattr(owner, *((name, fail) if hasattr(owner, name) else ("collective_rpc", call)))

    def _told(self, name: str, answer: Any = None) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self.asked.append((name, *args, *options.items()))
            return answer

        return called

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
        return future

    def output(self, number: int) -> "Future[Any]":
        future: Future[Any] = Future()
        if isinstance(output := self.outputs[number], Exception):
            future.set_exception(output)
        else:
            future.set_result(output)
        return future

    def logprobs(self, token_ids: list[int]) -> np.ndarray:
        self.asked.append(("logprobs", token_ids))
        return np.full(len(token_ids) - 1, -0.5, np.float32)

    def load_adapter(self, adapter: Adapter) -> list[str]:
        self.asked.append(("load_adapter", adapter))
        if self.broken:
            raise OSError("no memory left")
        return ["of q_proj"]


def worker(engine: FakeEngine | None = None, *, version: int = 3, **settings: Any) -> Any:
    """A rollout worker around an engine that is not there."""
    found: Any = object.__new__(RolloutWorker)
    found.config, found.engine = RolloutConfig(**settings), engine or FakeEngine()
    found.engine.version = version
    found.tokenizer = SimpleNamespace(decode=lambda ids, **options: f"{ids} {options}")
    return found


def completion(
    tokens: list[int], *, reason: str | None = "stop", spans: list[tuple[int, int, int]] | None = None
) -> Any:
    """As vLLM gives them; `spans` are (version, start, end)."""
    found = SimpleNamespace(
        token_ids=tuple(tokens),
        logprobs=SimpleNamespace(token_ids=list(tokens), logprobs=[-0.25 * token for token in tokens]),
        finish_reason=reason,
        stop_reason=None,
        text="",
    )
    if spans is None:
        spans = [(3, 0, len(tokens))]
    # vLLM's versions are the strings that they were finished with.
    found.weight_versions = [SimpleNamespace(version=str(v), start=start, end=end) for v, start, end in spans]
    return found


def run(call: Any) -> Any:
    return asyncio.run(call)


@pytest.mark.parametrize(
    ("reason", "status", "told"),
    [
        ("stop", "ok", "stop"),
        ("length", "truncated", "length"),
        ("abort", "failed", "abort"),
        ("error", "failed", "error"),
        (None, "failed", "none"),
    ],
)
def test_only_an_end_of_its_own_is_ok_and_only_the_limit_truncates(reason: str | None, status: str, told: str) -> None:
    """An aborted request has said nothing of use: it is neither a short answer nor a long one."""
    rollout = worker()._rollout([5, 6], completion([1, 2, 3], reason=reason))
    assert (rollout.status, rollout.finish_reason) == (status, told)
    assert _info(rollout).status == status


def test_a_rollout_has_the_tokens_and_logprobs_of_its_completion() -> None:
    rollout = worker()._rollout([5, 6], completion([1, 2, 3]))
    assert (rollout.prompt_token_ids, rollout.response_token_ids, rollout.tokens) == ([5, 6], [1, 2, 3], 5)
    assert rollout.rollout_logprobs.tolist() == [-0.25, -0.5, -0.75]
    assert rollout.rollout_logprobs.dtype == np.float32
    assert rollout.text == "[1, 2, 3] {'skip_special_tokens': True}"
    wrong = completion([1, 2, 3])
    wrong.logprobs.token_ids = [1, 2, 4]
    with pytest.raises(AssertionError, match="one logprob per sampled token"):
        worker()._rollout([5, 6], wrong)


def test_versions_are_those_that_sampled_each_token() -> None:
    """A response that went on with new weights has two; weights that sampled nothing of it have no part in it."""
    rollout = worker()._rollout([5], completion([1, 2, 3], spans=[(2, 0, 1), (3, 1, 3)]))
    assert rollout.versions == [VersionSpan(version=2, start=0, end=1), VersionSpan(version=3, start=1, end=3)]
    rollout = worker()._rollout([5], completion([1, 2, 3], spans=[(1, 0, 0), (3, 0, 3)]))
    assert rollout.versions == [VersionSpan(version=3, start=0, end=3)]
    rollout = worker()._rollout([5], completion([], reason="abort", spans=[]))
    assert rollout.versions == [] and _info(rollout).oldest_version == -1


@pytest.mark.parametrize("spans", [[], [(3, 0, 2)], [(3, 1, 3)], [(2, 0, 1), (3, 2, 3)], [(2, 0, 2), (3, 1, 3)]])
def test_an_engine_that_does_not_say_which_weights_sampled_a_token_is_not_believed(
    spans: list[tuple[int, int, int]],
) -> None:
    """The newest ones would be the wrong ones for just the tokens that matter."""
    with pytest.raises(RuntimeError, match=r"must say of each of the 3 tokens of a response which weights"):
        worker()._rollout([5], completion([1, 2, 3], spans=spans))
    found = completion([1, 2, 3])
    found.weight_versions = None
    with pytest.raises(RuntimeError, match=r"and says it of \[\]$"):
        worker()._rollout([5], found)


def test_the_driver_is_told_of_the_oldest_version() -> None:
    """Staleness is that of the oldest token, wherever it stands."""
    rollouts: list[Rollout] = [
        worker()._rollout([5, 6, 7], completion([1, 2, 3, 4], reason="length", spans=spans))
        for spans in ([(2, 0, 1), (3, 1, 4)], [(4, 0, 2), (1, 2, 3), (3, 3, 4)])
    ]
    assert [_info(rollout) for rollout in rollouts] == [
        RolloutInfo(prompt_tokens=3, response_tokens=4, status="truncated", oldest_version=version)
        for version in (2, 1)
    ]


def test_nothing_is_generated_before_the_first_weights() -> None:
    """Until then an engine has random ones; version 0 is a version."""
    outputs = [completion([1], spans=[(0, 0, 1)]), completion([2, 3], reason="length", spans=[(0, 0, 2)])]
    output = SimpleNamespace(prompt_token_ids=[5, 6], outputs=outputs)
    engine = FakeEngine({7: output})
    with pytest.raises(RuntimeError, match="asked to generate before the first weights arrived"):
        run(worker(engine, version=-1).generated(7))
    infos, rollouts = run(worker(engine, version=0).generated(7))
    assert [rollout.response_token_ids for rollout in rollouts] == [[1], [2, 3]]
    assert [rollout.prompt_token_ids for rollout in rollouts] == [[5, 6]] * 2
    assert [(info.response_tokens, info.status, info.oldest_version) for info in infos] == [
        (1, "ok", 0),
        (2, "truncated", 0),
    ]


def test_a_number_may_be_used_again_also_after_a_refused_prompt() -> None:
    engine = FakeEngine({7: ValueError("prompt of 4000 tokens"), 8: SimpleNamespace(prompt_token_ids=[5], outputs=[])})
    with pytest.raises(ValueError, match="prompt of 4000 tokens"):
        run(worker(engine).generated(7))
    run(worker(engine).generated(8))
    assert engine.asked == [("forget", 7), ("forget", 8)]


def test_prompts_go_to_the_engine_with_their_parameters_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `actors.rollout.engine`, which is of vLLM, stand for themselves."""
    made = SimpleNamespace(sampling_params=lambda config, sampling: (config.top_p, sampling.samples))
    monkeypatch.setitem(sys.modules, "actors.rollout.engine", made)
    engine = FakeEngine()
    sampling = Sampling(samples=4, temperature=0.7, max_tokens=40)
    for seed in (11, None):
        run(worker(engine, top_p=0.9).start([(1, [5, 6])], sampling, seed))
    assert engine.asked == [("start", [(1, [5, 6])], (0.9, 4), 11), ("start", [(1, [5, 6])], (0.9, 4), None)]


@pytest.mark.parametrize("remember", [False, True])
def test_the_first_weights_of_a_transfer_pause_the_engine_and_the_others_do_not(remember: bool) -> None:
    engine = FakeEngine()
    for first in (True, False):
        run(worker(engine).update_weights(f"part {first}", first, remember))
    assert engine.asked == [
        ("pause",),
        ("collective_rpc", "remember_checksums", ("args", (remember,))),
        ("start_weight_update",),
        ("update_weights", {"update_info": "part True"}),
        ("update_weights", {"update_info": "part False"}),
    ]


@pytest.mark.parametrize("canary", [None, [5, 6, 7]])
def test_received_weights_are_in_service_as_their_version_before_the_engine_goes_on(canary: list[int] | None) -> None:
    """The canary is read with the new ones: after the engine has forgotten the keys and values of the old."""
    engine = FakeEngine()
    found = worker(engine, version=3)
    account = run(found.finish_weight_update(4, canary))
    assert found.engine.version == 4
    asked = [("finish_weight_update", "4"), ("resume",)]
    if canary is None:
        assert account is None
    else:
        assert account.digests == ["account"] and account.logprobs.tolist() == [-0.5, -0.5]
        asked += [("collective_rpc", "received_digest"), ("logprobs", canary)]
    assert engine.asked == asked


@pytest.mark.parametrize("canary", [None, [5, 6, 7]])
def test_an_adapter_is_loaded_while_the_engine_pauses(canary: list[int] | None) -> None:
    engine, adapter = FakeEngine(), Adapter(config="{}", weights=b"w")
    found = worker(engine, version=3)
    account = run(found.load_adapter(adapter, 4, canary))
    asked = [("pause",), ("load_adapter", adapter), ("update_weight_version", "4"), ("resume",)]
    assert engine.asked == asked + ([("logprobs", canary)] if canary else [])
    assert (found.engine.version, account.digests) == (4, ["of q_proj"])
    assert account.logprobs.tolist() == ([-0.5, -0.5] if canary else []) and account.logprobs.dtype == np.float32


def test_an_adapter_that_cannot_be_loaded_leaves_the_old_version_in_service() -> None:
    engine = FakeEngine()
    engine.broken = True
    found = worker(engine, version=3)
    with pytest.raises(OSError, match="no memory left"):
        run(found.load_adapter(Adapter(config="{}", weights=b"w"), 4, [5, 6]))
    assert found.engine.version == 3
    assert [each[0] for each in engine.asked] == ["pause", "load_adapter", "resume"]


def test_an_engine_that_cannot_go_on_either_says_first_why_it_stopped() -> None:
    engine = FakeEngine()
    engine.broken = True
    engine.fail_at("resume", RuntimeError("asleep"))
    with pytest.raises(OSError, match="no memory left") as caught:
        run(worker(engine).load_adapter(Adapter(config="{}", weights=b"w"), 4, None))
    assert caught.value.__notes__ == ["going on failed as well: RuntimeError: asleep"]


OFFER = Offer(version=2, address="a", port=1, key="k", bucket_bytes=5, timeout_s=6.0, tensors={"names": ["w"]})


@pytest.mark.parametrize("canary", [None, [5, 6, 7]])
@pytest.mark.parametrize("version", [4, -1])
def test_fetched_weights_are_there_before_the_engine_pauses(version: int, canary: list[int] | None) -> None:
    """What a holder offers is loaded in place of what the engine had, adapter and all."""
    engine = FakeEngine()
    found = worker(engine, version=3)
    account = run(found.fetch(OFFER, version, canary))
    assert (found.engine.version, found.held) == (version, 2)
    asked = [
        ("collective_rpc", "stage", ("args", (asdict(OFFER),))),
        ("pause",),
        ("forget_adapter",),
        ("collective_rpc", "remember_checksums", ("args", (canary is not None,))),
        ("start_weight_update",),
        ("update_weights", {"update_info": {"names": ["w"]}}),
        ("finish_weight_update", str(version)),
        ("resume",),
    ]
    if canary:
        assert account is not None and account.digests == ["account"] and account.logprobs.tolist() == [-0.5, -0.5]
        asked += [("collective_rpc", "received_digest"), ("logprobs", canary)]
    assert engine.asked == asked


def test_an_engine_that_a_fetch_does_not_reach_keeps_what_it_has() -> None:
    engine = FakeEngine()
    engine.fail_at("stage", RuntimeError("Connection closed by peer"))
    found = worker(engine, version=3)
    found.held = 1
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        run(found.fetch(OFFER, 4, None))
    assert (found.engine.version, found.held) == (3, 1)
    assert [each[1] for each in engine.asked] == ["stage"]


@pytest.mark.parametrize("call", ["start_weight_update", "update_weights", "finish_weight_update"])
def test_an_engine_that_does_not_take_what_it_fetched_has_no_weights_to_generate_with(call: str) -> None:
    """Some layers may have the new ones already."""
    engine = FakeEngine()
    engine.fail_at(call, ValueError("no such tensor"))
    engine.fail_at("resume", RuntimeError("asleep"))
    found = worker(engine, version=3)
    with pytest.raises(ValueError, match="no such tensor") as caught:
        run(found.fetch(OFFER, 4, [5, 6]))
    assert (found.engine.version, found.held) == (-1, -1)
    assert engine.asked[-1] == ("resume",)
    assert caught.value.__notes__ == ["going on failed as well: RuntimeError: asleep"]


def test_calls_of_the_control_group_reach_the_engine() -> None:
    engine = FakeEngine()
    assert run(worker(engine).worker_call("reseed", 5)) == ["account"]
    for call in (worker(engine).pause(), worker(engine).resume(), worker(engine).init_weight_transfer_engine({"a": 1})):
        run(call)
    assert engine.asked == [
        ("collective_rpc", "reseed", ("args", (5,))),
        ("pause",),
        ("resume",),
        ("init_weight_transfer_engine", {"init_info": {"a": 1}}),
    ]
