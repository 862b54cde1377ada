"""A rank that writes its model as others use it: a Hugging Face directory, with its adapters beside it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actors.config import ModelConfig, UserError
from actors.files.full_disk import told_when_full
from actors.secret_text import masked
from actors.train.engine import TrainingEngine, gathered, to_the_end
from actors.train.worker import Worker

if TYPE_CHECKING:
    from actors.models.chat_settings import ChatSettings
    from actors.models.lora import MergeError

_REASON_LENGTH = 300
"""Characters of a library's message that are told."""


class ExportingWorker(Worker):
    """One rank of a group whose model is exported."""

    hf_model: Any
    """The Hugging Face model inside of the module."""
    engine: TrainingEngine
    model_config: ModelConfig
    directory: str
    """Of the model that it started from."""
    chat: "ChatSettings | None" = None
    """What exports say of conversations."""

    def prepare_export(self, directory: Path, chat: "ChatSettings | None" = None) -> list[str]:
        """Write all of an export but the weights, on rank 0: what cannot be written is told before training. `chat` is
        what it says of conversations, also when it is written later.

        Returns what whoever uses the export should know.

        Raises:
            UserError: what the model's directory holds cannot be exported.
        """
        from actors.models import adapter_files, lora
        from actors.models.as_source import generation_problem

        self.chat = chat
        if self.rank:
            return []
        with told_when_full(directory):
            try:
                note = self.write_files(directory, None)
                if lora.has_adapters(self.hf_model):
                    self.write_adapter_files(directory, {})
            except (UserError, OSError):
                raise
            except Exception as error:  # transformers has a type for every file; each of them is the model's
                reason = masked(" ".join(str(error).split())[:_REASON_LENGTH]) or type(error).__name__
                raise UserError(
                    f"model.path: must be a model that can be exported when training has ended ({reason}), "
                    f"got {self.model_config.path or self.directory}"
                ) from error
        return [each for each in (adapter_files.reach_note(self.hf_model), note, generation_problem(directory)) if each]

    def export(self, directory: Path) -> float | None:
        """Write the model as it is to be used, with the average of its weights where the group keeps one, to where
        `prepare_export` was, or to a new directory.

        Returns, with adapters, the share of what they change that rounding took from the merged weights.
        """
        with self.engine.averaged(), told_when_full(directory):
            return self.write_model(directory)

    def write_files(self, directory: Path, tensors: Iterable[tuple[str, torch.Tensor]] | None) -> str | None:
        """Write the weights of an export, which come one at a time, or with None all the others of its files.

        Returns what whoever uses it should know of the others.
        """
        from actors.models import lora
        from actors.models.export import export_settings, export_weights
        from actors.models.tokenizer import load_tokenizer

        shell, metas = lora.unquantized_shell(self.hf_model), lora.parameter_metas(self.hf_model)
        if tensors is None:
            return export_settings(shell, metas, load_tokenizer(self.directory), directory, self.chat)
        return export_weights(shell, metas, tensors, directory)

    def write_model(self, directory: Path) -> float | None:
        """Write a Hugging Face directory, with adapters merged and alone below it; see `export`.

        All ranks gather, rank 0 writes.
        """
        from actors.models import lora

        error = lora.MergeError()
        tensors = lora.plain_parameters(self.hf_model, gathered, merged=True, error=error)
        with to_the_end(tensors):
            if self.rank == 0:
                # What is prepared needs nothing of the model's directory, which may be gone by now.
                if not (directory / "config.json").is_file():
                    self.write_files(directory, None)
                self.work.expect(len(lora.parameter_metas(self.hf_model)), "tensors")
                self.write_files(directory, self._one_by_one(tensors))
        return self.write_adapter(directory, error)

    def _one_by_one(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The same, counted as they are taken."""
        for tensor in tensors:
            yield tensor
            self.work.progressed()

    def write_adapter(self, directory: Path, error: "MergeError") -> float | None:
        """Write the adapters, if the model has any, alone below an export in which they are merged; all ranks gather.

        Returns what merging has lost, as `export` does; None without adapters.
        """
        from actors.models import adapter_files, lora

        if not lora.has_adapters(self.hf_model):
            return None
        adapter = adapter_files.adapter_state(self.hf_model, gathered, keep=self.rank == 0)
        if self.rank == 0:
            self.write_adapter_files(directory, adapter)
        return error.value

    def write_adapter_files(self, directory: Path, adapter: dict[str, torch.Tensor]) -> None:
        """Write the adapters, which may be without values, with the settings of the export in `directory`."""
        from actors.models import adapter_files
        from actors.models.adapter_settings import write_adapter_settings

        write_adapter_settings(directory / "adapter", directory)
        adapter_files.write_adapter(
            directory / "adapter", adapter_files.adapter_config(self.hf_model, self.directory), adapter
        )
