"""Responses that are cut off and go on, in a real engine on CPU: `python -m tests.continued_engines`.

A tiny model in fp32 whose trainer is in the same process. Its output is JSON, by the name of each scene below;
`tests/test_continued.py` says what is expected.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from actors.config import ModelConfig, ModelInit
from actors.episodes import VersionSpan
from actors.models.skeleton import write_skeleton
from actors.rollout.engine import EngineThread
from actors.rollout.types import Begun, Request, Sampling, Segment
from actors.rollout.vllm_options import build_llm, sampling_params
from tests.engine_families import ROLLOUT, Trainer, publish

PROMPT, TOKENS, DEADLINE_S = [5, 9, 12, 4, 8], 12, 60
# Characters of several bytes, of which a token may hold but a part.
ALPHABET = "abcdefgh é答"


class Alone:
    """An engine whose thread does what a scene says, and nothing on its own while it does."""

    def __init__(self, directory: str) -> None:
        self.trainer = Trainer(directory)
        self.config = ROLLOUT
        self.thread = EngineThread(
            lambda: build_llm(directory, ROLLOUT, ModelConfig(path=directory), "gloo", 0),
            lambda sampling: sampling_params(self.config, sampling),
            ROLLOUT.max_concurrent,
        )
        self.thread.ready.result(DEADLINE_S)
        self.requests = 0

    def on_thread(self, function: Callable[[], Any]) -> Any:
        return self.thread.call(function).result(DEADLINE_S)

    def become(self, version: int, weights: int) -> None:
        """Get the trainer's weights; on the thread."""
        self.trainer.become(weights)
        publish(self.trainer, self.thread.llm, version)
        self.thread.version = version

    def ask(
        self,
        begun: tuple[Begun, ...] = (),
        *,
        samples: int = 1,
        most: int = TOKENS,
        heat: float = 0.0,
        step: int | None = None,
    ) -> Request:
        self.requests += 1
        sampling = Sampling(samples=samples, temperature=heat, max_tokens=most, max_step_tokens=step)
        return Request(id=self.requests, token_ids=PROMPT, sampling=sampling, begun=begun)

    def take(self, request: Request, seed: int | None = None) -> None:
        """On the thread."""
        self.thread._take([request], seed)
        # What one engine has computed, another one has not.
        self.thread.llm.llm_engine.reset_prefix_cache()

    def step_to(self, request: Request, tokens: int) -> list[Segment]:
        """Step until each running sample has so many; on the thread."""
        while True:
            found = self.thread._progress({request.id})
            if all(len(each.token_ids) >= tokens for each in found if each.finish == "abort"):
                return sorted(found, key=lambda segment: segment.index)
            self.thread._step()

    def segments(self, count: int) -> list[Segment]:
        found: list[Segment] = []
        while len(found) < count:
            found += self.thread.poll(DEADLINE_S)
        assert len(found) == count
        return sorted(found, key=lambda segment: segment.index)

    def answer(self, *begun: Begun, **how: Any) -> Segment:
        """The only sample of a request, to its end."""
        request = self.ask(begun, **how)
        self.on_thread(lambda: self.take(request))
        return self.segments(1)[0]

    def cut(self, tokens: int, **how: Any) -> Begun:
        """What the only sample of a request has when it is aborted after so many."""
        request = self.ask(**how)

        def run() -> None:
            self.take(request)
            self.step_to(request, tokens)
            self.thread._abort({request.id})

        self.on_thread(run)
        [segment] = self.segments(1)
        assert segment.finish == "abort" and len(segment.token_ids) == tokens, segment
        return segment.begun


def shown(segment: Segment) -> dict[str, Any]:
    """All of it but whose it is."""
    return {
        "tokens": segment.token_ids,
        "logprobs": segment.logprobs.tolist(),
        "versions": [[span.version, span.start, span.end] for span in segment.versions],
        "end": [segment.finish, segment.ended_by, segment.text, segment.error],
    }


def whole_as_begun(segment: Segment) -> Begun:
    """As if nobody had seen that it has ended."""
    tokens = np.array(segment.token_ids, dtype=np.int32)
    return Begun(token_ids=tokens, logprobs=segment.logprobs, versions=segment.versions)


def every_cut(engine: Alone) -> Any:
    """Greedy, cut after every number of tokens; as many tokens are counted as were sampled."""
    engine.config = ROLLOUT.model_copy(update={"stop": ["never"]})
    whole = engine.answer()
    before = engine.thread.stats().generated_tokens
    cut = [engine.answer(engine.cut(tokens)) for tokens in range(TOKENS)]
    cut.append(engine.answer(whole_as_begun(whole)))
    counted = engine.thread.stats().generated_tokens - before
    return {"whole": shown(whole), "cut": [shown(each) for each in cut], "counted": counted}


def without_text(engine: Alone) -> Any:
    """As without stop strings, where vLLM decodes nothing."""
    whole = engine.answer()
    return {"whole": shown(whole), "cut": [shown(engine.answer(engine.cut(tokens))) for tokens in (0, 1, 6, 11)]}


def new_weights(engine: Alone) -> Any:
    """Cut, and the weights are others when it goes on; and others again while it does. Each token's logprob against the
    trainer's with the weights of its version."""
    begun = engine.cut(5)

    def run(request: Request, steps: int) -> None:
        engine.take(request, seed=7)
        engine.step_to(request, steps)
        engine.become(2, 0)

    engine.on_thread(lambda: engine.become(1, 1))
    once = engine.answer(begun, heat=1.0)
    changed = engine.ask((begun,), heat=1.0)
    wanted = engine.trainer.logprobs(PROMPT + once.token_ids)[len(PROMPT) - 1 :]
    engine.on_thread(lambda: run(changed, 8))
    [twice] = engine.segments(1)
    engine.on_thread(lambda: engine.become(0, 0))
    wanted[:5] = engine.trainer.logprobs(PROMPT + once.token_ids)[len(PROMPT) - 1 :][:5]
    return {"begun": begun.token_ids.tolist(), "once": shown(once), "wanted": wanted.tolist(), "twice": shown(twice)}


def stop_strings(engine: Alone) -> Any:
    """Any three characters of what is said end it, wherever it is cut; and a string that is complete already."""
    engine.config = ROLLOUT.model_copy(update={"stop": ["never"]})
    plain, found = engine.answer(), []
    strings = {plain.text[at : at + 3] for at in range(len(plain.text) - 2)}
    for stop in sorted(strings):
        engine.config = ROLLOUT.model_copy(update={"stop": ["never", stop]})
        whole = engine.answer()
        cut = [engine.answer(engine.cut(tokens)) for tokens in range(len(whole.token_ids))]
        found.append([stop, shown(whole), [shown(each) for each in cut]])
    return {"ended": found, "behind": shown(engine.answer(whole_as_begun(plain), most=2 * TOKENS))}


def penalties(engine: Alone) -> Any:
    """Of repetition, which counts the prompt's tokens, too; and of presence, which counts the response's alone."""
    engine.config = ROLLOUT.model_copy(update={"repetition_penalty": 1.7})
    whole = engine.answer()
    cut = [shown(engine.answer(engine.cut(tokens))) for tokens in range(len(whole.token_ids))]
    engine.config = ROLLOUT.model_copy(update={"presence_penalty": 0.5})
    present, begun = engine.answer(), engine.cut(1)
    return {
        "whole": shown(whole),
        "cut": cut,
        "present": shown(present),
        "from_the_start": shown(engine.answer(engine.cut(0))),
        "refused": shown(engine.answer(begun)),
    }


def ended_samples(engine: Alone) -> Any:
    """Of one request: a sample that had ended, one that goes on, one at its limit, and one beyond it."""
    engine.config = ROLLOUT.model_copy(update={"stop": ["never"]})
    whole = engine.answer(most=8)
    stopped = Segment(
        request=0, index=0, token_ids=[7, 8], logprobs=np.array([-1, -2], np.float32), finish="stop", ended_by="x",
        versions=[VersionSpan(version=5, start=0, end=2)], text="said",
    )  # fmt: skip
    more = engine.answer()
    begun = stopped.begun, engine.cut(3), whole_as_begun(whole), whole_as_begun(more)
    request = engine.ask(begun, samples=4, most=8)
    engine.on_thread(lambda: engine.take(request))
    return {"whole": shown(whole), "samples": [shown(each) for each in engine.segments(4)]}


def snapshots(engine: Alone) -> Any:
    """A request of four samples, one of which ends early, is asked after every step what it has; the same seed without
    that gives the same."""
    engine.config = ROLLOUT.model_copy(update={"stop": ["b", "d"]})

    def run(looked: bool) -> tuple[list[Any], list[Any]]:
        request, seen = engine.ask(samples=4, heat=1.0, most=20), []

        def steps() -> None:
            engine.take(request, seed=3)
            while engine.thread._running:
                if looked:
                    found = engine.thread._progress({request.id})
                    seen.append([shown(each) for each in sorted(found, key=lambda each: each.index)])
                engine.thread._step()
            seen.append([shown(each) for each in engine.thread._progress({request.id})])

        engine.on_thread(steps)
        found = engine.segments(4)
        # The poll has them now, but may not have come to its caller.
        given = engine.thread.progress([request.id]).result(DEADLINE_S)
        seen.append([shown(each) for each in sorted(given, key=lambda each: each.index)])
        engine.thread.poll(0)
        return [shown(each) for each in found], seen

    plain, _ = run(False)
    looked, seen = run(True)
    after = engine.thread.progress([engine.requests]).result(DEADLINE_S)
    return {"plain": plain, "looked": looked, "seen": seen, "after": len(after)}


def cut_twice(engine: Alone) -> Any:
    """What goes on can be asked and cut again: it has all."""
    whole = engine.answer()
    request = engine.ask((engine.cut(4),))

    def run() -> list[Segment]:
        engine.take(request)
        waiting = engine.thread._progress({request.id})
        running = engine.step_to(request, 9)
        engine.thread._abort({request.id})
        return waiting + running

    seen = engine.on_thread(run)
    [cut] = engine.segments(1)
    return {
        "whole": shown(whole),
        "seen": [shown(each) for each in seen],
        "cut": shown(cut),
        "end": shown(engine.answer(cut.begun)),
    }


def begun_anew(engine: Alone) -> Any:
    """New weights, and samples start again: those without a token of here from where they were, all from the prompt."""
    whole, found = engine.answer(), []
    for tokens, everything in ((4, False), (7, False), (7, True)):
        request, before = engine.ask((engine.cut(4),)), engine.thread.stats()

        def run(request: Request = request, tokens: int = tokens, everything: bool = everything) -> Any:
            engine.take(request)
            engine.step_to(request, tokens)
            engine.thread._begin_anew(everything=everything)
            left = [len(each.token_ids) for each in engine.thread._progress({request.id})]
            return left, engine.thread.stats().sampled_tokens

        left, sampled = engine.on_thread(run)
        [segment] = engine.segments(1)
        after = engine.thread.stats()
        counted = [
            sampled - before.sampled_tokens,
            after.sampled_tokens - before.sampled_tokens,
            after.generated_tokens - before.generated_tokens,
            after.discarded_tokens - before.discarded_tokens,
        ]
        found.append([left, counted, shown(segment)])
    return {"whole": shown(whole), "found": found}


def held(engine: Alone) -> Any:
    """Greedy, held after every number of tokens of one version, and going on under the next, of the same weights; with
    stop strings that are cut, and those and tokens that end it just where it would be held."""
    engine.config = ROLLOUT.model_copy(update={"stop": ["never"]})
    plain = engine.answer()
    text, tokens = plain.text, plain.token_ids
    first = [at for at in range(3, TOKENS - 1) if tokens[at] not in tokens[:at]]
    found = []
    for step in range(1, TOKENS + 1):
        for stop in ("never", text[3:6], text[-4:-1]):
            engine.config = ROLLOUT.model_copy(update={"stop": ["never", stop]})
            found.append([step, shown(engine.answer()), *_version_by_version(engine, step)])
    by_token = []
    for at in first:
        engine.config = ROLLOUT.model_copy(update={"stop_token_ids": [tokens[at]]})
        by_token.append([at + 1, shown(engine.answer()), *_version_by_version(engine, at + 1)])
    engine.config = ROLLOUT
    cut, before = engine.answer(step=5), engine.thread.stats().generated_tokens
    again = engine.answer(cut.begun, step=5)
    counted = engine.thread.stats().generated_tokens - before
    whole = engine.answer(step=TOKENS + 1)
    group = engine.ask(samples=3, heat=1.0, step=5)
    engine.on_thread(lambda: engine.take(group, seed=3))
    return {
        "ended": found,
        "by_token": by_token,
        "same_version": [shown(cut), shown(again), counted],
        "whole": shown(whole),
        "group": [shown(each) for each in engine.segments(3)],
    }


def _version_by_version(engine: Alone, step: int) -> tuple[int, Any]:
    """How often a response is held, and what it is in the end."""
    segment, times = engine.answer(step=step), 0
    while segment.finish == "held" and times < TOKENS:
        times += 1
        engine.on_thread(lambda version=times: engine.become(version, 0))
        segment = engine.answer(segment.begun, step=step)
    engine.on_thread(lambda: engine.become(0, 0))
    return times, shown(segment)


SCENES: list[Callable[[Alone], Any]] = [
    every_cut,
    without_text,
    new_weights,
    stop_strings,
    penalties,
    ended_samples,
    snapshots,
    cut_twice,
    begun_anew,
    held,
]


def main() -> None:
    """All scenes, with one engine."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with TemporaryDirectory() as directory:
        init = ModelInit(hidden_size=64, layers=2, heads=2, kv_heads=1, max_positions=128, alphabet=ALPHABET)
        write_skeleton(ModelConfig(init=init), Path(directory))
        # Large weights: no two tokens are about as likely as each other.
        config = AutoConfig.from_pretrained(directory, initializer_range=0.5)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        engine, told = Alone(directory), {}
        engine.on_thread(lambda: engine.become(0, 0))
        for scene in SCENES:
            engine.config = ROLLOUT
            told[scene.__name__] = scene(engine)
    print("told", json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
