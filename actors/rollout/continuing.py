"""A response goes on in vLLM: the tokens so far are read with the prompt, and its account starts with them.

vLLM counts tokens, their logprobs, versions and text from the end of what it was given as the prompt. `WholeAccount`
is put in place of that, so that all it tells, at the end, after an abort or in between, is of the whole response; stop
strings are looked for in the text of all tokens, decoded as if vLLM had sampled them one after the other.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from vllm import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from actors.rollout.types import Begun


@dataclass(frozen=True, slots=True)
class WholeAccount:
    """Of one sample that was begun."""

    begun: Begun
    detokenizer: IncrementalDetokenizer
    """It has seen the prompt and the tokens so far."""

    @classmethod
    def of(cls, tokenizer: Any, prompt: list[int], begun: Begun, params: SamplingParams) -> "WholeAccount":
        """`tokenizer` is the engine's, None where it has none; `prompt` is without what was begun.

        Raises ValueError where vLLM, told that what was sampled is a prompt, would sample from something else, and
        where the response has ended in the middle of what it has.
        """
        if len(begun.token_ids) and params.presence_penalty:
            raise ValueError(
                "a response does not go on with rollout.presence_penalty, as vLLM would penalize only those of its "
                "tokens that it samples from now on"
            )
        # As vLLM makes it: it gets no tokenizer where no text is asked for.
        request: Any = SimpleNamespace(request_id="", prompt_token_ids=prompt, sampling_params=params)
        detokenizer = IncrementalDetokenizer.from_new_request(tokenizer if params.detokenize else None, request)
        if stop := detokenizer.update(begun.token_ids.tolist(), False):
            raise ValueError(f"the text of the tokens so far has {stop!r} of rollout.stop, and goes on behind it")
        return cls(begun, detokenizer)

    def replace(self, state: Any) -> None:
        """Let vLLM's state of a request, which has sampled nothing yet, go on from here."""
        state.detokenizer = self.detokenizer
        for token, logprob in zip(self.begun.token_ids.tolist(), self.begun.logprobs.tolist(), strict=True):
            state.logprobs_processor.logprobs.append_fast([token], [logprob], [None], [None])
        # vLLM opens a new span only for another version than that of the last.
        state.weight_version_starts = [(str(span.version), span.start) for span in self.begun.versions]
