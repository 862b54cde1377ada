"""Partial rollouts: which responses that are held go on, with what they have (rollout.max_step_tokens).

    a response has what one version may sample  -->  held, its slot is free for others
    new weights come                            -->  all that are held go on under them, before new prompts
    a step has left the weights as they are     -->  all go on at once, to their end
    a step cannot be made without them          -->  the oldest go on at once, to their end

A step cannot be made without them where too few others are ready, on engines, or may start; or where they would be too
old for the next step. So nobody waits for what waits for him.
"""

from dataclasses import replace

from actors.rollout.types import Sampling
from algorithms.rollouts.lane import Lane, Running


def going_on(lane: Lane, version: int) -> list[Running]:
    """Held groups that go on now, the oldest first, with engines that have weights of this version; they stay held."""
    if not lane.held:
        return []
    again = [group for group in lane.held if group.version < version]
    kept = [group for group in lane.held if group.version >= version]
    needed = _needed(lane, kept, version)
    kept = sorted(kept, key=lambda group: _age(lane, group)) if needed else []
    return sorted(again, key=lambda group: _age(lane, group)) + [
        replace(group, to_its_end=True) for group in kept[:needed]
    ]


def let_go(lane: Lane) -> None:
    """Let all that are held go on, to their ends: a step has learned nothing, and no new weights will come for them."""
    for group in lane.held:
        group.version, group.to_its_end = -1, True


def sampling_of(group: Running, version: int) -> Sampling:
    """How an engine with weights of this version samples the responses of a group that it gets."""
    lane, started = group.lane, group.lane.ages.of(group.order)
    # A step of this version waits for those that have become so old, and not for new weights.
    due = started is not None and started + lane.most_stale <= version
    return replace(lane.sampling, max_step_tokens=None) if group.to_its_end or due else lane.sampling


def _needed(lane: Lane, held: list[Running], version: int) -> int:
    """How many of these the step that somebody waits for cannot do without."""
    wanted = lane.asked - lane.taken
    if wanted <= 0:  # the trainer is busy
        return 0
    others = len(lane.ready) + lane.on_the_way - len(held) + lane.room
    needed = wanted - others
    if lane.waits:
        orders = (group.order for group in held)
        needed = max(needed, lane.ages.too_many_wait(orders, version, lane.most_stale, wanted))
    return max(0, needed)


def _age(lane: Lane, group: Running) -> tuple[int, int]:
    started = lane.ages.of(group.order)
    assert started is not None, "it has started, and was not taken"
    return started, group.order
