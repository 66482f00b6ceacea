"""Conversations whose answers a teacher writes: for data that has questions alone.

The questions of a conversation are asked one after another, and each answer is part of what the
next one follows. Answers that the data brings are replaced.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.data.assistant_masker import without_clock
from lightning_distill.data.chat_template import prompt_ids
from lightning_distill.data.sources.base import Conversation, ConversationSource, Message
from lightning_distill.data.sources.conversations import Conversations
from lightning_distill.data.tokenizer import tokenizer_hash
from lightning_distill.errors import ConfigError
from lightning_distill.models.generation import Sampling, generate, seed_of
from lightning_distill.models.inspection import stops_of
from lightning_distill.progress import progress
from lightning_distill.storage.artifacts import Store, write_atomic

log = logging.getLogger(__name__)

VERSION = 2  # raise it when a teacher is asked differently
BATCH = 64  # conversations at a time


@dataclass(frozen=True)
class AnswerSettings:
    """temperature: of sampling; 0 for greedy decoding. max_new_tokens: of an answer."""

    temperature: float
    max_new_tokens: int


@dataclass(frozen=True)
class Answerer:
    """The model that answers. key: identifies it."""

    key: str
    load: Callable[[], PreTrainedModel]


def answered(
    answerer: Answerer,
    tokenizer: PreTrainedTokenizerBase,
    settings: AnswerSettings,
    store: Store,
    source: ConversationSource,
) -> Conversations:
    """The conversations of `source` with answers, from an artifact.

    tokenizer: with the chat template. A conversation with an answer that does not end within
    `max_new_tokens` is left out.
    """
    made_from = {
        "source": source.fingerprint(),
        "teacher": answerer.key,
        "tokenizer": tokenizer_hash(tokenizer),
        "chat_template": tokenizer.chat_template,
        "edition": VERSION,
        **asdict(settings),
    }
    make = partial(_make, answerer, tokenizer, settings, source)
    artifact = store.get("conversations", made_from, make)
    return Conversations(str(artifact.folder / "*.jsonl"), "messages", False)


def _make(
    answerer: Answerer,
    tokenizer: PreTrainedTokenizerBase,
    settings: AnswerSettings,
    source: ConversationSource,
    folder: Path,
) -> dict[str, Any]:
    """Writes the files that the folder lacks, one a batch."""
    conversations = list(source.read(lambda one: one))
    batches = [conversations[i : i + BATCH] for i in range(0, len(conversations), BATCH)]
    files = {number: folder / f"conversations-{number:05d}.jsonl" for number in range(len(batches))}
    missing = [number for number, file in files.items() if not file.exists()]
    model, start = answerer.load().eval() if missing else None, time.perf_counter()
    for done, number in enumerate(progress(missing, "the teacher answers")):
        texts = _answer(model, tokenizer, settings, batches[number], number)
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in texts)
        write_atomic(files[number], lines.encode())
        if not done:
            seconds = (time.perf_counter() - start) * (len(missing) - 1)
            log.info(
                "the teacher answers %s conversations: about %.0f more seconds",
                *(len(conversations), seconds),
            )
    kept = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files.values())
    if not kept:
        raise ConfigError(
            f"No answer of the teacher ends within data.answer_tokens={settings.max_new_tokens}."
        )
    return {"conversations": kept, "left_out": len(conversations) - kept}


def _answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    settings: AnswerSettings,
    batch: list[Conversation],
    number: int,
) -> Iterator[dict[str, Any]]:
    """The conversations of a batch with answers."""
    sampling, stops = Sampling(settings.temperature), stops_of(model, tokenizer)
    template = without_clock(tokenizer.get_chat_template())  # of the day that students read
    histories: list[list[Message]] = [[] for _ in batch]
    left = {i: _questions(one.messages) for i, one in enumerate(batch)}
    for turn in range(max(map(len, left.values()))):
        indices = [i for i, questions in left.items() if turn < len(questions)]
        for i in indices:
            histories[i] += left[i][turn]
        prompts = [
            torch.tensor(prompt_ids(tokenizer, histories[i], batch[i].tools, template))
            for i in indices
        ]
        length = max(map(len, prompts)) + settings.max_new_tokens
        seed = seed_of(number, turn)
        answers = generate(model, tokenizer, prompts, length, sampling, seed, stops)
        for i, ids in zip(indices, answers, strict=True):
            text = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
            ends = ids and ids[-1] in stops and len(ids) <= settings.max_new_tokens
            if ends and text:
                histories[i].append({"role": "assistant", "content": text})
            else:
                del left[i]
    for i in left:
        tools = {"tools": batch[i].tools} if batch[i].tools else {}
        yield {"messages": histories[i], **tools}


def _questions(messages: list[Message]) -> list[list[Message]]:
    """What stands before each answer: a question, perhaps with a system message before it."""
    turns: list[list[Message]] = [[]]
    for message in messages:
        if message["role"] == "assistant" and turns[-1]:
            turns.append([])
        elif message["role"] != "assistant":
            turns[-1].append(message)
    return [turn for turn in turns if turn]
