"""What the model computes of a packed batch: all that its action tokens depend on, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from actors.episodes import Sequence
from actors.models.attention import PACKED_ATTENTION, register_packed_attention
from actors.models.load import TokenLogprobs
from actors.models.packed import pack
from actors.train.worker import pack_sequences

VOCABULARY = 40
CPU = torch.device("cpu")


def _sequence(mask: list[int], start: int = 0) -> Sequence:
    return Sequence(
        token_ids=(np.arange(len(mask)) * 7 + start) % VOCABULARY, action_mask=np.array(mask, dtype=np.bool_)
    )


def _models() -> tuple[Qwen2ForCausalLM, TokenLogprobs]:
    """The same model, plain and as a policy."""
    register_packed_attention()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY}
    torch.manual_seed(0)
    plain = Qwen2ForCausalLM._from_config(Qwen2Config(initializer_range=0.3, **sizes), attn_implementation="sdpa")
    policy = Qwen2ForCausalLM._from_config(Qwen2Config(**sizes), attn_implementation=PACKED_ATTENTION)
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
    tokens = [(position * 7) % VOCABULARY for position in inputs.position_ids.tolist()]
    assert inputs.token_ids.tolist() == (tokens if masks else [1])
    sources = np.arange(sum(expected)) if inputs.sources is None else inputs.sources
    positions = np.concatenate([np.arange(length) for length in expected])
    assert np.array_equal(inputs.position_ids.numpy()[sources], positions)
    assert sorted(set(sources.tolist())) == list(range(len(inputs.token_ids)))
    # Every action token is predicted at the position before it.
    actions = batch.position_ids[batch.action_indices]
    assert torch.equal(inputs.position_ids[inputs.read], actions - 1)


def _spoken(prompt: list[int], *response: int) -> Sequence:
    """A prompt with a response, as tokens."""
    tokens = [*prompt, *response]
    return Sequence(token_ids=np.array(tokens), action_mask=np.arange(len(tokens)) >= len(prompt))


@pytest.mark.parametrize(
    ("first", "second"),
    [([5, 6, 7], [5, 6, 8]), ([5, 6, 7], [4, 6, 7]), ([5], [6]), ([5, 6], [5, 6, 7]), ([5, 6, 7], [5, 6])],
)
def test_prompts_that_differ_in_one_token_are_not_shared(first: list[int], second: list[int]) -> None:
    """The last one and the only one included: a response would be read behind the other's prompt."""
    batch = pack([_spoken(first, 1, 2), _spoken(second, 1, 2)], {}, CPU, share_prompts=True)
    assert batch.sources is None and batch.inputs.sources is None
    assert batch.token_ids.tolist() == [*first, 1, 2, *second, 1, 2]


def test_a_packed_batch_is_what_its_definition_says() -> None:
    """Token by token, without and with a shared prompt; the fields of a shared prompt are the first one's."""
    sequences = [_spoken([5, 6], 1, 2), _spoken([7], 3), _spoken([5, 6], 4)]
    fields = {"advantages": [np.arange(len(each)) + 10.0 * i for i, each in enumerate(sequences)]}
    labels = {"margin": [0.5, 1.5, 2.5]}
    plain = pack(sequences, fields, CPU, labels=labels)
    assert plain.token_ids.tolist() == [5, 6, 1, 2, 7, 3, 5, 6, 4]
    assert plain.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert plain.sequence_ids.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert plain.action_indices.tolist() == [2, 3, 5, 8]
    assert plain.fields["advantages"].tolist() == [0, 1, 2, 3, 10, 11, 20, 21, 22]
    assert plain.sources is None and not plain.idle
    shared = pack(sequences, fields, CPU, labels=labels, share_prompts=True)
    assert shared.token_ids.tolist() == [5, 6, 1, 2, 7, 3, 4]
    assert shared.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert shared.sequence_ids.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert shared.action_indices.tolist() == [2, 3, 5, 6]
    assert shared.fields["advantages"].tolist() == [0, 1, 2, 3, 10, 11, 22]
    assert shared.sources is not None and shared.sources.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 6]
    for batch in (plain, shared):
        assert batch.lengths == [4, 2, 3] and batch.action_counts.tolist() == [2, 1, 1]
        assert batch.labels["margin"].tolist() == [0.5, 1.5, 2.5]
        assert batch.sequence_sums(torch.ones(len(batch.token_ids)) * 3).tolist() == [6, 3, 3]
        assert {name: value.dtype for name, value in batch.fields.items()} == {"advantages": torch.float32}


def test_the_model_reads_what_its_definition_says() -> None:
    """Up to the token before the last action, of which each is read before; to the end, at the last action itself."""
    sequences = [_spoken([5, 6], 1, 2), _spoken([7], 3), _spoken([5, 6], 4)]
    before = pack(sequences, {}, CPU, share_prompts=True).inputs
    assert before.token_ids.tolist() == [5, 6, 1, 7]
    assert before.position_ids.tolist() == [0, 1, 2, 0]
    assert before.lengths == [3, 1, 2]
    assert before.sources is not None and before.sources.tolist() == [0, 1, 2, 3, 0, 1]
    assert before.read.tolist() == [1, 2, 3, 1]
    end = pack(sequences, {}, CPU, share_prompts=True, read="end")
    assert end.action_indices.tolist() == [3, 5, 6]
    assert end.inputs.token_ids.tolist() == [5, 6, 1, 2, 7, 3, 4]
    assert end.inputs.lengths == [4, 2, 3]
    assert end.inputs.read.tolist() == [3, 5, 6]


def test_at_the_end_is_read_the_last_action_token_whatever_follows() -> None:
    """Of several turns the last one's; a sequence without an action has none."""
    batch = pack([_sequence([0, 1, 0, 1, 1, 0]), _sequence([0, 0]), _sequence([0, 1])], {}, CPU, read="end")
    assert batch.action_indices.tolist() == [4, 9]
    assert batch.inputs.lengths == [5, 1, 2]
    assert batch.inputs.token_ids[batch.inputs.read].tolist() == batch.token_ids[batch.action_indices].tolist()


@pytest.mark.parametrize("read", ["before", "end"])
@pytest.mark.parametrize("share_prompts", [False, True])
def test_an_idle_batch_is_one_token_that_nothing_is_asked_of(share_prompts: bool, read) -> None:
    """Whatever fields and labels a loss asks for, there is one 0 a token and none a sequence."""
    batch = pack([], {}, CPU, share_prompts=share_prompts, read=read)
    assert batch.idle and batch.token_ids.tolist() == [1] and not batch.action_mask.any()
    assert batch.token_ids.dtype == batch.inputs.token_ids.dtype == torch.int64
    assert batch.fields["any"].tolist() == [0] and batch.labels["any"].tolist() == []
    assert batch.sequence_sums(torch.ones(1)).shape == batch.action_counts.shape == (0,)
    assert batch.inputs.lengths == [1] and batch.inputs.read.tolist() == []


def test_without_sharing_other_attention_learns_the_borders() -> None:
    """Those of the tokens that the model computes, not of all."""
    inputs = pack([_spoken([5, 6], 1, 2), _spoken([7], 3, 4, 8, 9)], {}, CPU).inputs
    found = inputs.attention_arguments("flash_attention_2")
    assert found.keys() == {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assert found["cu_seq_lens_q"].tolist() == found["cu_seq_lens_k"].tolist() == [0, 3, 7]
    assert found["cu_seq_lens_q"].dtype == torch.int32
    assert found["max_length_q"] == found["max_length_k"] == 4


def test_only_gathering_attention_reads_shared_prompts() -> None:
    inputs = pack([_spoken([5, 6], 1, 2), _spoken([5, 6], 3)], {}, CPU, share_prompts=True).inputs
    layout = inputs.attention_arguments(PACKED_ATTENTION)["packed_layout"]
    assert layout.tokens == len(inputs.token_ids) == 3 < sum(inputs.lengths)
    told = "^flash_attention_2 cannot read sequences that share prompts, only packed_attention can$"
    with pytest.raises(ValueError, match=told):
        inputs.attention_arguments("flash_attention_2")


def test_a_shared_prompt_is_in_the_part_of_each_of_its_sequences() -> None:
    batch = pack([_spoken([5, 6], 1, 2), _spoken([7], 3), _spoken([5, 6], 4)], {}, CPU, share_prompts=True)
    assert [part.tolist() for part in batch.split(batch.token_ids)] == [[5, 6, 1, 2], [7, 3], [5, 6, 4]]
