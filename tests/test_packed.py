"""What the model computes of a packed batch: all that its action tokens depend on, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from actors.attention import PACKED_SDPA, register_packed_sdpa
from actors.batch import Sequence
from actors.models import TokenLogprobs
from actors.packed import pack
from actors.worker import pack_sequences

VOCABULARY = 40
CPU = torch.device("cpu")


def _sequence(mask: list[int], start: int = 0) -> Sequence:
    return Sequence(
        token_ids=(np.arange(len(mask)) * 7 + start) % VOCABULARY, action_mask=np.array(mask, dtype=np.bool_)
    )


def _models() -> tuple[Qwen2ForCausalLM, TokenLogprobs]:
    """The same model, plain and as a policy."""
    register_packed_sdpa()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY}
    torch.manual_seed(0)
    plain = Qwen2ForCausalLM._from_config(Qwen2Config(initializer_range=0.3, **sizes), attn_implementation="sdpa")
    policy = Qwen2ForCausalLM._from_config(Qwen2Config(**sizes), attn_implementation=PACKED_SDPA)
    policy.load_state_dict(plain.state_dict())
    return plain, TokenLogprobs(policy)


MASKS = {
    "response": [[0, 0, 0, 1, 1, 1], [0, 1]],
    "several turns": [[0, 0, 1, 1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 1], [0, 1, 1, 0, 0]],
    "nothing to learn": [[0, 0, 0], [0, 1, 1, 0]],
}


@pytest.mark.parametrize("masks", MASKS)
def test_logprobs_are_those_of_a_whole_forward_pass(masks: str) -> None:
    plain, policy = _models()
    sequences = [_sequence(mask, start) for start, mask in enumerate(MASKS[masks])]
    batch = pack_sequences(sequences, CPU)
    with torch.no_grad():
        found = batch.split(policy(batch, 1.0, 4)[0])
        for logprobs, sequence in zip(found, sequences, strict=True):
            tokens = torch.from_numpy(sequence.token_ids)[None]
            whole = plain(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
            expected = np.where(sequence.action_mask, np.concatenate([[0], whole.numpy()]), 0)
            np.testing.assert_allclose(logprobs, expected, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=0, max_size=12).map(lambda mask: [0, *mask]), max_size=8),
    st.booleans(),
)
def test_each_sequence_ends_before_its_last_action_token(masks: list[list[int]], share_prompts: bool) -> None:
    sequences = [_sequence(mask) for mask in masks]
    batch = pack(sequences, {}, CPU, share_prompts=share_prompts)
    inputs = batch.inputs
    expected = [max([1, *np.flatnonzero(mask)]) for mask in masks] or [1]
    assert inputs.lengths == expected
    # A computed token is one of the row, at its own position; without sharing, each sequence has its own.
    assert inputs.token_ids.tolist() == [(position * 7) % VOCABULARY for position in inputs.position_ids.tolist()]
    sources = np.arange(sum(expected)) if inputs.sources is None else inputs.sources
    positions = np.concatenate([np.arange(length) for length in expected])
    assert np.array_equal(inputs.position_ids.numpy()[sources], positions)
    assert sorted(set(sources.tolist())) == list(range(len(inputs.token_ids)))
    # Every action token is predicted at the position before it.
    actions = batch.position_ids[batch.action_indices]
    assert torch.equal(inputs.position_ids[inputs.read], actions - 1)
