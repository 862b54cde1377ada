"""What a publisher sends, in which order, and what it says of engines that disagree: a real model with and without
adapters, a transfer that yields to a list, and engines that are a script. No Ray, no vLLM."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from transformers import LlamaConfig, LlamaForCausalLM

from actors.config import LoraConfig
from actors.config_rollout import TransferConfig
from actors.models.lora import adapter_config, adapter_state, add_adapters
from actors.weights import publisher as module
from actors.weights.checksum import checksum
from actors.weights.gloo_sender import Meta
from actors.weights.probe import trainer_answers
from actors.weights.publisher import Comparison, Publisher, WeightSyncError, open_transfer

SIZES: dict[str, Any] = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
CANARY = [3, 1, 4]
ACCOUNTS = ["the engines' accounts"]


class Client:
    """Of two engines; notes what is asked of it."""

    def __init__(self) -> None:
        self.handles = ["one", "other"]
        self.version = -1
        self.canary: list[int] | None = None
        self.accounts: Any = ACCOUNTS
        self.asked: list[Any] = []

    def resume(self) -> None:
        self.asked.append("resume")

    def load_adapter(self, adapter: Any) -> list[str]:
        self.asked.append(adapter)
        return ["loading"]

    def loaded(self, references: list[str]) -> None:
        self.asked.append(references)

    def probe(self, seed: int) -> Any:
        self.asked.append(seed)
        return self.probes


class Transfer:
    """Takes what the source yields; fails if told so."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.sent: list[list[tuple[str, torch.Tensor]]] = []
        self.fails = False

    def send_weights(self) -> None:
        self.sent.append(list(self.source))
        if self.fails:
            raise RuntimeError("lost")


class Made:
    """A publisher and its surroundings."""

    def __init__(self, patch: pytest.MonkeyPatch, *, lora: str | None = None, rank: int = 0, parallel: int = 1) -> None:
        torch.manual_seed(0)
        self.model: Any = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **SIZES))
        self.plain = {name: tensor.detach().clone() for name, tensor in self.model.named_parameters()}
        if lora:
            add_adapters(self.model, LoraConfig(rank=2), seed=1)
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter)
        self.client = Client()
        self.opened: Any = None
        patch.setattr(module, "open_transfer", self.open)
        self.publisher = Publisher(
            SimpleNamespace(module=SimpleNamespace(model=self.model)),  # type: ignore[arg-type]
            self.logprobs,
            self.client,  # type: ignore[arg-type]
            parallel,
            "gloo",
            TransferConfig(lora=lora or "adapter", bucket_mib=3, timeout_s=44),  # type: ignore[arg-type]
            rank,
            ("10.0.0.7", 5555),
        )

    def open(self, backend: str, **settings: Any) -> Transfer:
        self.opened = (backend, settings)
        self.transfer = Transfer(settings["source"])
        return self.transfer

    def logprobs(self, tokens: list[int]) -> np.ndarray:
        """Of the model as it computes now, with adapters or without."""
        with torch.no_grad():
            logits = self.model(torch.tensor([tokens])).logits[0, :-1]
        return logits.log_softmax(-1)[range(len(tokens) - 1), tokens[1:]].numpy()


@pytest.mark.parametrize(("rank", "parallel"), [(0, 1), (1, 3)])
def test_a_transfer_is_opened_with_all_its_settings(monkeypatch: pytest.MonkeyPatch, rank: int, parallel: int) -> None:
    made = Made(monkeypatch, rank=rank, parallel=parallel)
    assert made.opened == (
        "gloo",
        {
            "rank": rank,
            "world_size": 1 + 2 * parallel,
            "address": "10.0.0.7",
            "port": 5555,
            "bucket_bytes": 3 * 2**20,
            "timeout_s": 44,
            "client": made.client,
            "source": made.publisher.source,
        },
    )
    assert made.publisher.source.metadata() == [
        Meta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in made.plain.items()
    ]
    assert made.publisher.sent_weights is False and made.publisher.compare() == 0.0
    assert made.publisher.source.canary is None and made.publisher.source.sent == {}
    assert made.publisher.source.canary_logprobs.dtype == np.float32 and len(made.publisher.source.canary_logprobs) == 0
    assert made.publisher.source.merge_error.value == 0.0


def test_whole_weights_go_each_time_and_both_sides_account_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch)
    for version, canary in ((4, CANARY), (5, None), (6, CANARY)):
        assert 0 <= made.publisher.send(version, canary) < 60
        sent = dict(made.transfer.sent[-1])
        assert sent.keys() == made.plain.keys() and all(sent[name].equal(made.plain[name]) for name in sent)
        assert (made.client.version, made.client.canary, made.publisher.sent_weights) == (version, canary, True)
        compared = made.publisher.comparisons
        assert len(compared) == (0 if canary is None else 1)
        assert made.publisher.source.sent == (
            {} if canary is None else {name: checksum(tensor) for name, tensor in made.plain.items()}
        )
    assert compared[0].accounts is ACCOUNTS and compared[0].sent == made.publisher.source.sent
    np.testing.assert_array_equal(compared[0].canary_logprobs, made.logprobs(CANARY))
    assert len(made.transfer.sent) == 3 and made.client.asked == []


def test_other_ranks_help_and_account_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compute the canary's logprobs too, which is collective, and take no checksums."""
    made = Made(monkeypatch, rank=1)
    made.publisher.send(4, CANARY)
    assert len(made.transfer.sent) == 1 and made.publisher.comparisons == [] and made.publisher.source.sent == {}
    np.testing.assert_array_equal(made.publisher.source.canary_logprobs, made.logprobs(CANARY))
    adapters = Made(monkeypatch, lora="adapter", rank=1)
    adapters.publisher.send(4, CANARY)
    assert adapters.publisher.comparisons == [] and adapters.client.asked == []


@pytest.mark.parametrize("rank", [0, 1])
def test_engines_go_on_after_a_transfer_that_failed_and_whole_weights_go_again(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    made = Made(monkeypatch, lora="adapter", rank=rank)
    made.transfer.fails = True
    with pytest.raises(RuntimeError, match=r"^lost$"):
        made.publisher.send(4, CANARY)
    assert made.client.asked == (["resume"] if rank == 0 else [])
    assert made.publisher.comparisons == [] and made.publisher.sent_weights is False


def test_the_base_goes_once_and_then_adapters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, lora="adapter")
    state = adapter_state(made.model, module.gathered, keep=True)
    received = {name: checksum(tensor) for name, tensor in state.items()}
    made.client.accounts = [([received], np.zeros(2)), None]
    for version, canary in ((4, CANARY), (5, CANARY), (6, None)):
        made.publisher.send(version, canary)
        assert [len(each.sent) for each in made.publisher.comparisons] == (
            [len(made.plain), len(state)] if version == 4 else [len(state)] if canary else []
        )
        if version == 4:
            base, adapter = made.publisher.comparisons
    assert len(made.transfer.sent) == 1 and all(t.equal(made.plain[n]) for n, t in made.transfer.sent[0])
    assert base.sent == {name: checksum(tensor) for name, tensor in made.plain.items()} and adapter.sent == received
    assert base.accounts is adapter.accounts is made.client.accounts
    with_adapters = made.logprobs(CANARY)
    np.testing.assert_array_equal(adapter.canary_logprobs, with_adapters)
    assert np.abs(base.canary_logprobs - with_adapters).max() > 1e-3
    assert len(made.client.asked) == 6 and made.client.asked[1::2] == [["loading"]] * 3
    for loaded in made.client.asked[::2]:
        assert loaded.config == adapter_config(made.model, None)
        assert {name: checksum(tensor) for name, tensor in load(loaded.weights).items()} == received


def test_merged_weights_hold_the_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, lora="merged")
    made.publisher.send(4, CANARY)
    made.publisher.send(5, CANARY)
    assert len(made.transfer.sent) == 2 and made.client.asked == []
    sent = dict(made.transfer.sent[-1])
    changed = {name for name, tensor in sent.items() if not tensor.equal(made.plain[name])}
    assert changed == {name for name in made.plain if "_proj" in name}
    [compared] = made.publisher.comparisons
    np.testing.assert_array_equal(compared.canary_logprobs, made.logprobs(CANARY))
    assert made.publisher.source.merge_error.change > 0 and made.publisher.merge_error() == 0.0


LAYERS = {f"base_model.model.{layer}.lora_{which}.weight": 7 for layer in ("a.q", "b.v") for which in "AB"}


@pytest.mark.parametrize(
    ("sent", "changes", "told"),
    [
        (LAYERS, {}, None),
        (LAYERS, {"base_model.model.b.v.lora_B.weight": 8}, "1 of 2 layers; not with those of b.v"),
        (LAYERS, dict.fromkeys(LAYERS, None), "0 of 2 layers; not with those of a.q, b.v"),
        ({}, {}, "0 of 0 layers; not with those of any"),
    ],
)
def test_layers_that_compute_without_their_adapters_are_named(
    monkeypatch: pytest.MonkeyPatch, sent: dict[str, int], changes: dict[str, Any], told: str | None
) -> None:
    publisher = Made(monkeypatch).publisher
    publisher.client.version = 9
    accounts: Any = [None, ([sent, sent | changes], np.zeros(2))]
    comparison = Comparison(accounts, sent, np.zeros(2))
    if told is None:
        publisher._check_bound(comparison)
        return
    worker = 1 if sent else 0
    with pytest.raises(WeightSyncError) as caught:
        publisher._check_bound(comparison)
    assert str(caught.value) == f"version 9: vLLM worker {worker} computes with the adapters of {told}"


def test_a_send_whose_adapter_is_not_used_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, lora="adapter")
    made.client.accounts = [([{}], np.zeros(2))]
    with pytest.raises(WeightSyncError, match=r"^version 4: vLLM worker 0 computes with the adapters of 0 of 7 layers"):
        made.publisher.send(4, None)


@pytest.mark.parametrize(
    ("given", "dtype", "allowed"), [(None, "fp32", 1e-3), (None, "bf16", 0.15), (0.5, "fp32", 0.5)]
)
def test_the_canary_may_differ_by_so_much(
    monkeypatch: pytest.MonkeyPatch, given: float | None, dtype: Any, allowed: float
) -> None:
    publisher = Made(monkeypatch).publisher
    publisher.config = TransferConfig(canary_tolerance=given)
    assert publisher.tolerance(dtype) == allowed
    publisher.client.version = 3
    publisher.comparisons = [Comparison([([{"a": 1}], np.full(2, 0.25))], {"a": 1}, np.full(2, -0.5))]
    assert publisher.compare() == 0.75
    publisher.comparisons = [Comparison([([{"a": 1}], np.zeros(2))], {"a": 2}, np.zeros(2))]
    with pytest.raises(WeightSyncError, match=r"^version 3: 1 tensor"):
        publisher.compare()


def test_the_layers_behind_a_failed_canary_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six answer otherwise, of which five are named; with tensor parallelism none can be asked."""
    made = Made(monkeypatch)
    made.publisher.send(8, CANARY)
    answers = trainer_answers(made.plain.items(), 7)
    engine = {name.removesuffix(".weight"): answer for name, answer in answers.items()}
    engine = {name: answer for name, answer in engine.items() if name != "lm_head"}
    told = "after version 8 the engine's logprobs differ from the trainer's by 0.123 (allowed 0.5) on the canary; "
    alike = "every tensor arrived intact and every layer answers alike: the models differ in something else"
    wrong = sorted(engine)[:6]
    others = "every tensor arrived intact, but these layers compute with other values: " + ", ".join(
        f"{name}.weight" for name in wrong[:5]
    )
    spoilt = engine | {name: engine[name] + 1 for name in wrong}
    for probes, words in (([(engine, {})], alike), ([(engine, {}), (spoilt, {})], others)):
        made.client.probes = probes
        with pytest.raises(WeightSyncError) as caught:
            made.publisher.explain(0.12345, 0.5)
        assert str(caught.value) == told + words and made.client.asked == [7]
        made.client.asked.clear()
    made.publisher.tensor_parallel = 2
    with pytest.raises(WeightSyncError, match=r"; with tensor_parallel > 1 single layers are not probed$"):
        made.publisher.explain(0.12345, 0.5)
    made.publisher.rank = 1
    made.publisher.explain(0.12345, 0.5)
    assert made.client.asked == [] and made.publisher.source.canary is None


def test_each_backend_gets_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port only those of GPUs, whose file needs vLLM; a deadline only gloo."""
    monkeypatch.setattr(module, "GlooSender", lambda **settings: ("gloo", settings))
    gpus = SimpleNamespace(open_gpu_transfer=lambda backend, **settings: (backend, settings))
    monkeypatch.setitem(sys.modules, "actors.weights.transfer", gpus)
    shared: dict[str, Any] = {"rank": 1, "world_size": 3, "address": "a", "bucket_bytes": 5}
    shared |= {"client": object(), "source": object()}
    assert open_transfer("gloo", port=9, timeout_s=2.0, **shared) == ("gloo", shared | {"timeout_s": 2.0})
    assert open_transfer("nccl", port=9, timeout_s=2.0, **shared) == ("nccl", shared | {"port": 9})
