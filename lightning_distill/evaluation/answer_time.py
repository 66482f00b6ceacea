"""How long it takes to generate a run's answers and samples, from a few of their tokens."""

from torch import Tensor
from transformers import PreTrainedModel

from lightning_distill.data.tasks.base import NUM_SAMPLES, DistillationData
from lightning_distill.models.generation import Sampling
from lightning_distill.models.generation_time import generation_seconds

GREEDY = Sampling(temperature=0.0)
PROMPT = 8  # tokens of a prompt that are read
SAMPLE_TOKENS = 48  # of a sample
MARGIN = 1.25  # the longest answer of a batch, in units of its longest reference


def answer_seconds(data: DistillationData, model: PreTrainedModel) -> float:
    """Of `score_generation` and of the samples, if answers are about as long as references.

    Reads PROMPT tokens of a batch of prompts and of one prompt, and generates a few tokens.
    """
    if not data.is_generative:
        return 0.0
    prompts, references, seconds = data.scored_prompts(), data.scored_lengths(), 0.0
    ids: Tensor = data.examples("test")[0]["input_ids"][:PROMPT]
    size = data.generation_batch
    if prompts:
        count = min(size, len(prompts))
        read, step = generation_seconds(model, data.tokenizer, ids, count, GREEDY)
        for start in range(0, len(prompts), size):
            lengths = [len(prompt) for prompt in prompts[start : start + size]]
            used = min(lengths) if data.continues_prompt else 0
            expected = MARGIN * max(references[start : start + size])
            new = max(0.0, min(data.max_length - used, expected))
            seconds += read * max(lengths) / PROMPT + step * new
    _, step = generation_seconds(model, data.tokenizer, ids, 1, GREEDY)
    return seconds + NUM_SAMPLES * SAMPLE_TOKENS * step
