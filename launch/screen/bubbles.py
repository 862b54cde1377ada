"""The bubble account of a whole run, and the one setting that would help most: what the last screen says of waiting.

What the metrics of a step mean is in `algorithms.rl.bubbles`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, float | None]
Settings = Mapping[str, Mapping[str, object]]
"""A configuration as plain values: section -> field -> value."""

WORTH = 0.1
"""Least share of the time that a setting must save, by estimate, to be told of."""
_TAIL = 2.0
"""Mean lengths of the longest response from which few long ones keep the others waiting."""
_MOST_STALE = 4
"""Versions up to which learning has been as good as on-policy (arXiv 2505.24298)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BubbleAccount:
    """Where the time of a run's steps went; shares are in [0, 1]."""

    steps: int
    waited: float
    """Share of the steps' time, evaluations left out, in which the trainer waited for scored responses."""
    updated: float
    """Share of it in updates."""
    synced: float
    """Share of it in sending weights."""
    idle: float
    """Share of the engines' time without a sample to work on."""
    underfilled: float
    """Share with fewer than half of the slots filled."""
    paused: float
    """Share with samples, and stopped for new weights."""
    tokens_lost: float
    """Not generated meanwhile."""
    longest: float
    """Tokens of a step's longest response, in mean lengths, over the steps."""

    @property
    def filled(self) -> float:
        """Share of the time in which engines worked, with at least half of their slots filled; 0 where they did not."""
        worked = 1 - self.idle - self.paused
        return max(0.0, 1 - self.underfilled / worked) if worked > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A setting that would help."""

    setting: str
    """As an override: `section.field=value`."""
    why: str
    gain: float
    """Share of the time that it saves at most, or of the engines."""
    faster: bool = True
    """Whether it is time that it saves."""


def account_of(rows: Sequence[Row], before: int) -> BubbleAccount | None:
    """Of the steps after `before` and the one behind it, which warms up; None where there are none, or none tells."""
    later = [row for row in rows if (row["step"] or 0) > before + 1]
    told = [row for row in later if row.get("bubble/engine_idle_fraction") is not None]
    whole = _sum(told, "time/step")
    seconds = whole - _sum(told, "time/evaluate")
    if not seconds > 0:
        return None

    def of_engines(name: str) -> float:
        return sum(_of(row, f"bubble/engine_{name}_fraction") * _of(row, "time/step") for row in told) / whole

    lengths = [(_of(row, "rollout/response_tokens_max"), _of(row, "rollout/response_tokens_mean")) for row in told]
    return BubbleAccount(
        steps=len(told),
        waited=_sum(told, "bubble/trainer_wait_seconds") / seconds,
        updated=_sum(told, "time/update") / seconds,
        synced=_sum(told, "time/sync") / seconds,
        idle=of_engines("idle"),
        underfilled=of_engines("underfilled"),
        paused=of_engines("paused"),
        tokens_lost=_sum(told, "bubble/sync_tokens_lost"),
        longest=sum(most / mean for most, mean in lengths if mean) / len(told),
    )


def account_line(account: BubbleAccount) -> list[str]:
    """Parts of a line."""
    lost = f" ({account.tokens_lost:,.0f} tokens not generated)" if account.tokens_lost >= 1 else ""
    return [
        f"the trainer waited for responses {account.waited:.0%} of the time;",
        f"engines: {account.idle:.0%} idle,",
        f"{account.underfilled:.0%} less than half full,",
        f"{account.paused:.0%} stopped for weights{lost}",
    ]


def advice_line(found: Advice) -> list[str]:
    """Parts of a line."""
    saves = f"saves at most {found.gain:.0%} of the {'time' if found.faster else 'engines'}, by estimate"
    return [found.setting, f"# {found.why}; {saves}"]


def advice(account: BubbleAccount, settings: Settings, takes: Callable[[str], bool]) -> Advice | None:
    """The setting that would save most, of those that are not set so and that `takes` says a run may have.

    None where none saves a tenth. What saves time comes before what saves engines.
    """
    found = [each for each in (*_faster(account, settings), *_fewer(account, settings)) if each.gain >= WORTH]
    for each in sorted(found, key=lambda each: (not each.faster, -each.gain)):
        if not _is_set(settings, each.setting) and takes(each.setting):
            return each
    return None


def _faster(account: BubbleAccount, settings: Settings) -> Iterator[Advice]:
    """What saves time, by how much at most."""
    staleness, engines = _number(settings, "algorithm", "max_staleness"), _engines(settings)
    waited, together = account.waited, settings["cluster"]["placement"] == "shared"
    if not staleness and not together:
        why = "responses of the next step would come while the trainer trains"
        # On the cores that both compute with, one side has no more than the other leaves: a core, while few run.
        gain = min(waited, 1 - waited) * (1.0 if _brings_its_own(settings["rollout"]) else account.underfilled)
        yield Advice(setting="algorithm.max_staleness=1", why=why, gain=gain)
    if not staleness and account.longest >= _TAIL:
        # What is left to few responses is done with others in at most half of the time.
        why = f"engines wait for the longest responses, of {account.longest:.1f} times the mean length"
        yield Advice(setting="rollout.tail=postpone", why=why, gain=min(waited, account.underfilled / 2))
    if 0 < staleness < _MOST_STALE:
        why = "the trainer waits for engines that have too little to do at one time"
        gain = waited * (1 - account.filled)
        yield Advice(setting=f"algorithm.max_staleness={staleness + 1}", why=why, gain=gain)
    counted = isinstance(settings["rollout"]["engines"], int)  # else there are as many as have room
    of_its_own = counted and _brings_its_own(settings["rollout"])
    for more in {2 * engines, engines + 1} if of_its_own else ():  # of one engine, the same
        saved = 1 - engines / more
        gain = account.filled * (min(waited, saved) if staleness else waited * saved)
        yield Advice(setting=f"rollout.engines={more}", why="the trainer waits for engines that are full", gain=gain)
    yield from _stopped_less(account, settings, engines)


def _stopped_less(account: BubbleAccount, settings: Settings, engines: int) -> Iterator[Advice]:
    """What lets engines stand still less while weights are sent."""
    transfer = settings["rollout"].get("transfer")
    if isinstance(transfer, Mapping) and settings["model"].get("lora") and transfer.get("lora") == "merged":
        why = "engines stand still while whole weights are sent: adapters are a small part of them"
        yield Advice(setting="rollout.transfer.lora=adapter", why=why, gain=account.paused)
    why = "all engines stand still while weights are sent: one after the other, the rest would go on"
    yield Advice(setting="rollout.update_order=rolling", why=why, gain=account.paused * (1 - 1 / engines))


def _fewer(account: BubbleAccount, settings: Settings) -> Iterator[Advice]:
    """What is done about engines that wait for the trainer; on-policy they do so by design."""
    if not _number(settings, "algorithm", "max_staleness") or account.waited >= WORTH:
        return
    engines, ranks = _engines(settings), _number(settings, "policy", "ranks")
    why = f"engines are idle {account.idle:.0%} of the time, as they wait for the trainer"
    if _brings_its_own(settings["policy"]):
        yield Advice(setting=f"policy.ranks={2 * ranks}", why=why, gain=min(account.idle, account.updated / 2))
    prompts = _number(settings, "algorithm", "prompts_per_step")
    setting, gain = f"algorithm.prompts_per_step={2 * prompts}", min(account.idle, account.synced / 2)
    yield Advice(setting=setting, why=f"{why}, which sends weights {account.synced:.0%} of it", gain=gain)
    # Rounded up: those that are left shall not be what the trainer waits for.
    enough = max(1, math.ceil(engines * (1 - account.idle)))
    gain = (engines - enough) / engines
    if isinstance(settings["rollout"]["engines"], int):
        yield Advice(setting=f"rollout.engines={enough}", why=why, gain=gain, faster=False)


def _brings_its_own(group: Mapping[str, object]) -> bool:
    """Whether one more process of a group computes on something more: on the cores of one machine, it shares them."""
    own = "gpus_per_rank", "gpus_per_engine", "ranks_per_node", "engines_per_node"
    return any(group.get(name) for name in own)


def _is_set(settings: Settings, setting: str) -> bool:
    name, _, value = setting.partition("=")
    found: object = settings
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return str(found) == value


def _engines(settings: Settings) -> int:
    """Most engines that there may be."""
    found = settings["rollout"]["engines"]
    most = found["max"] if isinstance(found, Mapping) else found
    assert isinstance(most, int), "rollout.engines is a number of things"
    return most


def _number(settings: Settings, section: str, field: str) -> int:
    found = settings[section][field]
    assert isinstance(found, int), f"{section}.{field} is a number of things"
    return found


def _of(row: Row, name: str) -> float:
    return row.get(name) or 0.0


def _sum(rows: Sequence[Row], name: str) -> float:
    return sum(_of(row, name) for row in rows)
