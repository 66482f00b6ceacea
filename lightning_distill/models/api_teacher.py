"""A teacher behind an OpenAI-compatible completions server, such as vLLM's.

Each document is sent as a prompt of token ids, which the server echoes with the k largest
log-probabilities at every position (`echo`, `logprobs`). Neither the other probabilities nor
hidden states can be had from such a server.
"""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lightning_distill.constants import LEAST
from lightning_distill.errors import ConfigError
from lightning_distill.models.completions_client import CompletionsClient
from lightning_distill.models.inspection import vocabulary_size

TOKEN_ID_PREFIX = "token_id:"  # vLLM's, with `return_tokens_as_token_ids`
ROUNDING = 0.01  # of probabilities, by the server


@dataclass(frozen=True)
class TopK:
    """The k largest next-token log-probabilities, in place of `output_head.Predictions`.

    ids, log_p: [..., k]. vocab_size: V.
    """

    ids: Tensor
    log_p: Tensor
    vocab_size: int

    def logits(self) -> Tensor:
        """[N, V], for ids of [N, k]. The other tokens share the rest of the probability evenly."""
        num_others = max(1, self.vocab_size - self.ids.shape[-1])
        rest = 1 - self.log_p.exp().sum(-1, keepdim=True)
        other_log_p = rest.clamp(min=LEAST).log() - math.log(num_others)
        other_log_p = other_log_p.minimum(self.log_p.amin(-1, keepdim=True))
        return other_log_p.expand(-1, self.vocab_size).scatter(-1, self.ids, self.log_p)

    def at(self, positions: Tensor | slice) -> "TopK":
        """The predictions at some of the flattened positions: indices [N] or a slice."""
        ids, log_p = self.ids.flatten(0, -2), self.log_p.flatten(0, -2)
        return TopK(ids[positions], log_p[positions], self.vocab_size)


class APITeacher(nn.Module):
    """Takes the place of `Frozen`, with a server instead of a model.

    tokenizer: the same as the server's. k: number of log-probabilities per token. The other
    arguments: see `CompletionsClient`.
    """

    def __init__(
        self,
        url: str,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        timeout: float,
        retries: int,
        connections: int,
        key_variable: str | None,
        k: int,
        backoff: float = 1.0,
    ) -> None:
        super().__init__()
        self.client = CompletionsClient(url, timeout, retries, connections, key_variable, backoff)
        self.name, self.tokenizer, self.connections, self.k = name, tokenizer, connections, k
        self._vocab = tokenizer.get_vocab()
        self._vocab_size = vocabulary_size(tokenizer)
        self._ids: dict[str, int] = {}  # by the token as the server writes it

    def forward(self, batch: dict[str, Tensor]) -> TopK:
        """batch: input_ids and position_ids, [B, T]. Returns predictions of [B, T, k].

        Raises ConfigError where the server fails, or where an answer cannot be used.
        """
        input_ids = batch["input_ids"]
        documents = list(split_documents(input_ids, batch["position_ids"]))
        pairs: list[tuple[int, float]] = []
        pool = ThreadPoolExecutor(self.connections)
        try:
            answers = pool.map(self._complete, documents)
            for document, answer in zip(documents, answers, strict=True):
                for largest in self._parse(document, answer):
                    pairs += largest
        except BaseException:
            self.client.stop.set()  # ends the retries of the other requests
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        ids, log_p = (torch.tensor(x, device=input_ids.device) for x in zip(*pairs, strict=True))
        shape = (*input_ids.shape, self.k)
        return TopK(ids.view(shape), log_p.view(shape), self._vocab_size)

    def _complete(self, prompt: list[int]) -> str:
        return self.client.complete(
            model=self.name,
            prompt=prompt,
            echo=True,
            logprobs=self.k,
            max_tokens=1,  # for the distribution after the last token
            temperature=1,  # some servers report the distribution that they sample from
            top_p=1,
            return_tokens_as_token_ids=True,
        )

    def _parse(self, prompt: list[int], answer: str) -> list[list[tuple[int, float]]]:
        """The k largest (id, log-probability) after each token of the prompt."""
        try:
            logprobs = json.loads(answer)["choices"][0]["logprobs"]
            tokens, positions = list(logprobs["tokens"]), list(logprobs["top_logprobs"])[1:]
        except (ValueError, LookupError, TypeError):
            raise self.client.unusable_answer(
                answer, "there is no choices[0].logprobs; it must support echo and logprobs."
            ) from None
        if len(tokens) < len(prompt) or not all(map(self._is_token, tokens, prompt)):
            raise self.client.unusable_answer(
                answer,
                f"its tokens are not those of the prompt, {str(prompt)[:40]}…. It must take token "
                "ids for a prompt, and teacher.tokenizer must be its own.",
            )
        if len(positions) < len(prompt):
            raise self.client.unusable_answer(
                answer, f"top_logprobs for {len(positions)} of {len(prompt)} positions."
            )
        return [self._largest(position, answer) for position in positions[: len(prompt)]]

    def _largest(self, position: Any, answer: str) -> list[tuple[int, float]]:
        """Of one position's {token: log-probability}, which may hold the sampled token as well."""
        try:
            log_p = {str(token): float(value) for token, value in position.items()}
        except (AttributeError, TypeError, ValueError):
            raise self.client.unusable_answer(
                answer, "top_logprobs are not numbers by token."
            ) from None
        by_id = {self._id_of(token): value for token, value in log_p.items()}
        if len(by_id) < self.k:
            raise self.client.unusable_answer(
                answer,
                f"{len(by_id)} log-probabilities per token, fewer than transfer.k={self.k}. Set "
                "transfer.k to what the server allows (vLLM: --max-logprobs).",
            )
        if not all(math.isfinite(value) and value <= ROUNDING for value in by_id.values()):
            raise self.client.unusable_answer(
                answer, "a log-probability is above 0, or is NaN or Inf."
            )
        largest = sorted(by_id.items(), key=lambda pair: -pair[1])[: self.k]
        if (total := sum(math.exp(value) for _, value in largest)) > 1 + ROUNDING:
            raise self.client.unusable_answer(
                answer, f"the probabilities at a position sum to {total:.3f}."
            )
        return largest

    def _is_token(self, token: Any, token_id: int) -> bool:
        """Whether an echoed token, in any of three spellings, is the one that was sent."""
        if token == f"{TOKEN_ID_PREFIX}{token_id}":
            return True
        if token == self.tokenizer.convert_ids_to_tokens(token_id):
            return True
        return bool(token == self.tokenizer.decode([token_id]))

    def _id_of(self, token: str) -> int:
        if token not in self._ids:
            self._ids[token] = self._look_up(token)
        return self._ids[token]

    def _look_up(self, token: str) -> int:
        """The id of `token_id:5`, of a token of the vocabulary, or of the text of a single token.

        Raises ConfigError where there is none, or where two spellings give different ids.
        """
        number = token.removeprefix(TOKEN_ID_PREFIX)
        if number != token and number.isdecimal():
            candidates = {int(number)}
        else:
            ids = self.tokenizer.encode(token, add_special_tokens=False)
            is_one_token = len(ids) == 1 and self.tokenizer.decode(ids) == token
            candidates = set(ids if is_one_token else [])
            candidates |= {self._vocab[token]} if token in self._vocab else set()
        if len(candidates) == 1 and 0 <= (token_id := candidates.pop()) < self._vocab_size:
            return token_id
        raise ConfigError(
            f"teacher.url={self.client.url} lists the token {self.client.redacted(token, 40)!r}, "
            f"which is not one of the {len(self.tokenizer)} of teacher.tokenizer, or several. That "
            "must be the server's own, and the server should write tokens as ids, as vLLM does."
        )


def split_documents(input_ids: Tensor, position_ids: Tensor) -> Iterator[list[int]]:
    """The token ids of each document in the blocks [B, T]; positions restart with a document."""
    is_start = torch.ones_like(position_ids, dtype=torch.bool)
    is_start[:, 1:] = position_ids.diff() != 1
    starts = is_start.flatten().nonzero()[:, 0].tolist()
    ids = input_ids.flatten().tolist()
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        yield ids[start:stop]
