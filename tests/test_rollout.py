"""What a rollout worker makes of an engine's segments, and in which order it puts weights into service.

The engine and its segments are made by hand; `tests/test_stop_strings.py` has the texts, `tests/test_sync.py` real
engines.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.config_rollout import RolloutConfig
from actors.episodes import VersionSpan
from actors.rollout.host import EngineHost, NoWeights
from actors.rollout.types import Finished, Request, RolloutInfo, Sampling, Segment
from actors.rollout.worker import Adapter, RolloutWorker
from actors.weights.offer import Offer


class FakeEngine:
    """Runs calls at once, and notes what is asked of it; `segments` are what it gives, poll by poll."""

    def __init__(self, *segments: list[Segment]) -> None:
        self.asked: list[Any] = []
        self.segments = list(segments)
        self.broken = False
        self.version = 3
        self.has_adapter = False
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
        self.pause, self.resume, self.submit, self.abort = map(self._told, ("pause", "resume", "submit", "abort"))
        self.forget_adapter, self.abort_older = self._told("forget_adapter"), self._told("abort_older")

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

    def poll(self, wait_s: float) -> list[Segment]:
        if self.broken:
            raise OSError("a kernel failed")
        return self.segments.pop(0) if self.segments else []

    def stats(self) -> Any:
        return SimpleNamespace(version=self.version)

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
    EngineHost.__init__(found, found._text)
    found.config, found.engine = RolloutConfig(**settings), engine or FakeEngine()
    found.engine.version = version
    found.tokenizer = SimpleNamespace(decode=lambda ids, **options: f"{ids} {options}")
    return found


def request(number: int, samples: int = 1) -> Request:
    return Request(
        id=number, token_ids=[5, 6], sampling=Sampling(samples=samples, temperature=1.0, max_tokens=9)
    )  # fmt: skip


def segment(
    number: int, index: int = 0, tokens: tuple[int, ...] = (1, 2, 3), finish: Any = "stop", versions: Any = None
) -> Segment:
    """`versions` are (version, start, end)."""
    spans = [(3, 0, len(tokens))] if versions is None else versions
    return Segment(
        request=number,
        index=index,
        token_ids=list(tokens),
        logprobs=np.array([-0.25 * token for token in tokens], dtype=np.float32),
        versions=[VersionSpan(version=version, start=start, end=end) for version, start, end in spans],
        finish=finish,
    )


def run(call: Any) -> Any:
    return asyncio.run(call)


def ended(found: Any, *requests: Request) -> list[Finished]:
    """What the worker tells of requests whose segments its engine has, in one poll."""
    run(found.submit(list(requests), None))
    return run(found.poll(0.1))


@pytest.mark.parametrize(
    ("finish", "status"),
    [("stop", "ok"), ("length", "truncated"), ("abort", "failed"), ("error", "failed")],
)
def test_only_an_end_of_its_own_is_ok_and_only_the_limit_truncates(finish: str, status: str) -> None:
    """An aborted request has said nothing of use: it is neither a short answer nor a long one."""
    found = worker(FakeEngine([segment(1, finish=finish)]))
    run(found.submit([request(1)], None))
    run(found.abort([1], keep=True))
    [told] = run(found.poll(0.1))
    assert [info.status for info in told.infos] == [status] and told.error == ""
    assert told.aborted == (finish == "abort")
    [rollout] = run(found.collect(1))[1]
    assert (rollout.status, rollout.turns[0].finish_reason) == (status, finish)


def test_an_episode_has_the_tokens_and_logprobs_of_its_segment() -> None:
    found = worker(FakeEngine([segment(1, versions=[(2, 0, 1), (3, 1, 3)])]))
    ended(found, request(1))
    [episode] = run(found.collect(1))[1]
    [turn] = episode.turns
    assert (turn.given_token_ids.tolist(), turn.sampled_token_ids.tolist(), episode.tokens) == ([5, 6], [1, 2, 3], 5)
    assert turn.rollout_logprobs.tolist() == [-0.25, -0.5, -0.75]
    assert turn.rollout_logprobs.dtype == np.float32 and turn.reward is None
    assert episode.text == "[1, 2, 3] {'skip_special_tokens': True}"
    assert turn.versions == [VersionSpan(version=2, start=0, end=1), VersionSpan(version=3, start=1, end=3)]


def test_a_request_is_told_of_when_all_its_samples_have_ended() -> None:
    """In the order in which the last of each did; its samples are in order, and can be collected once."""
    polls = [[segment(1, 1), segment(2, 0)], [], [segment(2, 1), segment(1, 0, (4,), "length")]]
    found = worker(FakeEngine(*polls))
    told = ended(found, request(1, 2), request(2, 2))
    assert run(found.poll(0.1)) == []
    assert [each.request for each in told] == [2, 1]
    assert [(info.sampled_tokens, info.status) for info in told[1].infos] == [(1, "truncated"), (3, "ok")]
    assert [episode.sampled_tokens for episode in run(found.collect(1))[1]] == [1, 3]
    with pytest.raises(KeyError):
        run(found.collect(1))


def test_news_wait_a_moment_for_company_and_the_last_for_none() -> None:
    """One poll tells of what ends shortly after the first; when nothing is running any more, it does so at once."""
    engine = FakeEngine([segment(1)], [segment(2)])
    found = worker(engine)
    told = ended(found, *map(request, (1, 2, 3)))
    assert [each.request for each in told] == [1, 2]
    engine.segments.append([segment(3)])
    began = time.monotonic()
    assert [each.request for each in run(found.poll(60.0))] == [3]
    assert time.monotonic() - began < 30


def test_what_has_ended_before_the_engine_was_lost_is_told_first() -> None:
    engine = FakeEngine([segment(1)])
    found = worker(engine)
    give = engine.poll

    def poll(wait_s: float) -> list[Segment]:
        segments = give(wait_s)
        engine.broken = True
        return segments

    engine.poll = poll  # type: ignore[method-assign]
    assert [each.request for each in ended(found, request(1), request(2))] == [1]
    with pytest.raises(OSError, match="a kernel failed"):
        run(found.poll(0.1))


def test_several_requests_are_collected_in_one_call() -> None:
    found = worker(FakeEngine([segment(1), segment(2, 0, (4,)), segment(3, 0, (5, 6))]))
    ended(found, *map(request, (1, 2, 3)))
    _, third, first = run(found.collect(3, 1))
    assert [[each.sampled_tokens for each in group] for group in (third, first)] == [[2], [3]]
    assert [each.sampled_tokens for each in run(found.collect(2))[1]] == [1]


@pytest.mark.parametrize("places", [1, 2, 4])
def test_responses_to_the_first_requests_come_with_the_news(places: int) -> None:
    """One that was refused has none; those beyond the places are collected, what came along is not there twice."""
    refused = replace(segment(1, finish="refused", tokens=()), error="ValueError: too long")
    found = worker(FakeEngine([refused, segment(2), segment(3, 0, (4,)), segment(4, 0, (5, 6))]))
    run(found.submit([*map(request, (1, 2, 3, 4))], None))
    told, *came = run(found.poll(0.1, places))
    assert [each.request for each in told] == [1, 2, 3, 4]
    assert [each and each[0].sampled_tokens for each in came] == [3, 1, 2, None][:places]
    for number, tokens in list({2: 3, 3: 1, 4: 2}.items())[places:]:
        assert [each.sampled_tokens for each in run(found.collect(number))[1]] == [tokens]
    assert not found._ended


def test_the_driver_is_told_of_the_oldest_version() -> None:
    """Staleness is that of the oldest token, wherever it stands; of no tokens there is none. Carried over are those of
    other versions than the last one's."""
    spans = ([(2, 0, 1), (3, 1, 4)], [(4, 0, 2), (1, 2, 3), (3, 3, 4)])
    segments = [segment(1, index, (1, 2, 3, 4), "length", each) for index, each in enumerate(spans)]
    [told] = ended(worker(FakeEngine([*segments, segment(1, 2, (), "abort", [])])), request(1, 3))
    assert told.infos == [
        RolloutInfo(
            tokens=2 + tokens,
            prompt_tokens=2,
            sampled_tokens=tokens,
            status=status,
            oldest_version=version,
            carried_tokens=carried,
        )
        for tokens, status, version, carried in ((4, "truncated", 2, 1), (4, "truncated", 1, 3), (0, "failed", -1, 0))
    ]


def test_nothing_is_generated_before_the_first_weights() -> None:
    """Until then an engine has random ones; version 0 is a version."""
    engine = FakeEngine()
    with pytest.raises(RuntimeError, match="asked to generate before the first weights arrived"):
        run(worker(engine, version=-1).submit([request(7)], 3))
    assert engine.asked == []
    run(worker(engine, version=0).submit([request(7)], 3))
    assert engine.asked == [("submit", [request(7)], 3)]


def test_a_refused_request_is_told_and_leaves_nothing() -> None:
    refusal = replace(segment(1, 1, ()), finish="refused", error="ValueError: prompt of 4000 tokens")
    found = worker(FakeEngine([segment(1, 0), refusal, segment(2)]))
    told = ended(found, request(1, 2), request(2))
    assert told[0] == Finished(request=1, infos=[], error="ValueError: prompt of 4000 tokens")
    assert told[1].error == "" and len(told[1].infos) == 1
    with pytest.raises(KeyError):
        run(found.collect(1))


def test_only_what_is_running_is_aborted() -> None:
    engine = FakeEngine([segment(1)])
    found = worker(engine)
    ended(found, request(1), request(2))
    run(found.abort([1, 2, 3]))
    assert engine.asked[-1] == ("abort", [2])


def test_what_an_aborted_request_has_is_kept_only_for_whoever_asks_for_it() -> None:
    """Also where only some of its samples were cut, or all had ended by themselves, told of or not; lengths are told,
    and nothing is left."""
    cut = segment(1, 1, (1,), finish="abort")
    for polls, of in (([segment(1, 0), cut], 2), ([segment(1, 0)], 1)):
        for keep in (False, True):
            found = worker(FakeEngine(polls))
            run(found.submit([request(1, of)], None))
            run(found.abort([1], keep=keep))
            told, *here = run(found.poll(0.1, 1))
            assert [each.aborted for each in told] == [not keep or of == 2]
            assert [info.sampled_tokens for info in told[0].infos] == [3, 1][:of]
            # Beside the news come responses that were not aborted; others are asked for.
            kept = here[0] or (run(found.collect(1))[1] if keep else [])
            assert [episode.sampled_tokens for episode in kept] == ([3, 1][:of] if keep else [])
            assert bool(here[0]) == (keep and of == 1)
            assert (found._open, found._aborted, found._ended) == ({}, {}, {})
    found = worker(FakeEngine([segment(1)]))
    [told] = ended(found, request(1))
    run(found.abort([1]))
    assert not told.aborted and found._ended == {}


def test_what_an_engine_ends_as_too_old_is_not_kept() -> None:
    engine = FakeEngine([segment(1, finish="abort")])
    found = worker(engine)
    run(found.submit([request(1)], None))
    run(found.abort_older(4))
    assert engine.asked[-1] == ("abort_older", 4)
    [told] = run(found.poll(0.1))
    assert told.aborted and [info.oldest_version for info in told.infos] == [3] and found._ended == {}


def test_whoever_polls_a_lost_engine_is_told() -> None:
    engine = FakeEngine()
    engine.broken = True
    with pytest.raises(OSError, match="a kernel failed"):
        ended(worker(engine), request(1))


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


def test_weights_that_come_again_below_an_adapter_end_what_uses_it() -> None:
    """Nothing is taken before the next adapter: vLLM has dropped the one before."""
    engine = FakeEngine()
    found = worker(engine, version=3)
    engine.has_adapter = True
    run(found.submit([request(1)], None))
    run(found.update_weights({"names": ["w"]}, True, False, (4, None)))
    asked = [each[0] for each in engine.asked]
    assert asked.index("pause") < asked.index("forget_adapter") < asked.index("start_weight_update")
    assert ("abort", [1]) in engine.asked and engine.version == -1
    with pytest.raises(NoWeights):
        run(found.submit([request(2)], None))
    engine.has_adapter = False
    run(found.load_adapter(Adapter(config="{}", weights=b"w"), 4, None))
    assert engine.version == 4
    run(found.submit([request(2)], None))
    run(found.update_weights({"names": ["w"]}, True, False, (5, None)))
    assert engine.version == 5, "no adapter is waited for where there was none"


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
    run(found.submit([request(1)], None))
    with pytest.raises(ValueError, match="no such tensor") as caught:
        run(found.fetch(OFFER, 4, [5, 6]))
    assert (found.engine.version, found.held) == (-1, -1)
    assert engine.asked[-2:] == [("abort", [1]), ("resume",)]
    engine.segments.append([segment(1, finish="abort")])
    assert [each.aborted for each in run(found.poll(0.1))] == [True] and len(run(found.collect(1))[1]) == 1
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
