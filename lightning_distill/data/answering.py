"""A teacher's answers to a batch of conversations."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lightning_distill.data.assistant_masker import without_clock
from lightning_distill.data.chat_template import prompt_ids
from lightning_distill.data.sources.base import Conversation, Message
from lightning_distill.models.generation import Sampling, generate, seed_of
from lightning_distill.models.inspection import stops_of


@dataclass(frozen=True)
class AnswerSettings:
    """temperature: of sampling; 0 for greedy decoding. max_new_tokens: of an answer."""

    temperature: float
    max_new_tokens: int


def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    settings: AnswerSettings,
    batch: list[Conversation],
    number: int,
    keeps_unfinished: bool = False,
) -> Iterator[dict[str, Any]]:
    """The conversations of a batch with answers.

    keeps_unfinished: an answer that does not end within `max_new_tokens` is cut there; else its
    conversation is left out.
    """
    sampling, stops = Sampling(settings.temperature), stops_of(model, tokenizer)
    histories: list[list[Message]] = [[] for _ in batch]
    left = {i: questions_of(one.messages) for i, one in enumerate(batch)}
    for turn in range(max(map(len, left.values()))):
        indices = [i for i, questions in left.items() if turn < len(questions)]
        for i in indices:
            histories[i] += left[i][turn]
        prompts = [torch.tensor(prompt_of(tokenizer, histories[i], batch[i])) for i in indices]
        length = max(map(len, prompts)) + settings.max_new_tokens
        seed = seed_of(number, turn)
        answers = generate(model, tokenizer, prompts, length, sampling, seed, stops)
        for i, ids in zip(indices, answers, strict=True):
            new = ids[: settings.max_new_tokens]  # a short prompt leaves room for more
            text = str(tokenizer.decode(new, skip_special_tokens=True)).strip()
            ends = ids and ids[-1] in stops and len(ids) <= settings.max_new_tokens
            if text and (ends or keeps_unfinished):
                histories[i].append({"role": "assistant", "content": text})
            else:
                del left[i]
    for i in left:
        tools = {"tools": batch[i].tools} if batch[i].tools else {}
        yield {"messages": histories[i], **tools}


def prompt_of(
    tokenizer: PreTrainedTokenizerBase, history: list[Message], conversation: Conversation
) -> list[int]:
    """The tokens that the next answer follows, on the day that students read."""
    template = without_clock(tokenizer.get_chat_template())
    return prompt_ids(tokenizer, history, conversation.tools, template)


def questions_of(messages: list[Message]) -> list[list[Message]]:
    """What stands before each answer: a question, perhaps with a system message before it."""
    turns: list[list[Message]] = [[]]
    for message in messages:
        if message["role"] == "assistant" and turns[-1]:
            turns.append([])
        elif message["role"] != "assistant":
            turns[-1].append(message)
    return [turn for turn in turns if turn]


def as_lines(conversations: Iterable[dict[str, Any]]) -> bytes:
    lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in conversations)
    return "".join(lines).encode()
