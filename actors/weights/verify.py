"""Whether engines hold and use what was sent: their accounts against the ticket, and who is to blame where they differ.

Digests tell whether what arrived is what was sent, the canary whether an engine computes with it. The names of tensors
are asked for only once something is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from actors.config import Dtype
from actors.config_rollout import TransferConfig
from actors.group import ActorGroup
from actors.rollout.worker import RolloutWorker
from actors.weights.ticket import Account, Kind, Sent, Ticket

# In nats: both sides add up in other orders, and what that changes grows with what a dtype rounds away.
_TOLERANCES = {"fp32": 1e-3, "bf16": 0.15}
_PROBE_SEED = 7
_CHECKSUMS: dict[Kind, str] = {"weights": "received_checksums", "adapter": "bound_checksums"}
"""Part -> method of `actors.weights.vllm_receiver.WorkerExtension` that gives the names behind a digest."""
_ENGINE: Any = RolloutWorker
"""Its methods as plain functions: ray.method hides from type checkers that they are."""


class WeightSyncError(RuntimeError):
    """The engines do not compute with the weights that were sent; the message names the tensor."""


class Evidence(Protocol):
    """What the trainer's side can say of what was published, see `actors.weights.store.WeightStore`."""

    def sent(self, kind: Kind) -> dict[str, int]: ...
    def answers(self, seed: int) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accounts of engines against a ticket."""

    wrong: list[tuple[int, int, Kind]]
    """(engine, worker process, part) whose digest is another than what was sent."""
    difference: float | None
    """Largest difference in a logprob of the canary, NaN where one is; None where no canary was read."""


def tolerance(config: TransferConfig, dtype: Dtype) -> float:
    """Largest difference in logprob that the canary may show."""
    return config.canary_tolerance or _TOLERANCES[dtype]


def compare(ticket: Ticket, accounts: Sequence[Account]) -> Comparison:
    """Compare what engines account for with what was sent. Raises WeightSyncError when an account lacks something."""
    wrong: list[tuple[int, int, Kind]] = []
    differences = []
    for account in accounts:
        for kind, sent in ticket.parts.items():
            got = account.parts.get(kind)
            if got is None:
                if kind == ticket.last and sent.digest is not None:
                    raise WeightSyncError(
                        f"version {ticket.version}: engine {account.engine} gives no account of the {kind}"
                    )
                continue
            if sent.digest is not None:
                # The digest of nothing agrees with nothing, as little as an account of no worker process.
                digests = got.digests or [""]
                differing = [at for at, digest in enumerate(digests) if digest != sent.digest or not digest]
                wrong.extend((account.engine, worker, kind) for worker in differing)
            if len(sent.logprobs):
                differences.append(_difference(sent, got.logprobs))
    # Python's max would lose a NaN that is not the first.
    return Comparison(wrong, float(np.max(differences)) if differences else None)


def _difference(sent: Sent, logprobs: np.ndarray) -> float:
    """NaN also of an answer of another length: that is no agreement."""
    return float(np.abs(sent.logprobs - logprobs).max()) if sent.logprobs.shape == logprobs.shape else float("nan")


def verify(
    evidence: Evidence, rollout: ActorGroup[RolloutWorker], ticket: Ticket, accounts: Sequence[Account], allowed: float
) -> float | None:
    """Compare, and find the tensor behind a disagreement; `rollout` is the engines' group.

    Returns:
        `Comparison.difference`, which is at most `allowed`.

    Raises:
        WeightSyncError: naming tensors or layers.
    """
    found = compare(ticket, accounts)
    # First, as what arrived changed explains a canary that differs, and names the tensor.
    if found.wrong:
        raise _changed(evidence, rollout, ticket, *found.wrong[0])
    # Not `>`: NaN must fail.
    if found.difference is not None and not found.difference <= allowed:
        raise WeightSyncError(
            f"after version {ticket.version} the engine's logprobs differ from the trainer's by "
            f"{found.difference:.3g} (allowed {allowed:g}) on the canary; {_culprits(evidence, rollout, accounts)}"
        )
    return found.difference


def _changed(
    evidence: Evidence, rollout: ActorGroup[RolloutWorker], ticket: Ticket, engine: int, worker: int, kind: Kind
) -> WeightSyncError:
    """Which tensors of a part are others at a worker process than they were at the trainer."""
    sent = evidence.sent(kind)
    received: dict[str, int] = _of_engine(rollout, engine, _CHECKSUMS[kind])[worker]
    wrong = [name for name, value in sent.items() if received.get(name) != value]
    where = f"vLLM worker {worker} of engine {engine}"
    if kind == "adapter":
        return WeightSyncError(f"version {ticket.version}: {where} {unbound(sent, wrong)}")
    wrong += [name for name in received if name not in sent]
    told = f": {', '.join(wrong[:5])}" if wrong else ", which both sides now deny: its digest was another"
    return WeightSyncError(
        f"version {ticket.version}: {len(wrong)} tensor(s) arrived changed or not at all at {where}{told}"
    )


def unbound(sent: dict[str, int], wrong: Sequence[str]) -> str:
    """What is said of an adapter of these tensors, of which no layer computes with the `wrong` ones."""
    layers = list(dict.fromkeys(map(_layer, sent)))
    without = set(map(_layer, wrong))
    names = ", ".join(name for name in layers if name in without) or "any"
    return (
        f"computes with the adapters of {len(layers) - len(without)} of {len(layers)} layers; not with those of {names}"
    )


def _layer(tensor: str) -> str:
    """The adapted layer of a tensor of a PEFT directory."""
    return tensor.removeprefix("base_model.model.").partition(".lora_")[0]


def _culprits(evidence: Evidence, rollout: ActorGroup[RolloutWorker], accounts: Sequence[Account]) -> str:
    from actors.weights.probe import differing_tensors

    # More than one worker process.
    if any(len(got.digests) > 1 for account in accounts for got in account.parts.values()):
        return "every tensor arrived intact; with tensor_parallel > 1 single layers are not probed"
    answers = evidence.answers(_PROBE_SEED)
    wrong: set[str] = set()
    for account in accounts:
        layers, packed = _of_engine(rollout, account.engine, "probe", _PROBE_SEED)[0]
        engine = {name: np.frombuffer(answer, np.float32) for name, answer in layers.items()}
        wrong |= set(differing_tensors(answers, engine, packed))
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        return f"every tensor arrived intact, but these layers compute with other values: {names}"
    return "every tensor arrived intact and every layer answers alike: the models differ in something else"


def _of_engine(rollout: ActorGroup[RolloutWorker], engine: int, method: str, *args: object) -> list[Any]:
    """What each worker process of an engine answers."""
    call = rollout.submit(engine, _ENGINE.worker_call, method, *args)
    return rollout.gather([call], method, ranks=[engine])[0]
