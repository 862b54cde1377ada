"""Reinforcement learning as the launcher sees it: engines sample, rewards score, PPO has a critic beside them."""

from abc import abstractmethod
from typing import TYPE_CHECKING

from actors.config import GroupConfig, refuse_unused
from actors.config_rollout import RolloutConfig
from algorithms.config_rl import GRPOConfig, PPOConfig, RLConfig
from launch.config import RunConfig
from launch.kinds.kind import ON_SEQUENCES, JobKind, Loop
from launch.settings.metric_names import CRITIC_STEP, of_responses, of_rl_steps
from launch.settings.overlap import overlapped_reads
from launch.settings.rules_adapters import check_no_dropout
from launch.settings.rules_evaluation import check_asked_metrics, check_held_out_is_given
from launch.settings.rules_rl import (
    check_evaluation_comes,
    check_evaluation_is_asked,
    check_prompt_lengths,
    check_sampling,
)
from launch.settings.rules_rows import check_nothing_is_searched, check_positions
from launch.sizes.estimate import (
    Arithmetic,
    DecoderShape,
    Memory,
    reference_memory,
    rl_arithmetic,
    rollout_memory,
    trainer_memory,
)

if TYPE_CHECKING:
    from rich.console import Console

    from actors.train.trainer import TrainedWorker
    from launch.checks.findings import Findings
    from launch.checks.known_rows import Field, Sets
    from launch.checks.reward_checks import RewardProbe
    from launch.run.loop_arguments import LoopArguments
    from launch.run.reserved import Placement
    from launch.run.roster import Roster
    from launch.screen.reporter import RunReporter

_ENGINES = ("cluster.kubernetes.rollout_node_selector", "cluster.kubernetes.autoscaling")


def reward_model_groups(config: RunConfig) -> list[tuple[int, str]]:
    """Index in `reward.models` and name of the group of each reward model."""
    return [
        # A single one, as is usual, has no number.
        (index, f"reward_model_{index + 1}" if index else "reward_model")
        for index in range(len(config.reward.models))
    ]


class RLKind(JobKind):
    """What jobs that learn from their own responses share."""

    rows = "prompts"
    samples_responses = True
    reads = ON_SEQUENCES | {"reward", "rollout", "reference", "checkpoint.memory_every", *_ENGINES}

    @property
    def algorithm(self) -> RLConfig:
        return self._section(RLConfig)

    def check_sections(self) -> None:
        check_prompt_lengths(self.config)
        check_positions(self.config, *self.longest())
        check_sampling(self.config, self.algorithm)
        check_nothing_is_searched(self.config)

    def check_evaluation(self) -> None:
        check_evaluation_is_asked(self.config, self.algorithm, self.held_out)
        check_held_out_is_given(self.config, self.held_out)
        check_evaluation_comes(self.algorithm)
        check_asked_metrics(self.config, self.metric_names())

    def check_dropout(self) -> None:
        name = self.config.algorithm.name
        why = f"{name}, whose importance ratio compares with the sampler, which drops nothing"
        check_no_dropout(self.config, why)

    def metric_names(self) -> list[str]:
        return [f"eval/{name}" for name in of_responses(self.config, self.algorithm.eval_samples_per_prompt)]

    def step_metrics(self) -> list[str]:
        return of_rl_steps(self.config, self.reported)

    def groups(self) -> dict[str, GroupConfig | RolloutConfig]:
        found: dict[str, GroupConfig | RolloutConfig] = {"policy": self.config.policy, "rollout": self.config.rollout}
        return found | self._critic_group() | self._reference_group() | self._reward_model_groups()

    def _critic_group(self) -> dict[str, GroupConfig | RolloutConfig]:
        return {}

    def _reward_model_groups(self) -> dict[str, GroupConfig | RolloutConfig]:
        return {name: self.config.reward.models[index].group for index, name in reward_model_groups(self.config)}

    def longest(self) -> tuple[str, int]:
        return "rollout.max_prompt_tokens + rollout.max_response_tokens", self.config.rollout.max_model_len

    @property
    def known_steps(self) -> int | None:
        return self.algorithm.total_steps(None)  # None where epochs give them

    @property
    def update_samples(self) -> int:
        return self.algorithm.samples_per_update or self.algorithm.samples_per_step

    def arithmetic(self, rows: int | None, mean_tokens: float | None) -> Arithmetic:
        rollout = self.config.rollout
        prompt = rollout.max_prompt_tokens if mean_tokens is None else mean_tokens
        return rl_arithmetic(self.algorithm, self.config.policy, prompt + rollout.max_response_tokens, rows)

    def tokens_per_update(self, mean_tokens: float | None) -> float:
        rollout = self.config.rollout
        tokens = rollout.max_model_len if mean_tokens is None else mean_tokens + rollout.max_response_tokens
        return self.update_samples * tokens

    def memory(self, shape: DecoderShape, parameters: int) -> dict[str, Memory]:
        config, dtype = self.config, self.config.model.dtype
        found = {"policy": self._policy_memory(shape, parameters)}
        found |= rollout_memory(parameters, config.rollout, config.model)
        for index, name in reward_model_groups(config):
            found[name] = reference_memory(shape, parameters, config.reward.models[index].group, dtype)
        return found | self._critic_memory(shape, parameters) | self._reference_memory(shape, parameters)

    def _critic_memory(self, shape: DecoderShape, parameters: int) -> dict[str, Memory]:
        return {}

    def check_shape(self, shape: DecoderShape) -> None:
        from launch.checks.engine_shape import check_engine_shape

        check_engine_shape(self.config, shape, self.longest()[1])

    def check_data(
        self, findings: "Findings", rewards: "RewardProbe", sets: "dict[Field, Sets]", *, tokenise: bool
    ) -> None:
        from launch.checks.data_checks import check_rewards, check_sets
        from launch.checks.other_models import check_other_model
        from launch.models.files import check_reward_model

        train, held_out = check_sets(findings, sets, tokenise)
        check_rewards(findings, rewards, train, held_out)
        for index, model in enumerate(self.config.reward.models):
            check_other_model(findings, model.path, f"reward.models.{index}.path", check_reward_model)

    def warnings(self) -> list[str]:
        from launch.checks.engine_options import sampling_warnings

        stale = self.algorithm.max_staleness and self.algorithm.correction is None
        told = (
            f"algorithm.importance_correction null: nothing corrects for samples of {self._older}; "
            f"policy/importance_weight_* tell how far they are from the policy"
        )
        return sampling_warnings(self.config) + [told] * bool(stale)

    def notes(self) -> list[str]:
        return self._correction_notes() + self._overlap_notes()

    def _overlap_notes(self) -> list[str]:
        if self.algorithm.overlaps_gradients:
            return ["gradients of finished groups: computed while others are generated"]
        fields = sorted(overlapped_reads(self.config, self.algorithm), reverse=True)
        auto = " (auto)" * (self.algorithm.overlap_reads == "auto")
        names = ", ".join(field.replace("_", " ") for field in fields)
        return [f"{names}: read of finished groups while others are generated{auto}"] * bool(fields)

    def _correction_notes(self) -> list[str]:
        algorithm, correction = self.algorithm, self.algorithm.correction
        if not algorithm.max_staleness or correction is None:
            return []
        auto = " (auto)" * (algorithm.importance_correction == "auto")
        above = "cut to" if correction.mode == "truncate" else "left out above"
        line = (
            f"samples of {self._older} get importance weights by {correction.level}, {above} {correction.cap:g}{auto}"
        )
        return [line + "; a pass before the updates reads old logprobs" * algorithm.reads_old_logprobs]

    @property
    def _older(self) -> str:
        versions = self.algorithm.max_staleness
        return f"weights up to {versions} version{'s' * (versions > 1)} older"

    def preview(self, rows: int, console: "Console") -> None:
        from launch.verbs.preview import preview_prompts, preview_sets

        preview_sets(self.config, rows, console, preview_prompts)

    def policy_worker(self) -> "tuple[type[TrainedWorker], tuple[object, ...]]":
        from actors.train.policy import PolicyWorker

        return PolicyWorker, ()

    def build(self, placement: "Placement", reporter: "RunReporter", roster: "Roster") -> Loop:
        from launch.run.build_rl import build_rl

        return build_rl(self, placement, reporter, roster)

    @abstractmethod
    def loop(self, arguments: "LoopArguments") -> Loop:
        """The loop, over what `build` has started."""

    def step_lines(self, steps: int | None, rows: int | None) -> list[str]:
        if rows:
            assert steps is not None, "rows are known"
            visits = steps * self.algorithm.prompts_per_step / rows
            return [f"{steps} steps are {visits:.3g} passes over {rows} prompts"]
        if self.algorithm.epochs:
            return ["how many steps epochs take is known when the run has read data.train"]
        return []

    def length_line(self, mean_tokens: float) -> str:
        limit = self.config.rollout.max_response_tokens
        return f"{super().length_line(mean_tokens)}; responses count with their limit of {limit}"

    @property
    def samples_held_out(self) -> bool:
        return self.algorithm.eval_every is not None

    def steps_problem(self, rows: int) -> str | None:
        config, wanted = self.config, self.algorithm.prompts_per_step
        # Sets with weights have no passes that end.
        if config.rollout.tail == "none" or config.data.weights or wanted < rows:
            return None
        return (
            f"rollout.tail must be none where a step takes all that a pass over the data has, which leaves nothing to "
            f"postpone (algorithm.prompts_per_step {wanted}, {rows} prompts), got {config.rollout.tail}"
        )


class PPOKind(RLKind):
    """PPO, whose critic is a group of its own."""

    title = "PPO"
    reported = CRITIC_STEP
    reads = RLKind.reads | {"critic"}

    @property
    def algorithm(self) -> PPOConfig:
        return self._section(PPOConfig)

    def loop(self, arguments: "LoopArguments") -> Loop:
        from algorithms.rl.ppo import PPO

        return PPO(config=self.algorithm, **arguments)

    def check_critic(self) -> None:
        if self.config.critic is None:
            raise ValueError("critic: required for ppo (critic={} takes the defaults), got nothing")
        refuse_unused(self.config.critic, "ema_decay", why="as a critic is not exported", section="critic.")

    def _critic_group(self) -> dict[str, GroupConfig | RolloutConfig]:
        return {"critic": self.config.critic} if self.config.critic else {}

    def _critic_memory(self, shape: DecoderShape, parameters: int) -> dict[str, Memory]:
        model, critic = self.config.model, self.config.critic
        if critic is None:
            return {}
        checkpointing = model.gradient_checkpointing
        return {"critic": trainer_memory(shape, parameters, critic, model.dtype, gradient_checkpointing=checkpointing)}

    def steps_problem(self, rows: int) -> str | None:
        problem = self.algorithm.warmup_problem(rows)
        return f"algorithm.{problem}" if problem else super().steps_problem(rows)

    def check_data(
        self, findings: "Findings", rewards: "RewardProbe", sets: "dict[Field, Sets]", *, tokenise: bool
    ) -> None:
        from launch.checks.other_models import check_other_model
        from launch.models.files import check_critic

        super().check_data(findings, rewards, sets, tokenise=tokenise)
        if self.config.critic is not None and self.config.critic.path is not None:
            check_other_model(findings, self.config.critic.path, "critic.path", check_critic)


class GRPOKind(RLKind):
    """GRPO and its family, without a critic."""

    title = "GRPO"

    @property
    def algorithm(self) -> GRPOConfig:
        return self._section(GRPOConfig)

    def loop(self, arguments: "LoopArguments") -> Loop:
        from algorithms.rl.grpo import GRPO

        return GRPO(config=self.algorithm, **arguments)
