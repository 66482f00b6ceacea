"""Conversations whose answers a teacher writes: for data that has questions alone.

The questions of a conversation are asked one after another, and each answer is part of what the
next one follows. Answers that the data brings are replaced.

A plan or a doctor asks a few of them (`Answerer.sample`). Copies of these conversations stand for
the others, so that there are as many examples as in the run.
"""

import logging
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.data.answering import (
    AnswerSettings,
    answer,
    as_lines,
    prompt_of,
    questions_of,
)
from lightning_distill.data.loaders import evenly_spaced
from lightning_distill.data.sources.base import Conversation, ConversationSource
from lightning_distill.data.sources.conversations import Conversations
from lightning_distill.data.tokenizer import tokenizer_hash
from lightning_distill.errors import ConfigError
from lightning_distill.models.generation import Sampling
from lightning_distill.models.generation_time import generation_seconds
from lightning_distill.progress import progress
from lightning_distill.storage.artifacts import Store, key_of, write_atomic

log = logging.getLogger(__name__)

VERSION = 2  # raise it when a teacher is asked differently
BATCH = 64  # conversations at a time
SAMPLE = 8  # conversations
SAMPLE_TOKENS = 128  # of an answer in a sample, at most
TIMED_TOKENS = 2048  # of all prompts of the batch that is timed, at most


@dataclass(frozen=True)
class Answerer:
    """The model that answers.

    key: identifies it. sample: whether SAMPLE conversations are enough, where the others have not
    been answered before.
    """

    key: str
    load: Callable[[], PreTrainedModel]
    sample: bool = False


@dataclass(frozen=True)
class Answered:
    """source: the conversations with answers.

    answered, total: how many the teacher has answered, and of how many. key: of the artifact with
    all of them. seconds, num_bytes: what making it takes, where there is only a sample.
    """

    source: Conversations
    answered: int
    total: int
    key: str
    is_sample: bool = False
    seconds: float = 0.0
    num_bytes: int = 0


def answered(
    answerer: Answerer,
    tokenizer: PreTrainedTokenizerBase,
    settings: AnswerSettings,
    store: Store,
    source: ConversationSource,
) -> Answered:
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
    key = key_of(made_from)
    is_sample = answerer.sample and store.find("conversations", made_from) is None
    if is_sample:
        made_from |= {"sample": [SAMPLE, SAMPLE_TOKENS]}
    write = _make_sample if is_sample else _make
    make = partial(write, answerer, tokenizer, settings, source)
    artifact = store.get("conversations", made_from, make)
    files = Conversations(str(artifact.folder / "*.jsonl"), "messages", False)
    content = artifact.manifest["content"]
    total = content["conversations"]
    if not is_sample:
        return Answered(files, total, total, key)
    return Answered(files, content["sample"], total, key, True, **content["all"])


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
        texts = answer(model, tokenizer, settings, batches[number], number)
        write_atomic(files[number], as_lines(texts))
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


def _make_sample(
    answerer: Answerer,
    tokenizer: PreTrainedTokenizerBase,
    settings: AnswerSettings,
    source: ConversationSource,
    folder: Path,
) -> dict[str, Any]:
    """Writes a few conversations and their copies, and estimates what all answers take."""
    conversations, model = list(source.read(lambda one: one)), answerer.load().eval()
    few = replace(settings, max_new_tokens=min(settings.max_new_tokens, SAMPLE_TOKENS))
    sample = [conversations[i] for i in evenly_spaced(len(conversations), SAMPLE)]
    answers = answer(model, tokenizer, few, sample, 0, keeps_unfinished=True)
    texts = [one for one in answers if one["messages"]]
    if not texts:
        raise ConfigError(
            f"data.answers=teacher: the answers to {len(sample)} conversations are all empty. "
            "Choose another teacher, or a data.chat_template that it was trained with."
        )
    lines = as_lines(_copied(texts, len(conversations)))
    write_atomic(folder / "conversations-00000.jsonl", lines)
    seconds = _seconds_of_all(model, tokenizer, settings, conversations)
    return {
        "conversations": len(conversations),
        "sample": len(texts),
        "all": {"seconds": seconds, "num_bytes": len(lines)},
    }


def _copied(texts: list[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """So many conversations. Copies are numbered, as equal conversations would count once."""
    for number in range(count):
        one = deepcopy(texts[number % len(texts)])
        if copy := number // len(texts):
            first = next((m for m in one["messages"] if m["role"] != "system"), one["messages"][0])
            first["content"] = f"{first['content']} ({copy})"
        yield one


def _seconds_of_all(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    settings: AnswerSettings,
    conversations: list[Conversation],
) -> float:
    """If the longest answer of each batch is as long as one may be.

    The tokens that are timed follow a prompt with half of an answer, as later ones take longer,
    as far as TIMED_TOKENS allow.
    """
    first = conversations[:BATCH]
    questions = [questions_of(one.messages) for one in first]
    prompts = [
        prompt_of(tokenizer, question[0], one)
        for question, one in zip(questions, first, strict=True)
        if question
    ]
    prompt = max(prompts, key=len, default=[0])
    half = min(settings.max_new_tokens, SAMPLE_TOKENS) // 2
    ids = torch.tensor([*prompt, *prompt[-1:] * half])[: TIMED_TOKENS // len(first)]
    sampling = Sampling(settings.temperature)
    read, step = generation_seconds(model, tokenizer, ids, len(first), sampling)
    turns = max(map(len, questions)) * len(conversations) / len(first)
    return turns * (read * len(prompt) / len(ids) + step * settings.max_new_tokens)
