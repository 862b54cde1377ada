"""What a reinforcement job reads before it starts: its prompts, their order, and who tells of responses to them."""

from dataclasses import dataclass
from functools import partial

from actors.episodes import Prompt
from actors.models.token_texts import TokenTexts
from actors.models.tokenizer import load_tokenizer, with_chat_template
from algorithms.batches import Batches, WeightedBatches, row_order
from algorithms.data.row_contents import Contents
from algorithms.data.run_data import run_data
from algorithms.loop import Reporter
from algorithms.rl.sample_report import SampleReport
from launch.config import RunConfig


@dataclass(frozen=True, slots=True)
class RLData:
    """Rows to train and to evaluate on."""

    drawn: int
    """Prompts that one pass has."""
    prompts: list[Prompt]
    evaluation: list[Prompt]
    batches: Batches | WeightedBatches
    """Which of the prompts come next."""
    contents: Contents
    report: SampleReport
    """What of the responses is reported."""


def rl_data(config: RunConfig, directory: str, reporter: Reporter) -> RLData:
    """Read the data of a PPO or GRPO run with the tokenizer in `directory`; raises UserError as `run_data` does."""
    data, limit = config.data, config.rollout.max_prompt_tokens
    tokenizer = load_tokenizer(directory)
    templated, told = with_chat_template(tokenizer, config.model), partial(reporter.progress, what="rows")
    found = run_data(config.algorithm, data, templated, max_prompt_tokens=limit, told=told)
    for note in found.notes:
        reporter.note(note)
    batches = row_order(found.sizes, data.weights, seed=config.run.seed, shuffle=data.shuffle)
    tracking = config.tracking
    report = SampleReport(
        samples=tracking.samples_per_step,
        groups=tracking.groups_per_step,
        tokens=tracking.token_samples,
        texts=TokenTexts(tokenizer),
    )
    return RLData(found.drawn(data.weights), found.train, found.held_out, batches, found.contents, report)
