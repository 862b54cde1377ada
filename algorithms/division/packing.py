"""Work division: which rank trains on which samples, in which micro-batches."""

from collections.abc import Sequence


def plan_micro_batches(
    lengths: Sequence[int], ranks: int, token_budget: int, groups: Sequence[int] | None = None
) -> list[list[list[int]]]:
    """Divide samples over ranks and micro-batches, the same number of micro-batches on every rank.

    Every rank thus runs the same number of collectives. A rank with less work ends on empty micro-batches.
    Samples go longest first to the rank with the fewest tokens, and there into the first micro-batch with room.
    Samples of one group, which may share their prompt, stay together as far as the ranks remain as balanced: whole
    groups come first, largest first, to the rank with the fewest tokens, unless that would exceed the mean.
    The result depends on the arguments alone.

    Args:
        lengths: tokens of each sample, at least 1 each; may be empty.
        ranks: data-parallel ranks.
        token_budget: most tokens in a micro-batch, a shared prompt counted in each of its samples, as attention
            computes it; a single longer sample goes alone.
        groups: number of each sample's group; without it, every sample is its own.

    Returns:
        plan[rank][micro_batch] = indices into `lengths`, shortest sample first. Without samples, one empty micro-batch
        on every rank.

    Raises:
        ValueError: a length, `ranks` or `token_budget` below 1, or `groups` of another size than `lengths`.
    """
    for name, least in (("ranks", ranks), ("token_budget", token_budget), ("lengths", min(lengths, default=1))):
        if least < 1:
            raise ValueError(f"{name} must be at least 1, got {least}")
    groups = range(len(lengths)) if groups is None else groups
    if len(groups) != len(lengths):
        raise ValueError(f"groups must be as many as lengths, {len(lengths)}, got {len(groups)}")
    plan = [_first_fit(share, lengths, token_budget) for share in _shares(lengths, ranks, groups)]
    count = max(1, *map(len, plan))  # every rank must take part in every collective
    return [micro_batches + [[] for _ in range(count - len(micro_batches))] for micro_batches in plan]


def _shares(lengths: Sequence[int], ranks: int, groups: Sequence[int]) -> list[list[int]]:
    """Samples of each rank, groups one after another, longest group and sample first."""
    members: dict[int, list[int]] = {}
    # Longest first, as is usual in packing: what comes last is small, and fills gaps.
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        members.setdefault(groups[index], []).append(index)
    mean = sum(lengths) / ranks
    loads = [0] * ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    single: list[int] = []
    for samples in sorted(members.values(), key=lambda samples: -sum(lengths[i] for i in samples)):
        tokens, rank = sum(lengths[i] for i in samples), loads.index(min(loads))
        if len(samples) > 1 and loads[rank] + tokens <= mean:
            shares[rank] += samples
            loads[rank] += tokens
        else:
            single += samples
    # No load exceeds the mean so far. As in the plain case, loads then end at most one sample apart.
    for index in sorted(single, key=lambda index: (-lengths[index], index)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    # Groups one after another: samples that share a prompt meet in one micro-batch, which then computes it once.
    first = {index: place for place, samples in enumerate(members.values()) for index in samples}
    return [sorted(share, key=lambda index: (first[index], -lengths[index], index)) for share in shares]


def _first_fit(share: list[int], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Pack samples in this order into micro-batches of at most `token_budget` tokens, each sorted by length."""
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
    # By length, as attention takes neighbours of one length together.
    return [sorted(micro_batch, key=lambda index: (lengths[index], -index)) for micro_batch in micro_batches]
