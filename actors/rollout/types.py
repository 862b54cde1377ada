"""What the driver and the rollout engines tell each other; importable without vLLM.

Request --submit--> [engine] --poll--> Segment, one per sample, as each ends or is held
                        ^---- abort: what was sampled so far, as segments too
                        ^---- progress: the same, and the requests go on
"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from actors.episodes import Episode, EpisodeStatus, VersionSpan

Finish = Literal["stop", "length", "held", "abort", "error", "refused"]
"""stop: ended by itself; length: cut at the limit; held: has all that one version of the weights may sample of it, and
goes on later; abort: asked to end; error: failed in the engine; refused: never started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the responses to one prompt are drawn."""

    samples: int
    temperature: float
    max_tokens: int
    max_step_tokens: int | None = None
    """Most tokens of a response that one version of the weights samples, counted from where a request starts: with
    more to say, it is held (rollout.max_step_tokens). None: as many as it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """An image or a sound within a prompt. No setting reaches this yet, and engines refuse requests that hold some."""

    kind: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What one sample of a request has so far: an engine can go on from there, the same one or another.

    Example: Begun(token_ids=[4, 8], logprobs=[-0.5, -1.25], versions=[VersionSpan(version=3, start=0, end=2)])

    Raises ValueError for other than one logprob and one version of each token.
    """

    token_ids: NDArray[np.int32]
    """Sampled so far, [K]; none for a sample that has not started."""
    logprobs: NDArray[np.float32]
    """As in `Segment`, [K]."""
    versions: list[VersionSpan]
    """Covering [0, K)."""
    finish: Finish | None = None
    """How the sample has ended; None: it goes on."""
    ended_by: int | str | None = None
    """As in `Segment`, of a sample that has ended; so are text and error."""
    text: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        tokens = len(self.token_ids)
        if len(self.logprobs) != tokens:  # they would be shifted against each other, and train
            raise ValueError(f"a sample needs one logprob per token, got {len(self.logprobs)} of {tokens}")
        if not covered(self.versions, tokens):
            spans = [(span.version, span.start, span.end) for span in self.versions]
            raise ValueError(f"a sample needs one version of each of its {tokens} tokens, got {spans}")


def covered(spans: list[VersionSpan], tokens: int) -> bool:
    """Whether each of so many tokens is in one span, in order, and no span is without a token."""
    ends = [span.end for span in spans]
    return [*(span.start for span in spans), tokens] == [0, *ends] and all(span.start < span.end for span in spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunInfo:
    """What the driver sees of a sample that was begun: no tokens."""

    tokens: int
    """Sampled so far."""
    oldest_version: int
    """Of the weights that sampled any of them; -1 without a token."""
    ended: bool

    @classmethod
    def of(cls, begun: Begun) -> "BegunInfo":
        """What there is to see of `begun`."""
        oldest = min((span.version for span in begun.versions), default=-1)
        return cls(tokens=len(begun.token_ids), oldest_version=oldest, ended=begun.finish is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt on its way to an engine. Example: Request(id=7, token_ids=[5, 9], sampling=Sampling(samples=8, ...))"""

    id: int
    """Run-wide: no other request of the run has it, whichever engine gets it."""
    token_ids: list[int]
    """[P]"""
    sampling: Sampling
    session: str | None = None
    """Requests of one session begin alike: an engine that has had one has its prefix in its cache.
    No setting reaches this yet, and nothing chooses an engine by it."""
    media: tuple[Media, ...] = ()
    begun: tuple[Begun, ...] = ()
    """What each sample has already, in their order; empty: nothing. `Sampling.max_tokens` counts these tokens, too."""

    def __post_init__(self) -> None:
        if self.begun and len(self.begun) != self.sampling.samples:
            raise ValueError(f"request {self.id} has {self.sampling.samples} samples, got {len(self.begun)} begun ones")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One sample of a request, to its end or, after an abort, so far; what it had begun with is part of it."""

    request: int
    """Id of the request."""
    index: int
    """Of the sample, below `Sampling.samples`."""
    token_ids: list[int]
    """Sampled tokens, the one that ended the response included, [R]."""
    logprobs: NDArray[np.float32]
    """log pi of the sampler for each, after temperature and truncation of the distribution, [R]."""
    versions: list[VersionSpan]
    """Which weights sampled which tokens, in order, covering [0, R)."""
    finish: Finish
    ended_by: int | str | None = None
    """With finish stop: which of rollout.stop_token_ids or rollout.stop; None for the end-of-sequence token."""
    text: str = ""
    """The engine's own text, where it decodes (it does so to look for stop strings)."""
    error: str = ""
    """With finish error or refused: why."""

    @property
    def begun(self) -> Begun:
        """The same as something to go on from: what was asked to end, or is held, has not ended."""
        goes_on = self.finish in ("abort", "held")
        return Begun(
            token_ids=np.array(self.token_ids, dtype=np.int32),
            logprobs=self.logprobs,
            versions=self.versions,
            finish=None if goes_on else self.finish,
            ended_by=self.ended_by,
            # The text so far is made again from the tokens.
            text="" if goes_on else self.text,
            error=self.error,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """How an engine is, told beside its own thread: it answers while a step hangs."""

    version: int
    """Of the weights in service; -1 before the first."""
    running: int
    """Samples that it is working on."""
    waiting: int
    """Samples that it has no slot for yet."""
    slots: int
    """Samples that it can work on at one time."""
    cache_used: float | None
    """Share of the key-value cache in use, in [0, 1]; None where the engine does not tell."""
    preemptions: int | None
    """How often a sample lost its place in the cache, and is computed again, so far; None where it does not tell."""
    generated_tokens: int
    """Sampled tokens of ended samples, so far."""
    discarded_tokens: int
    """Sampled tokens that new weights have thrown away (rollout.on_update restart), so far."""
    sampled_tokens: int
    """Sampled tokens so far, those of samples that are running included; never fewer than it has told before."""
    idle_s: float
    """Seconds without a sample to work on, since it was made. With `busy_s` and `paused_s` these are all seconds."""
    busy_s: float
    """Seconds in which it stepped, whatever a step took; a step that is not over counts so far."""
    underfilled_s: float
    """Seconds of `busy_s` with fewer than half of its slots filled."""
    paused_s: float
    """Seconds in which it had samples and did not step: for new weights, and for what is asked of it around them."""
    silent_s: float
    """Seconds since the engine's thread last came round: it hangs, or is in a long step, when this grows."""
    lost: str
    """What has ended the engine; empty while it works."""


class Engine(Protocol):
    """What samples responses. vLLM is one; another one, for tests and benchmarks, takes latencies from a table.

    The calls may come from any thread, and return at once but for `poll`.
    """

    version: int
    """Of the weights in service; -1 before the first."""

    def submit(self, requests: list[Request], seed: int | None) -> None:
        """Take requests, in order. With a seed, what is sampled depends on it, the prompts and their order only.

        A sample that was begun goes on, and its segment is the whole response; one that had ended comes back as it was.
        With `Sampling.max_step_tokens`, what the weights in service have sampled of it before counts, too.
        """

    def poll(self, wait_s: float) -> list[Segment]:
        """Segments that ended since the last poll; waits up to `wait_s` seconds for the first.

        Raises what has ended the engine once it is lost.
        """
        ...

    def abort(self, requests: list[int]) -> None:
        """End these requests: what each of their samples has so far comes by `poll`, unless it has ended already."""

    def abort_older(self, version: int) -> None:
        """As `abort`, of the requests of which older weights than of this version have sampled any token.

        Tokens of samples that have ended count, as long as others of their request have not. A request that waits has
        no token, whenever it was submitted.
        """

    def progress(self, requests: list[int]) -> "Future[list[Segment]]":
        """What each sample of these requests has so far, as if it were aborted now; it goes on all the same.

        Those that have ended are among them, with how they did, as long as no poll has given them but the last one;
        requests that the engine does not have are left out. The future raises what has ended the engine.
        """
        ...

    def stats(self) -> EngineStats:
        """How it is; answered without the engine's thread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutInfo:
    """What the driver sees of an episode: no tokens."""

    tokens: int
    """All of them: prompt, sampled, and what was given in between."""
    prompt_tokens: int
    sampled_tokens: int
    status: EpisodeStatus
    oldest_version: int
    """Of the weights that sampled any of its tokens; -1 without a token."""
    turns: int = 1
    turn_rewards: tuple[float, ...] = ()
    """Of the turns that have one, in their order."""
    carried_tokens: int = 0
    """Sampled tokens that are not of the weights which sampled its last one."""

    @classmethod
    def of(cls, episode: Episode) -> "RolloutInfo":
        """What there is to see of `episode`."""
        spans = [span for turn in episode.turns for span in turn.versions]
        return cls(
            tokens=episode.tokens,
            prompt_tokens=len(episode.prompt_token_ids),
            sampled_tokens=episode.sampled_tokens,
            status=episode.status,
            oldest_version=min((span.version for span in spans), default=-1),
            turns=len(episode.turns),
            turn_rewards=tuple(episode.turn_rewards.values()),
            carried_tokens=sum(span.end - span.start for span in spans if span.version != spans[-1].version),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A request all of whose samples have ended, as an engine's process tells the driver."""

    request: int
    infos: list[RolloutInfo]
    error: str = ""
    """Why the engine refused it; then there is nothing to collect."""
    aborted: bool = False
    """It was asked to end; then there is nothing to collect, unless that was asked for: `infos` are of what it had."""
    held: tuple[BegunInfo, ...] = ()
    """Where samples are held, all of them as they are, and `infos` are none: what is to be collected are `Begun`, from
    which a request can go on."""
