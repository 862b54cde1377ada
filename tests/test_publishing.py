"""What a publisher sends, in which order, and what its tickets say: a real model with and without adapters, a transfer
that yields to a list, and engines that are a script. No Ray, no vLLM."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from transformers import LlamaConfig, LlamaForCausalLM, MiniMaxM2Config, MiniMaxM2ForCausalLM

from actors.config import LoraConfig
from actors.config_rollout import TransferConfig
from actors.models.adapter_files import adapter_config, adapter_state
from actors.models.lora import add_adapters
from actors.weights import publisher as module
from actors.weights.checksum import checksum, digest
from actors.weights.probe import trainer_answers
from actors.weights.publisher import ParameterSource, Publisher, open_transfer
from actors.weights.ticket import Account, Got
from actors.weights.wire import Meta

SIZES: dict[str, Any] = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
CANARY = [3, 1, 4]
GOT = Got(["a digest"], np.zeros(2, np.float32))


class Client:
    """Of two engines; notes what is asked of it."""

    def __init__(self) -> None:
        self.version = -1
        self.canary: list[int] | None = None
        self.asked: list[Any] = []
        self.checksums: Any = None
        self.tired = False

    def resume(self) -> None:
        self.asked.append("resume")
        if self.tired:
            raise OSError("nobody listens")

    def accounts_of(self, kind: str, checksums: dict[str, int]) -> list[Got | None]:
        self.checksums = kind, checksums
        return [None, None] if self.canary is None else [GOT, None]

    def load_adapter(self, adapter: Any) -> list[str]:
        self.asked.append(adapter)
        return ["loading"]

    def loaded(self, references: list[str]) -> None:
        self.asked.append(references)


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
            self.client,
            2 * parallel,
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
    assert made.publisher.base is None and made.publisher.checksums == {}
    assert made.publisher.source.canary is None and made.publisher.source.sent == {}
    assert made.publisher.source.canary_logprobs.dtype == np.float32 and len(made.publisher.source.canary_logprobs) == 0
    assert made.publisher.source.merge_error.value == 0.0


def test_whole_weights_go_each_time_and_both_sides_account_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch)
    checksums = {name: checksum(tensor) for name, tensor in made.plain.items()}
    for version, verify in ((4, True), (5, False), (6, True)):
        ticket, accounts = made.publisher.send(version, CANARY, verify)
        sent = dict(made.transfer.sent[-1])
        assert sent.keys() == made.plain.keys() and all(sent[name].equal(made.plain[name]) for name in sent)
        assert (made.client.version, made.client.canary) == (version, CANARY if verify else None)
        assert (ticket.version, ticket.canary, ticket.merge_error, ticket.last) == (version, CANARY, None, "weights")
        assert list(ticket.parts) == ["weights"] and 0 <= ticket.seconds < 60
        weights = ticket.parts["weights"]
        assert (weights.version, weights.digest) == (version, digest(checksums) if verify else None)
        np.testing.assert_array_equal(weights.logprobs, made.logprobs(CANARY) if verify else [])
        assert accounts == [Account(0, {"weights": GOT} if verify else {}), Account(1)]
        assert made.client.checksums == ("weights", checksums if verify else {})
        assert made.publisher.checksums == {"weights": checksums if verify else {}}
    assert len(made.transfer.sent) == 3 and made.client.asked == []


def test_other_ranks_help_and_account_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compute the canary's logprobs too, which is collective, and take no checksums."""
    made = Made(monkeypatch, rank=1)
    ticket, accounts = made.publisher.send(4, CANARY, True)
    assert len(made.transfer.sent) == 1 and accounts == [] and made.publisher.source.sent == {}
    np.testing.assert_array_equal(ticket.parts["weights"].logprobs, made.logprobs(CANARY))
    adapters = Made(monkeypatch, lora="adapter", rank=1)
    assert adapters.publisher.send(4, CANARY, True)[1] == []
    assert made.client.checksums is adapters.client.checksums is None and adapters.client.asked == []


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("tired", [False, True])
def test_engines_go_on_after_a_transfer_that_failed_and_whole_weights_go_again(
    monkeypatch: pytest.MonkeyPatch, rank: int, tired: bool
) -> None:
    """Its own error is the one that is told, also where they cannot go on."""
    made = Made(monkeypatch, lora="adapter", rank=rank)
    made.transfer.fails, made.client.tired = True, tired
    with pytest.raises(RuntimeError, match=r"^lost") as caught:
        made.publisher.send(4, CANARY, True)
    assert made.client.asked == (["resume"] if rank == 0 else [])
    notes = ["letting the engines go on failed as well: OSError: nobody listens"] if tired and rank == 0 else []
    assert getattr(caught.value, "__notes__", []) == notes
    assert made.publisher.base is None


def test_the_base_goes_once_and_then_adapters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is below the adapters is verified when it goes, whatever is asked, and stays in every ticket."""
    made = Made(monkeypatch, lora="adapter")
    state = adapter_state(made.model, module.gathered, keep=True)
    received = {name: checksum(tensor) for name, tensor in state.items()}
    with_adapters = made.logprobs(CANARY)
    for version, verify in ((4, False), (5, True), (6, False)):
        ticket, accounts = made.publisher.send(version, CANARY, verify)
        base, adapter = ticket.parts["weights"], ticket.parts["adapter"]
        assert list(ticket.parts) == ["weights", "adapter"] and ticket.last == "adapter"
        assert (base.version, base.digest) == (4, digest({n: checksum(tensor) for n, tensor in made.plain.items()}))
        assert np.abs(base.logprobs - with_adapters).max() > 1e-3
        assert (adapter.version, adapter.digest) == (version, digest(received))
        np.testing.assert_array_equal(adapter.logprobs, with_adapters if verify else [])
        parts = {"weights": GOT} if version == 4 else {"adapter": GOT} if verify else {}
        assert accounts == [Account(0, parts), Account(1)]  # type: ignore[arg-type]
        assert made.client.checksums == ("adapter", received) == ("adapter", made.publisher.checksums["adapter"])
    assert len(made.transfer.sent) == 1 and all(t.equal(made.plain[n]) for n, t in made.transfer.sent[0])
    assert len(made.client.asked) == 6 and made.client.asked[1::2] == [["loading"]] * 3
    for loaded in made.client.asked[::2]:
        assert loaded.config == adapter_config(made.model, None)
        assert {name: checksum(tensor) for name, tensor in load(loaded.weights).items()} == received


def test_merged_weights_hold_the_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, lora="merged")
    made.publisher.send(4, CANARY, True)
    ticket, _ = made.publisher.send(5, CANARY, True)
    assert len(made.transfer.sent) == 2 and made.client.asked == []
    sent = dict(made.transfer.sent[-1])
    changed = {name for name, tensor in sent.items() if not tensor.equal(made.plain[name])}
    assert changed == {name for name in made.plain if "_proj" in name}
    np.testing.assert_array_equal(ticket.parts["weights"].logprobs, made.logprobs(CANARY))
    assert made.publisher.source.merge_error.change > 0 and ticket.merge_error == made.publisher.merge_error() == 0.0


def test_what_is_sent_has_the_names_of_files_and_is_accounted_for_under_them() -> None:
    """Experts that the model holds as one tensor go one by one, as vLLM loads them; the router's corrections, too."""
    sizes: dict[str, Any] = SIZES | {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    model: Any = MiniMaxM2ForCausalLM(MiniMaxM2Config(**sizes, num_experts_per_tok=2))
    engine: Any = SimpleNamespace(module=SimpleNamespace(model=model))
    source = ParameterSource(engine, lambda _: np.zeros(2, np.float32), sends=True, base_only=False)
    source.canary = CANARY
    sent = {name: tensor.clone() for name, tensor in source}
    assert source.metadata() == [Meta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sent.items()]
    assert source.sent == {name: checksum(tensor) for name, tensor in sent.items()}
    layer = "model.layers.0.block_sparse_moe"
    assert sent[f"{layer}.experts.2.w2.weight"].equal(model.model.layers[0].mlp.experts.down_proj[2])
    assert sent[f"{layer}.e_score_correction_bias"].equal(model.model.layers[0].mlp.e_score_correction_bias)


def test_answers_are_those_of_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without adapters, where these go beside it; nobody reads a canary for them."""
    made = Made(monkeypatch, lora="adapter")
    made.publisher.send(4, CANARY, True)
    found, expected = made.publisher.answers(7), trainer_answers(made.plain.items(), 7)
    assert found.keys() == expected.keys()
    for name, answer in expected.items():
        np.testing.assert_array_equal(found[name], answer)
    assert made.publisher.source.canary is None


def test_each_backend_gets_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port only those of GPUs, whose file needs vLLM; a deadline only gloo."""
    monkeypatch.setattr(module, "GlooSender", lambda **settings: ("gloo", settings))
    gpus = SimpleNamespace(open_gpu_transfer=lambda backend, **settings: (backend, settings))
    monkeypatch.setitem(sys.modules, "actors.weights.vllm_sender", gpus)
    shared: dict[str, Any] = {"rank": 1, "world_size": 3, "address": "a", "bucket_bytes": 5}
    shared |= {"client": object(), "source": object()}
    assert open_transfer("gloo", port=9, timeout_s=2.0, **shared) == ("gloo", shared | {"timeout_s": 2.0})
    assert open_transfer("nccl", port=9, timeout_s=2.0, **shared) == ("nccl", shared | {"port": 9})
