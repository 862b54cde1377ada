"""How long responses are: published distributions, drawn per prompt, so that siblings resemble each other."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from actors.rollout.types import Request

_WIDEST, _CELLS = 5.0, 2001
"""Standard deviations that the tables span to either side, and their cells."""
_DRAWN = 2**16 + 1
"""Normal numbers that are drawn once, and used over and over: a prime, so that no pattern of a run meets its own."""
_PRIME = 2_654_435_761

ALIKE = 0.5
"""Share of the variance of log lengths that a prompt's responses have in common. An assumption: Seer (arXiv 2511.14617)
and RollPacker (arXiv 2509.21009) schedule by a prompt's earlier lengths, and neither gives a correlation."""

# The responses to the first requests of AzureLLMInferenceTrace_conv.csv (github.com/Azure/AzurePublicDataset, of
# arXiv 2311.18677), column GeneratedTokens: chat, in tokens.
CHAT = (
    44, 109, 55, 16, 16, 84, 142, 84, 14, 152, 124, 59, 174, 15, 90, 106, 12, 74, 162, 142, 152, 154, 54, 62, 170, 147,
    194, 87, 116, 16, 74, 123, 217, 183, 217, 81, 172, 181, 181, 175, 88, 104, 138, 177, 58, 16, 401, 64, 102, 217, 217,
    217, 174, 123, 158, 404, 58, 16, 50, 89, 183, 394, 131, 82, 399, 399, 217, 94, 253, 18, 414, 157, 179, 383, 102,
    424, 162, 216, 93, 409, 60, 82, 394, 415, 37, 372, 426, 102, 385, 167, 50, 377, 203, 84, 421, 179, 91, 396, 379,
    422,
)  # fmt: skip


class Lengths:
    """Draws the lengths of a request's responses; in one order of requests, the same every time.

    A prompt is told by its tokens: one that comes again is as long or short as before, with other responses.
    """

    def __init__(self, by_deviation: NDArray[np.floating], *, alike: float = ALIKE, seed: int = 0) -> None:
        """`by_deviation`: tokens at -5 to 5 standard deviations of a normal number, ascending."""
        self._table = by_deviation
        self._of_prompt, self._of_sample = math.sqrt(alike), math.sqrt(1 - alike)
        self._normal = np.random.default_rng(seed).standard_normal(_DRAWN)
        self._at = 0

    @classmethod
    def lognormal(cls, *, median: float, sigma: float, alike: float = ALIKE, seed: int = 0) -> "Lengths":
        """exp of a normal number with deviation `sigma`, in tokens."""
        return cls(median * np.exp(sigma * _deviations()), alike=alike, seed=seed)

    @classmethod
    def observed(cls, tokens: Sequence[int], *, alike: float = ALIKE, seed: int = 0) -> "Lengths":
        """As long as these, and as often."""
        shares = np.array([NormalDist().cdf(deviation) for deviation in _deviations()])
        return cls(np.quantile(np.array(tokens, dtype=np.float64), shares), alike=alike, seed=seed)

    def __call__(self, request: Request) -> list[int]:
        """Tokens of each response; at least 1, at most what the request allows."""
        samples = request.sampling.samples
        prompt = hash(tuple(request.token_ids)) * _PRIME % _DRAWN
        places = np.arange(self._at, self._at + samples) % _DRAWN
        self._at += samples
        return self._tokens(self._normal[prompt], self._normal[places], request.sampling.max_tokens).tolist()

    def drawn(self, prompts: int, starts: int, samples: int, most: int, seed: int) -> NDArray[np.int64]:
        """Lengths of other requests, for expectations, of each prompt several ones: [prompts, starts, samples]."""
        random = np.random.default_rng(seed)
        own = random.standard_normal((prompts, starts, samples))
        return self._tokens(random.standard_normal((prompts, 1, 1)), own, most)

    def _tokens(self, prompt: NDArray[np.float64] | float, own: NDArray[np.float64], most: int) -> NDArray[np.int64]:
        deviations = self._of_prompt * prompt + self._of_sample * own
        cells = np.clip((deviations + _WIDEST) * (_CELLS - 1) / (2 * _WIDEST), 0, _CELLS - 1).round().astype(np.int64)
        return np.clip(self._table[cells].round().astype(np.int64), 1, most)


def _deviations() -> NDArray[np.float64]:
    return np.linspace(-_WIDEST, _WIDEST, _CELLS)
