"""What becomes of responses that run when new weights come: under each rollout.on_update, with a real policy and a real
vLLM engine, for whole weights and for adapters; and which requests end as too old.

`tests/test_sync.py` has rollout.on_update recompute, `tests/test_holder.py` engines that fetch.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray.util.placement_group import placement_group, remove_placement_group

from actors.episodes import Episode
from actors.group import GroupError, Slot
from actors.rollout.types import Finished
from actors.train.policy import PolicyWorker
from tests.faulty_engines import ROLLOUT, Engine
from tests.test_sync import Pair, _let_run, _start

PROMPT = [(11 + 7 * position) % 90 for position in range(300)]
"""Longer than two blocks of the cache: a part of it is found there by whatever begins alike under the same salt."""


@pytest.fixture(scope="module")
def pairs(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
    started = {
        "whole": _start(False, 1, 0, slot, tmp_path_factory.mktemp("whole")),
        "adapter": _start(False, 1, 0, slot, tmp_path_factory.mktemp("adapter"), lora="adapter", family="llama"),
    }
    building = []
    for pair in started.values():
        address, port = pair.policy.gather([pair.policy.submit(0, PolicyWorker.address)], "address")[0]
        building.append([pair.policy.submit(0, PolicyWorker.build, address, port, 100)])
    for pair, refs in zip(started.values(), building, strict=True):
        pair.policy.gather(refs, "build")
        pair.rollout.call(Engine.ready)
        pair.policy.call(PolicyWorker.connect, pair.rollout.handles, 1, "gloo", pair.transfer)
    yield started
    for pair in started.values():
        pair.rollout.shutdown()
        pair.policy.shutdown()
    remove_placement_group(placement)


def overtaken(pair: Pair, exports: Path) -> tuple[list[Episode], list[Episode], list[Episode], int]:
    """Responses to one prompt that new weights find running; that were submitted before and began after; that were
    submitted after. And the tokens that the first of these had by then."""
    pair.publish()
    pair.policy.call(PolicyWorker.export, exports / "old")
    pair.train()
    going = pair.start(PROMPT, samples=12, max_tokens=200)
    _let_run(pair)
    pair.engine(Engine.pause)
    waiting = pair.start(PROMPT, samples=2, max_tokens=40)
    tokens = pair.engine(Engine.tokens_so_far)
    pair.publish()
    new = pair.start(PROMPT, samples=2, max_tokens=40)
    pair.policy.call(PolicyWorker.export, exports / "new")
    found = pair.answers([*going, *waiting, *new])
    assert pair.engine(Engine.left) == [0, 0, 0]
    assert {episode.status for episodes in found for episode in episodes} <= {"ok", "truncated"}
    return found[0], found[1], found[2], tokens


def spans(episode: Episode) -> list[tuple[int, int, int]]:
    return [(span.version, span.start, span.end) for span in episode.turns[0].versions]


def differences(export: Path, episode: Episode) -> np.ndarray:
    """Of each token's logprob from that of an exported model which reads the whole sequence, [R]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(export)
    tokens, start = torch.from_numpy(episode.token_ids)[None], len(episode.prompt_token_ids)
    with torch.no_grad():
        logprobs = (model(tokens).logits[0] / ROLLOUT.temperature).log_softmax(-1)
    expected = logprobs[start - 1 : -1].gather(1, tokens[0, start:, None])[:, 0].numpy()
    return np.abs(episode.turns[0].rollout_logprobs - expected)


def assert_sampled_by(export: Path, episodes: list[Episode], version: int) -> None:
    """By the weights of this version alone, which is exported."""
    for episode in episodes:
        assert spans(episode) == [(version, 0, episode.sampled_tokens)]
        assert differences(export, episode).max() < 1e-4


@pytest.mark.parametrize("name", ["whole", "adapter"])
def test_with_recompute_tokens_after_an_update_are_those_of_the_new_weights(
    name: str, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    pair = pairs[name]
    pair.engine(Engine.update_as, "recompute")
    going, waiting, new, tokens = overtaken(pair, tmp_path)
    crossing = [episode for episode in going if len(spans(episode)) == 2]
    assert len(crossing) > 2 and tokens > 0
    for episode in crossing[:3]:
        (old, _, cut), (newer, _, _) = spans(episode)
        assert (old, newer) == (pair.version - 1, pair.version)
        assert differences(tmp_path / "old", episode)[:cut].max() < 1e-4
        assert differences(tmp_path / "new", episode)[cut:].max() < 1e-4
    assert_sampled_by(tmp_path / "new", waiting + new, pair.version)


@pytest.mark.parametrize("name", ["whole", "adapter"])
def test_with_keep_cache_running_requests_alone_use_what_old_weights_have_left(
    name: str, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    """Their tokens go on, each under its version, with logprobs that neither weights alone give; others of the same
    prompt, whose keys and values are there, have those of the new weights."""
    pair = pairs[name]
    pair.engine(Engine.update_as, "keep_cache")
    going, waiting, new, _ = overtaken(pair, tmp_path)
    crossing = [episode for episode in going if len(spans(episode)) == 2]
    assert len(crossing) > 2
    for episode in crossing[:3]:
        (old, start, cut), (newer, middle, end) = spans(episode)
        assert (old, newer, start, middle, end) == (pair.version - 1, pair.version, 0, cut, episode.sampled_tokens)
        assert differences(tmp_path / "old", episode)[:cut].max() < 1e-4
        for export in ("old", "new"):
            assert 1e-2 < differences(tmp_path / export, episode)[cut:].max() < 100
    assert_sampled_by(tmp_path / "new", waiting + new, pair.version)


@pytest.mark.parametrize("name", ["whole", "adapter"])
def test_with_restart_every_response_is_of_one_version(name: str, pairs: dict[str, Pair], tmp_path: Path) -> None:
    """And whole; what was thrown away is counted."""
    pair = pairs[name]
    pair.engine(Engine.update_as, "restart")
    before = pair.engine(Engine.stats)
    going, waiting, new, tokens = overtaken(pair, tmp_path)
    after = pair.engine(Engine.stats)
    assert after.discarded_tokens - before.discarded_tokens == tokens > 0
    sampled = sum(episode.sampled_tokens for episode in going + waiting + new)
    assert after.generated_tokens - before.generated_tokens == sampled
    restarted = [episode for episode in going if spans(episode)[0][0] == pair.version]
    assert len(restarted) > 2 and {len(spans(episode)) for episode in going} == {1}
    assert_sampled_by(tmp_path / "new", [*restarted[:3], *waiting, *new], pair.version)


def finished(pair: Pair, requests: list[int]) -> list[Finished]:
    """What the engine tells of these when they have ended; it tells of no others."""
    found: dict[int, Finished] = {}
    until = time.monotonic() + 60
    while found.keys() != set(requests):
        assert time.monotonic() < until and found.keys() < set(requests)
        found |= {each.request: each for each in pair.engine(Engine.poll, 1.0)}
    return [found[request] for request in requests]


@pytest.mark.parametrize("on_update", ["recompute", "keep_cache", "restart"])
def test_requests_with_tokens_of_older_weights_are_aborted(on_update: str, pairs: dict[str, Pair]) -> None:
    """Not those that were submitted as early and had none by then, nor any that have begun anew. What they had is not
    kept."""
    pair = pairs["whole"]
    pair.engine(Engine.update_as, on_update)
    pair.publish()
    [old] = pair.start(PROMPT, samples=3, max_tokens=200)
    _let_run(pair)
    pair.engine(Engine.pause)
    [waiting] = pair.start([8, 9], samples=2, max_tokens=200)
    pair.publish()
    pair.engine(Engine.abort_older, pair.version - 1)
    _let_run(pair)
    pair.engine(Engine.abort_older, pair.version)
    told, of_waiting = finished(pair, [old, waiting])
    assert told.aborted == (on_update != "restart") and not of_waiting.aborted
    assert {info.oldest_version for info in of_waiting.infos} == {pair.version}
    assert len(told.infos) == 3 and min(info.sampled_tokens for info in told.infos) > 0
    assert {info.oldest_version for info in told.infos} == {pair.version - told.aborted}
    kept = [old, waiting] if not told.aborted else [waiting]
    for request in kept:
        assert {
            span.version for each in pair.engine(Engine.collect, request)[1] for span in each.turns[0].versions
        } == {pair.version}
    assert pair.engine(Engine.left) == [0, 0, 0]
    with pytest.raises(GroupError, match="KeyError"):
        pair.engine(Engine.collect, old)
