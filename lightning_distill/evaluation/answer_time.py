"""How long it takes to generate a run's answers and samples, from a few of their tokens."""

from torch import Tensor
from transformers import PreTrainedModel

from lightning_distill.data.tasks.base import NUM_SAMPLES, DistillationData
from lightning_distill.models.generation_time import generation_seconds

PROMPT = 8  # tokens of a prompt that are read
SAMPLE_TOKENS = 48  # of a sample


def answer_seconds(data: DistillationData, model: PreTrainedModel) -> float:
    """Of `score_generation` and of the samples, if no answer ends before the longest may.

    Reads PROMPT tokens of a batch of prompts and of one prompt, and generates a few tokens.
    """
    if not data.is_generative:
        return 0.0
    prompts, seconds = data.scored_prompts(), 0.0
    ids: Tensor = data.examples("test")[0]["input_ids"][:PROMPT]
    batches = [
        prompts[i : i + data.generation_batch]
        for i in range(0, len(prompts), data.generation_batch)
    ]
    if batches:
        read, step = generation_seconds(model, data.tokenizer, ids, len(batches[0]))
        for batch in batches:
            lengths = [len(prompt) for prompt in batch]
            used = min(lengths) if data.continues_prompt else 0
            seconds += read * max(lengths) / PROMPT + step * max(0, data.max_length - used)
    _, step = generation_seconds(model, data.tokenizer, ids, 1)
    return seconds + NUM_SAMPLES * SAMPLE_TOKENS * step
