"""A rank that learns to compare texts: each becomes a vector (embedding model), or two of them a score (reranker).

    texts -> outputs -> outputs of all ranks -> loss of the whole update -> gradients of own outputs -> model

Every rank computes the loss of the whole update from the outputs of all ranks, and takes the gradients of its own: the
sum over ranks is the gradient of one rank that has all texts, whatever the loss. Texts that together exceed
`micro_batch_tokens` are read twice, first without keeping activations and then, micro-batch by micro-batch, with the
gradients of their outputs at hand (GradCache, arXiv 2101.06983): the same gradient in the memory of one micro-batch.

The driver imports this module for its method names; models are imported only where a worker needs them.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from actors.config import EncoderHead, ModelConfig, TrainerConfig
from actors.models.tried import ENCODERS, TRIED
from actors.pulse import MICRO_BATCHES
from actors.train.encoder_trial import try_texts
from actors.train.engine import gathered
from actors.train.text_passes import cut_lengths
from actors.train.trainer import TrainedWorker
from actors.train.worker import Metrics

OutputLoss = Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(outputs of all ranks' texts [N, D] or scores [N], the guide's vectors [N, D] or None) -> (loss, metrics)."""

Features = dict[str, Any]
"""Padded inputs of a model, [B, L] and the like, among what sentence-transformers keeps beside them."""

_TOKENISED_TOGETHER = 512
"""Texts that are padded to one length before they are cut into micro-batches."""
_PASS_OVERHEAD = {"cpu": 128, "cuda": 1024}
"""Tokens that take as long as what a forward pass takes beside its tokens, roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderText:
    """What becomes one output.

    Example: EncoderText(kind="query", text="red fox", prompt="query: ")
    """

    kind: Literal["query", "passage"]
    text: str
    """Of a reranker, the query."""
    prompt: str | None = None
    """Instruction put before the text; None: the one that the model keeps for this kind of text, if any."""
    passage: str | None = None
    """Of a reranker, the second text."""


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts of one forward pass."""

    places: list[int]
    """Of the texts among those given; none for a pass that only keeps step with other ranks."""
    features: Features
    """Padded inputs of the model."""
    tokens: int
    """Without padding."""
    padded: int
    """With padding."""


class TextModule(torch.nn.Module):
    """A sentence-transformers model that answers with one output of each text."""

    def __init__(self, model: torch.nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, features: Features) -> torch.Tensor:
        """Vectors [B, D] or scores [B], float32."""
        found = self.model(dict(features))[self.output].float()
        return found.squeeze(1) if self.output == "scores" else found


class EncoderWorker(TrainedWorker):
    """One data-parallel rank of an embedding model or a reranker."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        model: ModelConfig,
        directory: str,
        group: TrainerConfig,
        seed: int,
        head: EncoderHead,
        guides: list[str],
    ) -> None:
        super().__init__(rank, world_size, model, directory, group, seed)
        self.head = head
        self.guide_paths = guides
        self.shell: Any = None

    @property
    def _reranks(self) -> bool:
        return self.head.kind == "reranker"

    def load_module(self) -> torch.nn.Module:
        from actors.models.encoders import load_encoder, load_guide

        self.shares_prompts = False
        self.model = load_encoder(self.model_config, self.head, self.directory, self.divider()).to(self.device)
        self.hf_model = self.model.transformers_model
        if self.model_config.lora:
            for module in list(self.model)[1:]:
                module.requires_grad_(False)  # adapters are all that is trained, and saved as such
        self.guides = {path: load_guide(path, self.device) for path in self.guide_paths}
        return TextModule(self.model, "scores" if self._reranks else "sentence_embedding")

    def build(self, address: str, port: int, total_updates: int) -> None:
        """See `TrainedWorker.build`; a kind of model that is new reads a few texts first."""
        super().build(address, port, total_updates)
        kind = str(self.hf_model.config.get_text_config().model_type)
        if kind not in TRIED | ENCODERS:
            try_texts(self._answers, kind, self.model_config.dtype)

    def _answers(self, texts: Sequence[str]) -> torch.Tensor:
        """Outputs of texts that are read in one pass, without dropout."""
        passages = [text if self._reranks else None for text in texts]
        given = [
            EncoderText(kind="query", text=text, prompt="", passage=passage)
            for text, passage in zip(texts, passages, strict=True)
        ]
        features = self._on_device(self._features(given))
        with torch.no_grad():
            self.engine.forward(features)  # as in training, which some fail at
        return self.engine.evaluate(features)

    def dimension(self) -> int:
        """Size of the model's vectors; 1 for a reranker."""
        return 1 if self._reranks else self.model.get_embedding_dimension()

    def learn_texts(
        self, texts: list[EncoderText], counts: list[int], loss: OutputLoss, guide: str | None = None
    ) -> Metrics:
        """One optimizer update; collective.

        Args:
            texts: this rank's.
            counts: number of texts of each rank.
            loss: of the outputs of all texts, those of rank 0 first.
            guide: directory of the model whose vectors the loss reads too.

        Returns:
            metrics of the update, the same on every rank.
        """
        started = time.perf_counter()
        batches = self._batches(texts)
        rate = self.engine.learning_rate  # a step moves on to the next
        # The largest share decides for all ranks: they must read in the same way, as their passes are collective.
        keep = self._most(sum(batch.padded for batch in batches)) <= self.group.micro_batch_tokens
        known = self._gather(self._guided(texts, guide), counts) if guide else None
        graphs, states, outputs = self._first_pass(batches, len(texts), keep)
        value, metrics, gradients = self._loss(outputs, known, counts, loss)
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of an update is {value}")
        if keep:
            self._backward(batches, graphs, gradients)
        else:
            self._read_again(batches, states, gradients)
        norm = self.engine.step()
        seconds = time.perf_counter() - started
        metrics |= self._counted(batches, len(texts)) | {"loss": value, "grad_norm": norm, "learning_rate": rate}
        return metrics | {"micro_batches": float(1 if keep else len(batches)), "time/update_rank": seconds}

    def encode(self, texts: list[EncoderText]) -> NDArray[np.float32]:
        """Outputs of this rank's texts, [texts, D] or [texts], without dropout; collective under ZeRO-3."""
        batches = self._batches(texts)
        self.work.expect(len(batches), MICRO_BATCHES)
        found = []
        for batch in batches:
            found.append(self.engine.evaluate(self._on_device(batch.features)))
            self.work.progressed()
        return self._in_order(batches, found, len(texts)).cpu().numpy()

    def write_model(self, directory: Path) -> float | None:
        """Write a sentence-transformers directory; see `TrainedWorker.write_model`."""
        from actors.models.encoders import other_parameters

        self.others = other_parameters(self.model, gathered)
        return super().write_model(directory)

    def write_files(self, directory: Path, tensors: Iterable[tuple[str, torch.Tensor]] | None) -> str | None:
        """See `TrainedWorker.write_files`; with weights, the others are written once more."""
        from actors.models import encoders, lora

        if self.shell is None:  # kept, as its directory may be gone when training ends
            self.shell = encoders.load_shell(self.model_config, self.head, self.directory)
        others = {} if tensors is None else self.others
        encoders.write_encoder(self.shell, lora.parameter_metas(self.hf_model), tensors, others, self.head, directory)
        return None  # it is trained with what AutoTokenizer makes of its files

    def _first_pass(
        self, batches: list[TextBatch], count: int, keep: bool
    ) -> tuple[list[torch.Tensor], list[list[torch.Tensor]], torch.Tensor]:
        """Outputs by batch, with their graphs if `keep`; random states before each batch; all outputs in order."""
        found, states = [], []
        with torch.set_grad_enabled(keep):
            for batch in batches:
                states.append(self._random_state())
                found.append(self._forward(batch))
        return found, states, self._in_order(batches, [each.detach() for each in found], count)

    def _backward(self, batches: list[TextBatch], graphs: list[torch.Tensor], gradients: torch.Tensor) -> None:
        """Carry the gradients of the outputs into the model, through the graphs of the first pass."""
        shares = [(found * _at(gradients, batch)).sum() for batch, found in zip(batches, graphs, strict=True)]
        self.engine.backward(torch.stack(shares).sum(), last=True)

    def _read_again(self, batches: list[TextBatch], states: list[list[torch.Tensor]], gradients: torch.Tensor) -> None:
        """Carry the gradients of the outputs into the model, batch by batch, each read once more."""
        for index, (batch, state) in enumerate(zip(batches, states, strict=True)):
            with self._replayed(state):
                found = self._forward(batch)
            self.engine.backward((found * _at(gradients, batch)).sum(), last=index == len(batches) - 1)

    def _loss(
        self, own: torch.Tensor, guide: torch.Tensor | None, counts: list[int], loss: OutputLoss
    ) -> tuple[float, Metrics, torch.Tensor]:
        """Loss of the whole update, its metrics, and its gradients with respect to this rank's outputs."""
        outputs = self._gather(own, counts).requires_grad_()
        value, metrics = loss(outputs, guide)
        value.backward()  # to the outputs; into the model they go later
        assert outputs.grad is not None
        start = sum(counts[: self.rank])
        gradients = outputs.grad[start : start + counts[self.rank]]
        return float(value.detach()), {name: float(metric) for name, metric in metrics.items()}, gradients

    def _gather(self, own: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Rows of all ranks, without gradients."""
        if self.world_size == 1:
            return own.detach().clone()
        longest = max(counts)
        padded = own.new_zeros((longest, *own.shape[1:]))
        padded[: len(own)] = own  # all_gather takes the same shape of all
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

    def _guided(self, texts: list[EncoderText], guide: str) -> torch.Tensor:
        """The guide's vectors of the texts, [texts, D]; it puts its own instructions before them."""
        model = self.guides[guide]
        found: dict[int, torch.Tensor] = {}
        for kind, encode in (("query", model.encode_query), ("passage", model.encode_document)):
            places = [place for place, text in enumerate(texts) if text.kind == kind]
            if places:
                rows = encode([texts[place].text for place in places], convert_to_tensor=True, show_progress_bar=False)
                for place, row in zip(places, rows, strict=True):
                    found[place] = row
        size = model.get_embedding_dimension()
        ordered = [found[place] for place in range(len(texts))]
        vectors = torch.stack(ordered).clone().float() if texts else torch.zeros((0, size), device=self.device)
        if not vectors.isfinite().all():  # the loss would take every passage for a negative, and be finite
            raise FloatingPointError(f"the vectors of the guide {guide} are not finite")
        return vectors

    def _batches(self, texts: list[EncoderText]) -> list[TextBatch]:
        """The texts in as many forward passes on every rank, texts of like lengths together."""
        texts = [replace(text, prompt=self._instruction(text)) for text in texts]
        batches = [
            batch
            for group in self._by_prompt(texts)
            for start in range(0, len(group), _TOKENISED_TOGETHER)
            for batch in self._of_like_lengths(texts, group[start : start + _TOKENISED_TOGETHER])
        ]
        missing = self._most(len(batches)) - len(batches)
        if missing:
            idle = EncoderText(kind="query", text="a", prompt="", passage="a" if self._reranks else None)
            batches += [TextBatch([], self._features([idle]), 0, 0)] * missing  # ranks must make as many passes
        return batches

    def _instruction(self, text: EncoderText) -> str:
        """What is put before a text: its own instruction, or the one that encode_query, encode_document or predict of
        this model would use."""
        if text.prompt is not None:
            return text.prompt
        kept = self.model.prompts
        if self._reranks:
            return kept.get(self.model.default_prompt_name, "")
        names = ("query",) if text.kind == "query" else ("document", "passage", "corpus")
        return next((kept[name] for name in names if name in kept), "")

    def _by_prompt(self, texts: list[EncoderText]) -> list[list[int]]:
        """Places of texts that can share a forward pass, longest texts first: all of them, unless pooling leaves out
        the instruction's tokens, or a chat template has a place of its own for it."""
        # By characters: how many tokens they have is known only once they are padded together.
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place].text) - len(texts[place].passage or ""))
        pooled = all(getattr(module, "include_prompt", True) for module in self.model)
        if pooled and "message" not in self.model.modalities:
            return [order]
        groups: dict[str | None, list[int]] = {}
        for place in order:
            groups.setdefault(texts[place].prompt, []).append(place)
        return list(groups.values())

    def _of_like_lengths(self, texts: list[EncoderText], places: list[int]) -> Iterator[TextBatch]:
        features = self._features([texts[place] for place in places])
        lengths = features["attention_mask"].sum(1).tolist()
        order = sorted(range(len(places)), key=lambda index: -lengths[index])
        overhead = _PASS_OVERHEAD[self.device.type]
        for rows in cut_lengths([lengths[index] for index in order], self.group.micro_batch_tokens, overhead):
            chosen = order[rows.start : rows.stop]
            longest = lengths[chosen[0]]
            taken = {name: _rows(value, chosen, longest) for name, value in features.items()}
            tokens = sum(lengths[index] for index in chosen)
            yield TextBatch([places[index] for index in chosen], taken, tokens, longest * len(chosen))

    def _features(self, texts: list[EncoderText]) -> Features:
        prompts = {text.prompt for text in texts}
        one = prompts.pop() if len(prompts) == 1 else None
        # The prompt is given apart where all texts have the same, as pooling may have to leave it out.
        before = ["" if one is not None else text.prompt or "" for text in texts]
        inputs = [
            prefix + text.text if text.passage is None else (prefix + text.text, text.passage)
            for prefix, text in zip(before, texts, strict=True)
        ]
        return self.model.preprocess(inputs, prompt=one or None)

    def _forward(self, batch: TextBatch) -> torch.Tensor:
        found = self.engine.forward(self._on_device(batch.features))
        self.work.progressed()
        return found

    def _on_device(self, features: Features) -> Features:
        device = self.device
        return {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in features.items()}

    def _in_order(self, batches: list[TextBatch], found: list[torch.Tensor], count: int) -> torch.Tensor:
        shape = (count, *found[0].shape[1:])
        outputs = torch.zeros(shape, dtype=found[0].dtype, device=self.device)
        for batch, rows in zip(batches, found, strict=True):
            if batch.places:
                outputs[batch.places] = rows
        return outputs

    def _counted(self, batches: list[TextBatch], texts: int) -> Metrics:
        limit = self.model.max_seq_length or 0
        full = sum(
            int((batch.features["attention_mask"].sum(1) >= limit).sum()) for batch in batches if batch.places and limit
        )
        sums = [sum(batch.tokens for batch in batches), sum(batch.padded for batch in batches), full, texts]
        tokens, padded, full, texts = self.sum_over_ranks(np.array(sums, dtype=np.float64)).tolist()
        return {
            "tokens/trained": tokens,
            "tokens/padding_fraction": 1 - tokens / padded,
            "texts/at_limit_fraction": full / texts,
        }

    def _most(self, value: int) -> int:
        """The largest value of all ranks."""
        if self.world_size == 1:
            return value
        most = torch.tensor(value, device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)

    @contextmanager
    def _replayed(self, state: list[torch.Tensor]) -> Iterator[None]:
        """Within it, dropout draws what it drew in the first pass."""
        now = self._random_state()
        self._set_random_state(state)
        try:
            yield
        finally:
            self._set_random_state(now)


def _at(gradients: torch.Tensor, batch: TextBatch) -> torch.Tensor:
    """Gradients of the batch's outputs; those of an idle pass are 0."""
    return gradients[batch.places] if batch.places else gradients.new_zeros(())


def _rows(value: object, chosen: list[int], longest: int) -> object:
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    return value[chosen][:, :longest] if value.ndim > 1 else value[chosen]
