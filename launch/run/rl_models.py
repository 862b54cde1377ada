"""The groups of a reinforcement job beside its engines: policy, reference, reward models and critic."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray import ObjectRef

from actors.config import ModelConfig
from actors.group import ActorGroup
from actors.models.hub_cache import located
from algorithms.loop import Reporter
from launch.config import RunConfig
from launch.kinds.rl import reward_model_groups
from launch.models.files import require_same_tokens
from launch.run.groups import built, start_building, start_loading
from launch.run.reserved import Placement
from launch.run.roster import Roster
from launch.run.weights import spawn_holder

if TYPE_CHECKING:
    from actors.train.critic import CriticWorker
    from actors.train.frozen import ReferenceWorker, ScoringWorker
    from actors.train.policy import PolicyWorker


@dataclass(frozen=True, slots=True)
class Models:
    """The groups beside the engines, whose processes have been started."""

    policy: "ActorGroup[PolicyWorker]"
    reference: "ActorGroup[ReferenceWorker] | None"
    rewards: "list[ActorGroup[ScoringWorker]]"
    critic: "ActorGroup[CriticWorker] | None"


def spawn_models(config: RunConfig, directory: str, placement: Placement, roster: Roster) -> Models:
    """Start the processes of all groups beside the engines, without waiting for them."""
    from actors.train.policy import PolicyWorker

    policy = roster.add("policy", PolicyWorker, config.policy.timeout_s, placement)
    policy.spawn(config.model, directory, config.policy, config.run.seed, engine_length=config.rollout.max_model_len)
    spawn_holder(config, placement, roster)
    return Models(
        policy=policy,
        reference=_spawn_reference(config, directory, placement, roster),
        rewards=_spawn_reward_models(config, directory, placement, roster),
        critic=_spawn_critic(config, directory, placement, roster),
    )


def load_models(models: Models, building: list["ObjectRef[None]"], critic_updates: int, reporter: Reporter) -> None:
    """Let the other groups load their models beside the policy, which is `building` its own, and wait for all."""
    from actors.train.frozen import ReferenceWorker, ScoringWorker

    reporter.phase("loading models")
    # All of them begin before any is waited for: they load at the same time.
    critic = start_building(models.critic, critic_updates) if models.critic else []
    reference = start_loading(models.reference, ReferenceWorker.build) if models.reference else []
    rewards = [(group, start_loading(group, ScoringWorker.build)) for group in models.rewards]
    if models.critic:
        built(models.critic, critic, reporter)
    if models.reference:
        built(models.reference, reference, reporter)
    for group, loading in rewards:
        built(group, loading, reporter)
    built(models.policy, building, reporter)


def _spawn_reference(
    config: RunConfig, directory: str, placement: Placement, roster: Roster
) -> "ActorGroup[ReferenceWorker] | None":
    from actors.train.frozen import ReferenceWorker

    if not config.reference_group:
        return None
    group = roster.add("reference", ReferenceWorker, config.reference.timeout_s, placement)
    # The initial policy: adapters begin as no change, so it is the model without them.
    plain = config.model.model_copy(update={"lora": None, "freeze": []})
    length = config.rollout.max_model_len
    group.spawn(plain, directory, config.reference, config.run.seed, engine_length=length)
    return group


def _spawn_reward_models(
    config: RunConfig, directory: str, placement: Placement, roster: Roster
) -> "list[ActorGroup[ScoringWorker]]":
    from actors.train.frozen import ScoringWorker

    found = []
    for index, name in reward_model_groups(config):
        source = config.reward.models[index]
        # A model of the hub with its commit: all ranks load the same one, whatever its branch does meanwhile.
        path = located(source.path, field=f"reward.models.{index}.path")
        # It reads token ids of the policy's, not text.
        require_same_tokens(directory, path, f"reward.models.{index}.path")
        group = roster.add(name, ScoringWorker, source.group.timeout_s, placement)
        group.spawn(_other_model(config, source.path), path, source.group, config.run.seed)
        found.append(group)
    return found


def _spawn_critic(
    config: RunConfig, directory: str, placement: Placement, roster: Roster
) -> "ActorGroup[CriticWorker] | None":
    """The critic, from its own path, the only reward model, or the policy's body with a new head."""
    from actors.train.critic import CriticWorker

    if config.critic is None:
        return None
    path = critic_path(config)
    if path:
        path = located(path, field="critic.path")
        require_same_tokens(directory, path, "critic.path")
    model = _other_model(config, path) if path else config.model
    own = {"lora": config.critic.lora, "quantize": None, "freeze": [], "router_aux_loss": None}
    model = model.model_copy(update=own)
    group = roster.add("critic", CriticWorker, config.critic.timeout_s, placement)
    length = config.rollout.max_model_len
    group.spawn(model, path or directory, config.critic, config.run.seed, engine_length=length)
    return group


def critic_path(config: RunConfig) -> str | None:
    """Directory that the critic starts from; None for the policy's."""
    if config.critic and config.critic.path:
        return config.critic.path
    models = config.reward.models
    return models[0].path if len(models) == 1 else None


def _other_model(config: RunConfig, path: str) -> ModelConfig:
    """The settings of a model beside the policy."""
    # `revision` and `init` say where the policy is from, the others what of it is trained.
    own = {"path": path, "revision": None, "init": None, "lora": None, "quantize": None, "freeze": []}
    return config.model.model_copy(update=own | {"router_aux_loss": None})
