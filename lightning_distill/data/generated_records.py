"""What a teacher generated, in the tokens of a student."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_distill.data.tokenizer import bos_of


def retokenized(
    record: dict[str, Any], teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """A record's prompt and completion, in the student's tokens.

    record: `prompt_ids` and `ids` in the teacher's tokens, and the completion as `text`.
    """
    prompt_ids: list[int] = record["prompt_ids"]
    ids: list[int] = record["ids"]
    if teacher is student:
        return prompt_ids, ids
    bos = bos_of(teacher)  # which is no text
    prompt_text = teacher.decode([i for i in prompt_ids if i not in bos])
    prompt, completion = (
        student(text, add_special_tokens=False, verbose=False)["input_ids"]
        for text in (prompt_text, record["text"])
    )
    closing = [student.eos_token_id] if ids[-1:] == [teacher.eos_token_id] else []
    return [*bos_of(student), *prompt], [*completion, *closing]
