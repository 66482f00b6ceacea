"""Generation with vLLM instead of transformers, where it is installed and there is a GPU."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.models.generation import Sampling


def is_usable(data: DistillationData, sampling: Sampling) -> bool:
    """Used for decoder-only models and without beam search, where it is faster."""
    fits = data.continues_prompt and sampling.num_beams == 1
    return fits and importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()


class VLLM:
    """Generates like `models.generation.generate`, with the same settings but another RNG."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        folder: Path,
        stops: Sequence[int] | None = None,
    ) -> None:
        """length: maximum tokens of a sequence. folder: where vLLM loads the model from.
        stops: tokens that end a sequence; None for the end-of-text token."""
        from vllm import LLM

        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.tokenizer = tokenizer
        self.stops = [tokenizer.eos_token_id] if stops is None else list(stops)
        # `generation_config="vllm"`: ignore the sampling defaults in the model's folder.
        self.engine: Any = LLM(model=str(folder), max_model_len=length, generation_config="vllm")

    def __call__(
        self, prompts: list[Tensor], length: int, sampling: Sampling, seed: int
    ) -> list[list[int]]:
        from vllm import SamplingParams

        settings = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=length - len(prompt),
                seed=(seed + i) % 2**63,
                stop_token_ids=self.stops,
                allowed_token_ids=list(range(len(self.tokenizer))),
                detokenize=False,
            )
            for i, prompt in enumerate(prompts)
        ]
        requests = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        answers = self.engine.generate(requests, settings, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in answers]
