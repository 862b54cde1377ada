"""Weight sync between real DeepSpeed policies and real vLLM engines: what arrives, what is used, what is noticed.

Pairs of policy and engine: `tied` (two ranks under ZeRO-3, one tensor for both embeddings), `untied` (one rank), and
with LoRA adapters `merged` (as tied) and `adapter` (as untied, a Llama), named after what is sent to the engine.
Faults are put into the engine's own process (`tests/faulty_engines.py`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors.config import LoraConfig, ModelConfig, ModelInit, OptimizerConfig, TrainerConfig
from actors.config_rollout import TransferConfig
from actors.episodes import Episode, Sequence
from actors.group import ActorGroup, GroupError, Slot
from actors.models.skeleton import write_skeleton
from actors.pulse import Pulse
from actors.rollout.types import BegunInfo, Request, Sampling
from actors.rollout.worker import CONCURRENCY
from actors.train.policy import PolicyWorker
from actors.train.worker import Totals
from actors.weights.broadcast_store import BroadcastStore
from actors.weights.store import sync
from actors.weights.verify import WeightSyncError
from algorithms.offline.sft import sft_loss
from launch.run.connection import Connection
from launch.run.groups import rebuild, start_building
from tests.faulty_engines import (
    CANARY,
    ROLLOUT,
    Engine,
    changed_in_transit,
    lost_in_transit,
    misnamed_adapter,
    stale_adapter,
    stale_head,
    stale_layer,
)

IDS = count()
"""Of requests."""


@dataclass
class Pair:
    """A policy and the engine that it publishes to."""

    policy: ActorGroup[PolicyWorker]
    rollout: ActorGroup[Engine]
    transfer: TransferConfig
    version: int = 0
    ended: dict[int, str] = field(default_factory=dict)
    """Requests that have ended, and why they were refused."""

    def publish(self, *, verify: bool = True) -> dict[str, float]:
        """Send the weights as the next version."""
        self.version += 1
        every = 1 if verify else self.version + 1
        store = BroadcastStore(policy=self.policy, canary=CANARY, verify_every=every)
        return sync(store, self.rollout, self.version, 1e-3)[1]

    def train(self) -> None:
        """One optimizer update that teaches random sequences."""
        generator = np.random.default_rng(self.version)
        mask = np.arange(40) > 0
        plan = [[Sequence(token_ids=generator.integers(0, 90, size=40), action_mask=mask) for _ in range(8)]]
        ranks = len(self.policy)
        totals = Totals(tokens=39 * 8 * ranks, sequences=8 * ranks, trained_tokens=39 * 8 * ranks)
        self.policy.call(PolicyWorker.learn, plan, totals, sft_loss)

    def checksums(self) -> dict[str, int]:
        """Of the policy's parameters."""
        return self.policy.call(PolicyWorker.checksums)[0]

    def received(self) -> dict[str, int]:
        """Checksums of what the engine received last."""
        return self.engine(Engine.worker_call, "received_checksums")[0]

    def engine(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method of the engine."""
        return self.rollout.call(method, *arguments)[0]

    def canary(self) -> np.ndarray:
        """The engine's logprobs of the canary."""
        return self.engine(Engine.canary)

    @contextmanager
    def broken(self, fault: Callable[..., Callable[[], None]], *arguments: Any) -> Iterator[None]:
        """The engine has a fault within the block."""
        self.engine(Engine.break_with, fault, *arguments)
        try:
            yield
        finally:
            self.engine(Engine.repair)

    def ask(self, prompts: list[list[int]], sampling: Sampling, seed: int | None) -> list[int]:
        """Start sampling responses to prompts; returns the ids of the requests."""
        requests = [Request(id=next(IDS), token_ids=prompt, sampling=sampling) for prompt in prompts]
        self.engine(Engine.submit, requests, seed)
        return [request.id for request in requests]

    def answers(self, requests: list[int]) -> list[list[Episode]]:
        """The responses to each of them, once all have ended; raises RuntimeError for one that is refused."""
        until = time.monotonic() + 60
        while set(requests) - self.ended.keys():
            assert time.monotonic() < until, "the requests do not end"
            self.ended |= {finished.request: finished.error for finished in self.engine(Engine.poll, 1.0)}
        for request in requests:
            if self.ended[request]:
                raise RuntimeError(self.ended[request])
        return [self.engine(Engine.collect, request)[1] for request in requests]

    def start(self, prompt: list[int], samples: int, max_tokens: int) -> list[int]:
        """Start sampling; see `answers`."""
        sampling = Sampling(samples=samples, temperature=ROLLOUT.temperature, max_tokens=max_tokens)
        return self.ask([prompt], sampling, None)

    def generate(self, prompt: list[int], samples: int = 4, max_tokens: int = 16) -> list[Episode]:
        """Responses to a prompt."""
        return self.answers(self.start(prompt, samples, max_tokens))[0]


@pytest.fixture(scope="module")
def pairs(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    """All pairs, connected, with nothing published yet."""
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
    started = {
        "tied": _start(True, 2, 3, slot, tmp_path_factory.mktemp("tied")),
        "untied": _start(False, 1, 0, slot, tmp_path_factory.mktemp("untied")),
        "merged": _start(True, 2, 3, slot, tmp_path_factory.mktemp("merged"), lora="merged"),
        "adapter": _start(False, 1, 0, slot, tmp_path_factory.mktemp("adapter"), lora="adapter", family="llama"),
    }
    building = []
    for pair in started.values():
        address, port = pair.policy.gather([pair.policy.submit(0, PolicyWorker.address)], "address")[0]
        ranks = range(len(pair.policy))
        building.append([pair.policy.submit(rank, PolicyWorker.build, address, port, 100) for rank in ranks])
    for pair, refs in zip(started.values(), building, strict=True):
        pair.policy.gather(refs, "build")
        pair.rollout.call(Engine.ready)
        pair.policy.call(PolicyWorker.connect, pair.rollout.handles, 1, "gloo", pair.transfer)
    yield started
    for pair in started.values():
        pair.rollout.shutdown()
        pair.policy.shutdown()
    remove_placement_group(placement)


def _start(
    tied: bool,
    ranks: int,
    zero_stage: int,
    slot: Slot,
    directory: Path,
    *,
    lora: Literal["merged", "adapter"] | None = None,
    family: Literal["qwen2", "llama"] = "qwen2",
) -> Pair:
    # 1.7 MB: more than one bucket.
    sizes: dict[str, Any] = {"hidden_size": 128, "layers": 2, "heads": 4, "kv_heads": 2, "max_positions": 512}
    model = ModelConfig(
        init=ModelInit(family=family, tie_embeddings=tied, **sizes),
        # The engine has buffers for rank 8.
        lora=LoraConfig(rank=6, alpha=20, rslora=lora == "merged") if lora else None,
    )
    config = ROLLOUT
    if lora:
        transfer = ROLLOUT.transfer.model_copy(update={"lora": lora})
        config = ROLLOUT.model_copy(update={"transfer": transfer})
    skeleton = str(write_skeleton(model, directory / "model"))
    group = TrainerConfig(zero_stage=zero_stage, optimizer=OptimizerConfig(lr=0.02), timeout_s=120)
    options: dict[str, Any] = {"timeout_s": 120, "log_directory": str(directory)}
    rollout = ActorGroup("rollout", Engine, [slot], concurrency=CONCURRENCY, **options)
    rollout.spawn(skeleton, config, model, "gloo", 0)
    policy = ActorGroup("policy", PolicyWorker, [slot] * ranks, **options)
    policy.spawn(model, skeleton, group, 0)
    return Pair(policy, rollout, config.transfer)


@pytest.fixture(params=["tied", "untied"])
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    """One pair after the other."""
    return pairs[request.param]


def test_every_tensor_changes_reaches_the_engine_and_is_used(pair: Pair) -> None:
    """After an update every parameter is another, the engine got just these, and both sides give equal logprobs."""
    first = pair.publish()
    before = pair.checksums()
    assert pair.received() == before
    pair.train()
    after = pair.checksums()
    assert [name for name in before if after[name] == before[name]] == []
    metrics = pair.publish()
    assert pair.received() == after
    assert max(first["weights/canary_difference"], metrics["weights/canary_difference"]) < 1e-4
    assert ("lm_head.weight" in after) == (len(pair.policy) == 1), "only the untied model has a head of its own"


def test_a_head_that_was_not_repacked_is_named(pairs: dict[str, Pair]) -> None:
    """Tied embeddings on CPU: all checksums agree, the canary does not, and single layers tell which tensor it is."""
    pair = pairs["tied"]
    pair.train()
    with (
        pair.broken(stale_head),
        pytest.raises(WeightSyncError, match=r"canary.*model\.embed_tokens\.weight \(in .*lm_head\)") as error,
    ):
        pair.publish()
    assert "model.layers" not in str(error.value), "the other layers are innocent"
    assert pair.publish()["weights/canary_difference"] < 1e-4


@pytest.mark.parametrize(
    ("layer", "tensor"),
    [("model.layers.1.mlp.down_proj", "model.layers.1.mlp.down_proj.weight"), ("lm_head", "lm_head.weight")],
)
def test_a_stale_layer_is_named(layer: str, tensor: str, pairs: dict[str, Pair]) -> None:
    """A layer whose packed copy keeps the old weights stops the run, although its tensor arrived."""
    pair = pairs["untied"]
    pair.train()
    with pair.broken(stale_layer, layer), pytest.raises(WeightSyncError, match=r"canary") as error:
        pair.publish()
    assert str(error.value).endswith(f": {tensor}")
    assert pair.publish()["weights/canary_difference"] < 1e-4


def test_a_tensor_changed_in_transit_is_named(pairs: dict[str, Pair]) -> None:
    """A change too small for any canary is found by its checksum."""
    pair, name = pairs["untied"], "model.layers.0.self_attn.o_proj.weight"
    with (
        pair.broken(changed_in_transit, name),
        pytest.raises(
            WeightSyncError,
            match=rf"^version {pair.version + 1}: 1 tensor.* at vLLM worker 0 of engine 0: {name}$",
        ),
    ):
        pair.publish()
    assert pair.publish()["weights/canary_difference"] < 1e-4


def test_the_seed_decides_what_is_sampled(pairs: dict[str, Pair]) -> None:
    """The same prompts under the same seed give the same tokens."""
    pair = pairs["untied"]
    pair.publish()
    sampling = Sampling(samples=4, temperature=1.0, max_tokens=12)

    def tokens(seed: int) -> list[list[int]]:
        groups = pair.answers(pair.ask([[5, 6, 7], [8, 9]], sampling, seed))
        return [_sampled(rollout) for group in groups for rollout in group]

    first = tokens(3)
    assert len(first) == 8
    assert tokens(3) == first != tokens(4)


def test_responses_are_sampled_as_rollout_says(pairs: dict[str, Pair]) -> None:
    """Filters and penalties reshape what is sampled, a stop token ends a response as the end-of-sequence token does,
    and arguments of `rollout.vllm` reach the engine."""
    pair, prompt = pairs["untied"], [5, 6, 7]
    pair.publish()

    def sampled(temperature: float = 0, **settings: Any) -> Episode:
        budget, end = pair.engine(Engine.sample_with, settings)
        assert budget == 777
        sampling = Sampling(samples=1, temperature=temperature, max_tokens=24)
        [[rollout]] = pair.answers(pair.ask([prompt], sampling, 0))
        assert end not in _sampled(rollout)
        return rollout

    greedy = sampled()
    tokens = _sampled(greedy)
    assert (greedy.status, len(tokens)) == ("truncated", 24)

    last = tokens.index(tokens[9])
    stopped = sampled(stop_token_ids=[tokens[9]])
    assert _sampled(stopped) == tokens[: last + 1], "the token that ends it is kept, with its logprob"
    assert (stopped.turns[0].finish_reason, stopped.status, len(stopped.turns[0].rollout_logprobs)) == (
        "stop",
        "ok",
        last + 1,
    )
    assert stopped.text == greedy.text[: len(stopped.text)] and len(stopped.text) < len(greedy.text)

    said = greedy.text[4:6]
    before = greedy.text.partition(said)[0]
    ended = sampled(stop=[said])
    assert (ended.text, ended.turns[0].finish_reason, ended.status) == (before, "stop", "ok")
    assert _sampled(ended) == tokens[: ended.sampled_tokens], "the string's tokens are trained on"
    assert len(ended.turns[0].rollout_logprobs) == ended.sampled_tokens > len(before)
    assert sampled(stop=[said], keep_stop_string=True).text == before + said

    likeliest = sampled(1.0, min_p=1.0)
    assert _sampled(likeliest) == tokens != _sampled(sampled(1.0))
    assert likeliest.turns[0].rollout_logprobs.tolist() == pytest.approx([0] * 24), "of the one token that is left"

    assert len(set(_sampled(sampled(presence_penalty=2.0)))) == 24
    assert len(set(_sampled(sampled(presence_penalty=-2.0)))) == 1
    unused = _sampled(sampled(repetition_penalty=1000.0))
    assert len({*prompt, *unused}) == len(prompt) + 24, "no token of prompt or response comes again"
    sampled()


def test_a_refused_prompt_fails_alone(pairs: dict[str, Pair]) -> None:
    """A prompt that the engine cannot take is refused; its neighbour is answered."""
    pair = pairs["untied"]
    sampling = Sampling(samples=1, temperature=1.0, max_tokens=4)
    too_long, good = pair.ask([[5] * 600, [8, 9]], sampling, 0)
    assert [len(group) for group in pair.answers([good])] == [1]
    with pytest.raises(RuntimeError, match="600"):
        pair.answers([too_long])


def test_an_aborted_request_gives_what_it_has(pairs: dict[str, Pair]) -> None:
    """Tokens so far, each with its logprob and version, as a request that is let be goes on; what has ended, or is not
    known, is not aborted."""
    pair = pairs["untied"]
    pair.publish()
    sampling = Sampling(samples=3, temperature=1.0, max_tokens=400)
    cut, whole = pair.ask([[5, 6, 7], [8, 9]], sampling, 5)
    _let_run(pair)
    pair.engine(Engine.abort, [cut, 10**9], True)
    [part] = pair.answers([cut])
    stats = pair.engine(Engine.stats)
    assert (stats.running, stats.waiting, stats.version, stats.lost) == (3, 0, pair.version, "")
    [rest] = pair.answers([whole])
    pair.engine(Engine.abort, [whole])
    assert any(rollout.turns[0].finish_reason == "abort" for rollout in part)
    for rollout in part:
        tokens, [turn] = rollout.sampled_tokens, rollout.turns
        assert 0 < tokens < 400
        assert [(span.version, span.start, span.end) for span in turn.versions] == [(pair.version, 0, tokens)]
        assert rollout.status == ("failed" if turn.finish_reason == "abort" else "ok")
    assert {rollout.status for rollout in rest} <= {"ok", "truncated"}
    again, _ = pair.answers(pair.ask([[5, 6, 7], [8, 9]], sampling, 5))
    for before, after in zip(part, again, strict=True):
        assert _sampled(after)[: before.sampled_tokens] == _sampled(before)


def test_what_runs_tells_what_it_has_and_goes_on_on_another_engine(pairs: dict[str, Pair]) -> None:
    """Here and there the weights are others: each token keeps the version of those that sampled it."""
    here, there = pairs["untied"], pairs["tied"]
    here.publish()
    there.publish()
    if here.version == there.version:
        there.publish()
    sampling = Sampling(samples=3, temperature=1.0, max_tokens=400)
    [asked] = here.ask([[5, 6, 7]], sampling, 5)
    _let_run(here)
    told, begun, nothing = here.engine(Engine.progress, [asked, 10**9])
    assert told == {asked: tuple(map(BegunInfo.of, begun))} and len(begun) == 3 and nothing is None
    [group] = here.answers([asked])
    for sample, rollout in zip(begun, group, strict=True):
        assert len(sample.token_ids) > 0 and sample.token_ids.tolist() == _sampled(rollout)[: len(sample.token_ids)]
    longest = max(len(sample.token_ids) for sample in begun)
    limit = Sampling(samples=3, temperature=1.0, max_tokens=longest + 20)
    request = Request(id=next(IDS), token_ids=[5, 6, 7], sampling=limit, begun=begun)
    there.engine(Engine.submit, [request], None)
    for sample, rollout in zip(begun, there.answers([request.id])[0], strict=True):
        had, [turn], tokens = len(sample.token_ids), rollout.turns, rollout.sampled_tokens
        spans = [(span.version, span.start, span.end) for span in turn.versions]
        assert _sampled(rollout)[:had] == sample.token_ids.tolist() and turn.given_token_ids.tolist() == [5, 6, 7]
        assert turn.rollout_logprobs[:had].tolist() == sample.logprobs.tolist()
        if sample.finish is None:
            assert spans == [(here.version, 0, had), (there.version, had, tokens)] and rollout.status != "failed"
        else:
            assert spans == [(here.version, 0, had)]


def test_an_engine_tells_how_it_is_while_its_thread_works(pairs: dict[str, Pair]) -> None:
    """Beside the thread: also while a step hangs, and then it says for how long."""
    pair = pairs["untied"]
    pair.publish()
    before = pair.engine(Engine.stats)
    assert (before.running, before.slots, before.silent_s) == (0, ROLLOUT.max_concurrent, 0)
    assert before.cache_used is not None and before.preemptions is not None
    asked = pair.start([5, 6, 7], samples=4, max_tokens=300)
    _let_run(pair)
    hanging = pair.rollout.submit(0, Engine.hang, 1.5)
    time.sleep(0.7)
    during = pair.engine(Engine.stats)
    assert during.running == 4 and 0 < during.cache_used <= 1 and 0.3 < during.silent_s < 1.6
    assert not ray.wait([hanging], timeout=0)[0], "it was hanging all the time"
    generated = sum(rollout.sampled_tokens for rollout in pair.answers(asked)[0])
    after = pair.engine(Engine.stats)
    assert after.generated_tokens == before.generated_tokens + generated and after.running == 0
    ray.get(hanging, timeout=60)


def test_paused_requests_are_kept(pair: Pair) -> None:
    """Nothing is generated during a pause, and everything that was running ends after it. The engine counts its
    seconds, each once, and the tokens of what it keeps."""
    began = time.monotonic()
    before, known = pair.engine(Engine.stats), time.monotonic()
    asked = pair.start([5, 6, 7], samples=16, max_tokens=400)
    _let_run(pair)
    pair.engine(Engine.pause)
    stopped = pair.engine(Engine.stats)
    assert pair.engine(Engine.poll, 1.0) == []
    paused = pair.engine(Engine.stats)
    assert paused.paused_s - stopped.paused_s >= 1.0
    assert (paused.busy_s, paused.sampled_tokens) == (stopped.busy_s, stopped.sampled_tokens)
    assert paused.sampled_tokens > paused.generated_tokens >= before.generated_tokens, "one may have ended"
    pair.engine(Engine.resume)
    [rollouts] = pair.answers(asked)
    assert len(rollouts) == 16
    ends = time.monotonic()
    after, ended = pair.engine(Engine.stats), time.monotonic()
    assert after.sampled_tokens == after.generated_tokens
    assert after.sampled_tokens - before.sampled_tokens == sum(rollout.sampled_tokens for rollout in rollouts)
    assert after.busy_s > paused.busy_s and after.underfilled_s > before.underfilled_s, "in the end only few are left"
    counted = [each.idle_s + each.busy_s + each.paused_s for each in (before, after)]
    assert ends - known <= counted[1] - counted[0] <= ended - began
    assert {rollout.status for rollout in rollouts} <= {"ok", "truncated"}
    assert {span.version for rollout in rollouts for span in rollout.turns[0].versions} == {pair.version}


def test_running_requests_continue_with_new_weights(pairs: dict[str, Pair], tmp_path: Path) -> None:
    """Sequences that a publish overtakes go on; their spans tell which tokens came from which weights, and each
    token's logprob is that of the exported model of its version: keys and values of old weights are not used."""
    _assert_continued(pairs["untied"], tmp_path)


def _assert_continued(pair: Pair, tmp_path: Path) -> None:
    pair.publish()
    pair.policy.call(PolicyWorker.export, tmp_path / str(pair.version))
    pair.train()
    asked = pair.start([5, 6, 7], samples=32, max_tokens=400)
    _let_run(pair)
    pair.publish()
    pair.policy.call(PolicyWorker.export, tmp_path / str(pair.version))
    [rollouts] = pair.answers(asked)
    crossing = [rollout for rollout in rollouts if len(rollout.turns[0].versions) == 2]
    assert crossing, "the publish came before or after all of the generation"
    for rollout in rollouts:
        spans = rollout.turns[0].versions
        assert [span.start for span in spans] == [0, *[span.end for span in spans[:-1]]]
        assert spans[-1].end == rollout.sampled_tokens
        assert [span.version for span in spans] in ([pair.version - 1], [pair.version - 1, pair.version])
    for span, old_or_new in enumerate((pair.version - 1, pair.version)):
        _assert_sampled_by(tmp_path / str(old_or_new), crossing[:4], span)


def test_nothing_is_sampled_after_a_transfer_that_failed_half_way_until_the_next_one(pairs: dict[str, Pair]) -> None:
    """Some layers have new weights and others have not; what ran ends with what it has, and the cause reaches the
    driver."""
    pair, name = pairs["untied"], "model.layers.1.input_layernorm.weight"
    asked = pair.start([5, 6, 7], samples=16, max_tokens=400)
    _let_run(pair)
    with pair.broken(lost_in_transit, name), pytest.raises(GroupError, match=f"lost while receiving {name}"):
        pair.publish()
    [ended] = pair.answers(asked)
    assert "abort" in {rollout.turns[-1].finish_reason for rollout in ended}, "some were running"
    with pytest.raises(GroupError, match="asked to generate before"):
        pair.generate([5, 6, 7])
    pair.publish()
    assert {rollout.status for rollout in pair.generate([5, 6, 7])} <= {"ok", "truncated"}


@pytest.mark.parametrize("name", ["merged", "adapter"])
def test_lora_reaches_the_engine(name: str, pairs: dict[str, Pair], tmp_path: Path) -> None:
    """After some updates both sides give equal logprobs, for each version; what is exported is what was sampled from.

    The adapters matter: logprobs move from version to version by more than the tolerance of the canary.
    """
    pair = pairs[name]
    differences = [pair.publish()["weights/canary_difference"]]
    base = pair.canary()
    for _ in range(3):
        pair.train()
        differences.append(pair.publish()["weights/canary_difference"])
    assert max(differences) < 1e-4
    assert np.abs(pair.canary() - base).max() > 1e-2
    pair.policy.call(PolicyWorker.export, tmp_path / "export")
    _assert_sampled_by(tmp_path / "export", pair.generate([5, 6, 7], max_tokens=40), 0)
    _assert_adapter_on(name, pairs, tmp_path / "export")


def _assert_adapter_on(name: str, pairs: dict[str, Pair], export: Path) -> None:
    """The exported adapter on the initial weights answers like the merged export."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    initial = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(export), dtype=torch.float32)
    tokens = torch.tensor([CANARY])
    with torch.no_grad():
        base = initial(tokens).logits
        whole = AutoModelForCausalLM.from_pretrained(export)(tokens).logits
        adapted = PeftModel.from_pretrained(initial, str(export / "adapter"))(tokens).logits
    assert (adapted - whole).abs().max() < 1e-4 < 1e-2 < (base - whole).abs().max()


def test_after_the_first_time_only_adapters_travel(pairs: dict[str, Pair]) -> None:
    """Whole weights are sent once: a fault in their transfer does no harm later, and the version goes on."""
    pair = pairs["adapter"]
    pair.publish()
    pair.train()
    with pair.broken(lost_in_transit, "model.norm.weight"):
        pair.publish()
    rollouts = pair.generate([5, 6, 7])
    assert {span.version for rollout in rollouts for span in rollout.turns[0].versions} == {pair.version}


@pytest.mark.parametrize(
    ("fault", "arguments", "message"),
    [
        (misnamed_adapter, ("layers",), r"adapters of 0 of 14 layers; not with those of model\.layers\.0\.self_attn"),
        (
            misnamed_adapter,
            ("layers.1.self_attn.k_proj",),
            r"adapters of 13 of 14 layers; not with those of model\.layers\.1\.self_attn\.k_proj$",
        ),
        (
            stale_adapter,
            ("model.layers.0.mlp.gate_up_proj",),
            r"12 of 14 layers; not with those of model\.layers\.0\.mlp\.gate_proj, model\.layers\.0\.mlp\.up_proj$",
        ),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_an_adapter_that_binds_too_little_is_refused(
    fault: Callable[..., Any], arguments: tuple[str, ...], message: str, verify: bool, pairs: dict[str, Pair]
) -> None:
    """Whether the transfer is to be verified or not, the layers that compute without their adapter are named."""
    pair = pairs["adapter"]
    pair.publish()
    pair.train()
    with pair.broken(fault, *arguments), pytest.raises(WeightSyncError, match=rf"^version .*{message}"):
        pair.publish(verify=verify)
    assert {rollout.status for rollout in pair.generate([5, 6, 7])} <= {"ok", "truncated"}
    assert pair.publish()["weights/canary_difference"] < 1e-4


def test_running_requests_continue_with_a_new_adapter(pairs: dict[str, Pair], tmp_path: Path) -> None:
    """As with whole weights: each token's logprob is that of the exported model of its version."""
    _assert_continued(pairs["adapter"], tmp_path)


def test_weights_may_come_again_below_an_adapter_in_use(pairs: dict[str, Pair], tmp_path: Path) -> None:
    """As when engines are met anew since one was lost: what runs ends with what the adapter has sampled, and what
    comes later has the next one."""
    pair = pairs["adapter"]
    pair.publish()
    pair.policy.call(PolicyWorker.export, tmp_path / "old")
    pair.train()
    asked = pair.start([5, 6, 7], samples=16, max_tokens=400)
    _let_run(pair)
    pair.policy.call(PolicyWorker.connect, pair.rollout.handles, 1, "gloo", pair.transfer)
    assert pair.publish()["weights/canary_difference"] < 1e-4
    [ended] = pair.answers(asked)
    assert "abort" in {rollout.turns[-1].finish_reason for rollout in ended}, "some were running"
    assert {span.version for rollout in ended for span in rollout.turns[0].versions} == {pair.version - 1}
    _assert_sampled_by(tmp_path / "old", ended[:4], 0)
    pair.policy.call(PolicyWorker.export, tmp_path / "new")
    later = pair.generate([5, 6, 7])
    assert {span.version for rollout in later for span in rollout.turns[0].versions} == {pair.version}
    _assert_sampled_by(tmp_path / "new", later, 0)


def test_an_engine_answers_pulses_while_it_generates(pairs: dict[str, Pair]) -> None:
    """Not between its steps, as control calls are, but also within one; and how many it has made."""
    pair = pairs["untied"]
    [idle] = pair.rollout.pulses(30)
    assert isinstance(idle, Pulse) and idle.method is None
    asked = pair.start([5, 6, 7], samples=16, max_tokens=400)
    _let_run(pair)
    seen = [pulse for _ in range(50) for pulse in pair.rollout.pulses(30) if isinstance(pulse, Pulse)]
    assert len(seen) == 50 and "step" in {pulse.method for pulse in seen}
    assert idle.done < seen[0].done < seen[-1].done
    assert pair.engine(Engine.stats).running, "the generation was over: the pulses prove nothing"
    pair.answers(asked)


def test_whoever_is_replaced_is_connected_anew(pairs: dict[str, Pair]) -> None:
    """A rank of the policy, whose group then begins anew, and an engine: weights arrive, and are used, as before."""
    pair = pairs["tied"]
    rollout = ROLLOUT.model_copy(update={"transfer": pair.transfer.model_copy(update={"backend": "gloo"})})
    config: Any = SimpleNamespace(rollout=rollout)
    connection = Connection(config, {"policy": pair.policy, "rollout": pair.rollout})
    connection.ensure()
    pair.policy.replace(1)
    rebuild((pair.policy, partial(start_building, total_updates=100)))
    connection.ensure()
    pair.train()
    assert pair.publish()["weights/canary_difference"] < 1e-4
    pair.rollout.replace(0)
    pair.engine(Engine.ready)
    connection.ensure()
    assert pair.publish()["weights/canary_difference"] < 1e-4
    assert pair.received() == pair.checksums()
    assert {span.version for episode in pair.generate([5, 6, 7]) for span in episode.turns[0].versions} == {
        pair.version
    }


def _let_run(pair: Pair) -> None:
    """Return when requests have been running for some steps: each answer comes from between two steps."""
    for _ in range(200):
        if pair.engine(Engine.running):
            break
    assert all(pair.engine(Engine.running) for _ in range(5)), "the generation is too short for this test"


def _sampled(rollout: Episode) -> list[int]:
    """What the engine has sampled, of one turn."""
    return rollout.turns[0].sampled_token_ids.tolist()


def _assert_sampled_by(directory: Path, rollouts: list[Episode], span: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    for rollout in rollouts:
        tokens, [turn] = torch.from_numpy(rollout.token_ids)[None], rollout.turns
        with torch.no_grad():
            logprobs = (model(tokens).logits[0] / ROLLOUT.temperature).log_softmax(-1)
        start = len(rollout.prompt_token_ids)
        expected = logprobs[start - 1 : -1].gather(1, tokens[0, start:, None])[:, 0].numpy()
        part = slice(turn.versions[span].start, turn.versions[span].end)
        np.testing.assert_allclose(turn.rollout_logprobs[part], expected[part], rtol=0, atol=1e-4)
