"""vLLM in the place of transformers: where it is installed, and on a GPU."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.models.generation import Sampling


def usable(data: DistillationData, sampling: Sampling) -> bool:
    """Decoders alone, and without beams, are what it is fast at."""
    fits = data.continues_prompt and sampling.num_beams == 1
    return fits and importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()


class VLLM:
    """Writes like `writing.write`, by the same rules but with other dice."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        folder: Path,
        stops: Sequence[int] | None = None,
    ) -> None:
        """length: the most tokens of a sequence. folder: where the model can be loaded from.
        stops: tokens that end one; None for the end-of-text token."""
        from vllm import LLM

        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.tokenizer = tokenizer
        self.stops = [tokenizer.eos_token_id] if stops is None else list(stops)
        # `generation_config="vllm"`: what the model's own file says of sampling does not count.
        self.engine: Any = LLM(model=str(folder), max_model_len=length, generation_config="vllm")

    def __call__(
        self, beginnings: list[Tensor], length: int, sampling: Sampling, seed: int
    ) -> list[list[int]]:
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": own.tolist()} for own in beginnings]
        settings = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=length - len(own),
                seed=(seed + i) % 2**63,
                stop_token_ids=self.stops,
                allowed_token_ids=list(range(len(self.tokenizer))),
                detokenize=False,
            )
            for i, own in enumerate(beginnings)
        ]
        found = self.engine.generate(asked, settings, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in found]
