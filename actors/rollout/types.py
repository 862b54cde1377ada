"""What the driver and the rollout engines tell each other; importable without vLLM."""

from dataclasses import dataclass

from actors.batch import Episode, EpisodeStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the responses to one prompt are drawn."""

    samples: int
    temperature: float
    max_tokens: int


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
        )
