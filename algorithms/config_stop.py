"""When training ends early: settings that jobs on given rows and reinforcement learning share."""

from pydantic import model_validator

from actors.config import Config
from actors.config_numbers import Threshold


class StopWhen(Config):
    """Ends training early, once an evaluation metric is good enough."""

    metric: str
    """Name in metrics.jsonl, for example eval/sequence_probability."""
    at_least: Threshold | None = None
    """Value from which on training stops, of a metric of which more is better."""
    at_most: Threshold | None = None
    """Value down from which training stops, of one of which less is better, such as eval/loss."""

    @model_validator(mode="after")
    def _one_bound(self) -> "StopWhen":
        if (self.at_least is None) == (self.at_most is None):
            got = "neither" if self.at_least is None else "both"
            raise ValueError(f"at_least or at_most must be given, one of the two, got {got}")
        return self

    @property
    def bound(self) -> str:
        """The value in words: at least 0.9."""
        return f"at most {self.at_most:g}" if self.at_least is None else f"at least {self.at_least:g}"

    def met_by(self, value: float) -> bool:
        """Whether a value of the metric is good enough; NaN never is."""
        # Comparisons with NaN are false: no test of its own is needed.
        return (self.at_least is not None and value >= self.at_least) or (
            self.at_most is not None and value <= self.at_most
        )
