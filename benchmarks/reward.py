"""The reward of the comparison with TRL: cheap, deterministic, and different within almost every group."""


def letter_fraction(text: str) -> float:
    """Share of lower-case ASCII letters among the characters of `text`; 0 for an empty one."""
    return sum("a" <= character <= "z" for character in text) / max(1, len(text))


def score(completions: list[str], **_columns: object) -> list[float]:
    """Letter fraction of every completion; the calling convention of TRL's reward functions."""
    return [letter_fraction(completion) for completion in completions]
