"""Work division: which rank trains on which samples, in which micro-batches."""

from collections.abc import Sequence


def plan_micro_batches(lengths: Sequence[int], ranks: int, token_budget: int) -> list[list[list[int]]]:
    """Divide samples over ranks and micro-batches, the same number of micro-batches on every rank.

    Every rank thus runs the same number of collectives. A rank with less work ends on empty micro-batches.
    Samples go longest first to the rank with the fewest tokens, and there into the first micro-batch with room.
    The result depends on the arguments alone.

    Args:
        lengths: tokens of each sample, at least 1 each; may be empty.
        ranks: data-parallel ranks.
        token_budget: most tokens in a micro-batch; a single longer sample goes alone.

    Returns:
        plan[rank][micro_batch] = indices into `lengths`, shortest sample first. Without samples, one empty micro-batch
        on every rank.

    Raises:
        ValueError: a length, `ranks` or `token_budget` below 1.
    """
    for name, least in (("ranks", ranks), ("token_budget", token_budget), ("lengths", min(lengths, default=1))):
        if least < 1:
            raise ValueError(f"{name} must be at least 1, got {least}")
    loads = [0] * ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    plan = [_first_fit(share, lengths, token_budget) for share in shares]
    count = max(1, *map(len, plan))
    return [micro_batches + [[] for _ in range(count - len(micro_batches))] for micro_batches in plan]


def _first_fit(share: list[int], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Pack samples, given longest first, into micro-batches of at most `token_budget` tokens."""
    micro_batches: list[list[int]] = []
    room: list[int] = []
    for index in share:
        length = lengths[index]
        fit = next((place for place, free in enumerate(room) if free >= length), None)
        if fit is None:
            micro_batches.append([index])
            room.append(token_budget - length)
        else:
            micro_batches[fit].append(index)
            room[fit] -= length
    return [micro_batch[::-1] for micro_batch in micro_batches]
