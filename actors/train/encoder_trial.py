"""A kind of model that nobody has tried with texts: what each gives in a batch must be what it gives alone.

Not all do: some have no mask of padding, or one that not all of their layers read.
"""

from collections.abc import Callable, Sequence

import torch

from actors.config import Dtype, UserError
from actors.failure import reason_of

_TEXTS = ("a", "another text, of more tokens than the first one", f"a third one{', and so on' * 5}, until it ends")
_MOST: dict[Dtype, float] = {"fp32": 1e-3, "bf16": 0.05}
"""What may differ, as a share of the largest number of a text's output: both add up in other orders."""


def try_texts(read: Callable[[Sequence[str]], torch.Tensor], kind: str, dtype: Dtype) -> None:
    """Compare what `read` gives for texts, [texts] or [texts, D], when it is given one or all; collective.

    Raises:
        UserError: they differ, or reading fails.
    """
    try:
        together = read(_TEXTS).float()
        alone = torch.cat([read([text]) for text in _TEXTS]).float()
    except Exception as error:  # each kind has its own
        raise UserError(
            f"model.path: must read texts, got a {kind}, which Tandem does not know and which fails: {reason_of(error)}"
        ) from error
    difference = float((together - alone).abs().max() / alone.abs().max())
    # Not `>`: NaN is no agreement.
    if not difference <= _MOST[dtype]:
        raise UserError(
            f"model.path: must give a text in a batch what it gives it alone, got a difference of {difference:.2g} in "
            f"a {kind}, which Tandem does not know"
        )
