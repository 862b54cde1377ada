"""Families through a real engine on CPU: `python -m tests.engine_families NAME...` (short names of tests/families).

    two versions of the weights -> the receiver of vLLM's worker, in place -> logprobs against the trainer's, in fp32

Each goes through a process of its own, forked from one that has imported vLLM: four seconds instead of fifteen. Each
prints a JSON line; `--page FILE` writes the page that tells of all of them (`make families`).
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}

import numpy as np
import torch
from vllm import LLM, SamplingParams
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

from actors.config import ModelConfig, UserError
from actors.config_rollout import RolloutConfig
from actors.episodes import Sequence
from actors.models.load import TokenLogprobs, load_model
from actors.models.packed import pack
from actors.models.state import state_tensors
from actors.rollout.vllm_options import build_llm, prompt_logprob_params
from actors.weights.probe import differing_tensors, trainer_answers
from actors.weights.publisher import ParameterSource
from actors.weights.wire import as_info, buckets, size, views
from tests.families.engine_sizes import for_engine
from tests.families.table import CONSTANTS, FAMILIES, build

LENGTH, SAMPLED, BUCKET, SECONDS = 45, 20, 2**16, 240
ROLLOUT = RolloutConfig(max_prompt_tokens=60, max_response_tokens=60, max_concurrent=4, memory_gib=1)


class Trainer:
    """A policy's model as a rank has it, and what it sends."""

    def __init__(self, directory: str) -> None:
        model = load_model(ModelConfig(path=directory), directory, engine_length=ROLLOUT.max_model_len).eval()
        for module in model.modules():
            # vLLM makes classes of transformers' its own, in this very process: this instance stays one of theirs.
            module.__dict__["do_not_compile"] = True
        self.module = TokenLogprobs(model)
        self.model: Any = model
        engine: Any = SimpleNamespace(module=self.module)
        self.source = ParameterSource(engine, lambda _: np.empty(0), sends=True, base_only=False)
        self.source.canary = []
        self.first = {name: tensor.detach().clone() for name, tensor in state_tensors(model)}

    @torch.no_grad()
    def become(self, version: int) -> None:
        """The weights that it was made with, or for odd versions others: no tensor but constants stays as it was."""
        torch.manual_seed(version)
        for name, tensor in state_tensors(self.model):
            tensor.copy_(self.first[name])
            if version % 2 and tensor.is_floating_point() and not name.endswith(CONSTANTS):
                tensor.add_(0.1 * tensor.abs().mean().clamp(min=0.05) * torch.randn_like(tensor))

    @torch.no_grad()
    def logprobs(self, tokens: list[int]) -> np.ndarray:
        """Of every token but the first."""
        mask = np.arange(len(tokens)) > 0
        batch = pack([Sequence(token_ids=np.array(tokens), action_mask=mask)], {}, torch.device("cpu"))
        return self.module(batch, 1.0, 64)[0][1:].numpy()


def publish(trainer: Trainer, llm: LLM, version: int) -> None:
    """Give an engine in this process the weights, through the receiver of its worker; raises what it finds."""
    metas, stream, buffers = trainer.source.metadata(), iter(trainer.source), []
    for bucket in buckets(metas, BUCKET):
        buffers.append(torch.empty(sum(map(size, bucket)), dtype=torch.uint8))
        for name, view in views(buffers[-1], bucket):
            sent, tensor = next(stream)
            assert name == sent, (name, sent)
            view.copy_(tensor)
    assert next(stream, None) is None

    def stage(worker: Any) -> None:
        worker.weight_transfer_engine.bucket_bytes = BUCKET
        worker.weight_transfer_engine.staged = buffers

    llm.collective_rpc(stage)
    llm.start_weight_update()
    llm.update_weights(WeightTransferUpdateRequest(update_info=dict(as_info(metas))))
    llm.finish_weight_update(str(version))
    llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
    assert llm.collective_rpc("received_checksums")[0] == trainer.source.sent


def differences(trainer: Trainer, llm: LLM) -> float:
    """Largest difference in a logprob: of a prompt's tokens, and of tokens sampled after prompts of other lengths."""
    vocabulary = min(100, trainer.model.config.get_text_config().vocab_size)
    tokens = np.random.default_rng(0).integers(3, vocabulary, LENGTH).tolist()
    [read] = llm.generate({"prompt_token_ids": tokens}, prompt_logprob_params(), use_tqdm=False)
    steps = zip(read.prompt_logprobs[1:], tokens[1:], strict=True)
    found = [np.abs(trainer.logprobs(tokens) - [step[token].logprob for step, token in steps]).max()]
    prompts = [tokens[:30], tokens[:7], tokens[3:24]]
    params = SamplingParams(temperature=1.0, max_tokens=SAMPLED, ignore_eos=True, logprobs=0, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    for prompt, answer in zip(prompts, answers, strict=True):
        output = answer.outputs[0]
        sampled = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
        wanted = trainer.logprobs(prompt + list(output.token_ids))[len(prompt) - 1 :]
        found.append(np.abs(wanted - sampled).max())
    return float(np.max(found))


def probed(trainer: Trainer, llm: LLM) -> tuple[int, list[str]]:
    """How many of the tensors that were sent a layer of the engine answers for, and of which it answers otherwise."""
    layers, packed = llm.collective_rpc("probe", args=(7,))[0]
    engine = {name: np.frombuffer(answer, np.float32) for name, answer in layers.items()}
    answers = trainer_answers(trainer.source, 7)
    others = {name: -answer for name, answer in answers.items()}
    return len(differing_tensors(others, engine, packed)), differing_tensors(answers, engine, packed)


def through_an_engine(name: str) -> dict[str, Any]:
    """What comes of a family: `differences` of each version, or why it is `refused`, and how it is trained."""
    FAMILIES[name] = for_engine(name)
    with TemporaryDirectory() as directory:
        plain = build(name)
        plain.save_pretrained(directory)
        told: dict[str, Any] = {"name": name, "kind": plain.config.get_text_config().model_type}
        told["class"] = type(plain).__name__
        try:
            trainer = Trainer(directory)
            told["way"] = trainer.module.body.family.way
            # No tokenizer: tokens are numbers here.
            rollout = ROLLOUT.model_copy(update={"vllm": {"skip_tokenizer_init": True}})
            llm = build_llm(directory, rollout, ModelConfig(path=directory), "gloo", 0)
        except UserError as error:
            return told | {"refused": str(error)}
        told["engine"] = llm.collective_rpc(lambda worker: type(worker.model_runner.get_model()).__name__)[0]
        told["differences"] = []
        for version in range(3):  # the third is the first again
            trainer.become(version)
            publish(trainer, llm, version)
            told["differences"].append(differences(trainer, llm))
        told["probed"], told["wrong"] = probed(trainer, llm)
        return told


def forked(name: str, directory: Path) -> dict[str, Any]:
    """`through_an_engine` in a process of its own, whose output is left in a file of `directory`."""
    answer, log = directory / "answer.json", directory / f"{name}.log"
    answer.unlink(missing_ok=True)
    if (process := os.fork()) == 0:
        try:
            with log.open("w") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            signal.alarm(SECONDS)
            answer.write_text(json.dumps(through_an_engine(name)))
        except BaseException:  # whatever it is, the parent tells it
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(process, 0)
    if answer.exists():
        return json.loads(answer.read_text())
    lines = log.read_text(errors="replace").strip().splitlines()
    return {"name": name, "failed": lines[-1] if lines else "it ended without a word"}


def main(arguments: list[str]) -> None:
    """Run the families that are named, or all, each after the other."""
    torch.set_num_threads(1)
    page = Path(arguments[1]) if arguments[:1] == ["--page"] else None
    names, found = arguments[2:] if page else arguments, []
    with TemporaryDirectory() as directory:
        for name in names or list(FAMILIES):
            found.append(forked(name, Path(directory)))
            print(json.dumps(found[-1]), flush=True)
    if page:
        from tests.engine_page import written

        page.write_text(written(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
