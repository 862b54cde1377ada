"""What is learned about a configuration before anything starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from actors.config import UserError
from actors.models.family import Family
from launch.checks.tokenizer_process import Aside
from launch.config import RunConfig
from launch.run.manifest import Checkpoint
from launch.sizes.estimate import DecoderShape


@dataclass(slots=True)
class Findings:
    """What the checks learned about a configuration."""

    config: RunConfig
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    shape: DecoderShape | None = None
    """None when the architecture is unknown or on the hub."""
    family: Family | None = None
    """How the policy's model is trained, where that is known."""
    parameters: int | None = None
    rows: int | None = None
    """Training rows read that the run draws, at most READ_ROWS of each set."""
    complete: bool = True
    """Whether these are all."""
    whole: bool = True
    """Whether none of them is left out for its length."""
    mean_tokens: float | None = None
    """Mean length of a training prompt (GRPO) or sequence (SFT)."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each of some training sequences; empty where they are not known."""
    notes: list[str] = field(default_factory=list)
    """Of the data: rows that are too long."""
    rewards: list[str] = field(default_factory=list)
    """What each reward function gave when it was called."""
    aside: Aside = field(default_factory=Aside)
    """Who makes the calls that need the tokenizers' library."""
    elsewhere: bool = False
    """The run will be on other machines: of paths there, nothing is known here."""
    code: bool = True
    """Whether code that the configuration names may run here."""
    checkpoint: Checkpoint | None = None
    """Where the run would go on."""

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the problems of a check, so that the user sees those of the others too."""
        try:
            yield
        except UserError as error:
            self.problems.extend(error.problems)
