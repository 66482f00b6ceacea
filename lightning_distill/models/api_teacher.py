"""A teacher behind an OpenAI-compatible completions server, such as vLLM's.

The server reads each text as a prompt of token ids and echoes it with the k largest
log-probabilities at every place (`echo`, `logprobs`). That is all that it tells: neither the other
probabilities nor hidden states.
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
from lightning_distill.models.completions_client import Completions

AS_ID = "token_id:"  # what vLLM writes in front of an id, if asked to

# What a server may have rounded, in probability.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Largest:
    """What a server says of the tokens that come next, in the place of `head.Predictions`.

    ids, log_p: [..., k], its k largest log-probabilities. vocab_size: V.
    """

    ids: Tensor
    log_p: Tensor
    vocab_size: int

    def logits(self) -> Tensor:
        """[N, V] of ids [N, k]: all other tokens share evenly what the listed ones leave."""
        others = max(1, self.vocab_size - self.ids.shape[-1])
        left = 1 - self.log_p.exp().sum(-1, keepdim=True)
        share = left.clamp(min=LEAST).log() - math.log(others)
        share = share.minimum(self.log_p.amin(-1, keepdim=True))  # no other is larger
        return share.expand(-1, self.vocab_size).scatter(-1, self.ids, self.log_p)

    def at(self, positions: Tensor | slice) -> "Largest":
        """Those at some of the flattened positions: indices [N] or a slice."""
        ids, log_p = self.ids.flatten(0, -2), self.log_p.flatten(0, -2)
        return Largest(ids[positions], log_p[positions], self.vocab_size)


class APITeacher(nn.Module):
    """Stands where a `Frozen` does, and asks a server instead of a model.

    tokenizer: the server's own. k: log-probabilities to ask for. The others: see `Completions`.
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
        self.server = Completions(url, timeout, retries, connections, key_variable, backoff)
        self.name, self.tokenizer, self.connections, self.k = name, tokenizer, connections, k
        self._vocabulary = tokenizer.get_vocab()
        self._known: dict[str, int] = {}

    def forward(self, batch: dict[str, Tensor]) -> Largest:
        """batch: input_ids and position_ids, [B, T]. The largest log-probabilities [B, T, k]."""
        input_ids = batch["input_ids"]
        asked = list(prompts(input_ids, batch["position_ids"]))
        found: list[tuple[int, float]] = []
        pool = ThreadPoolExecutor(self.connections)
        try:
            for prompt, answer in zip(asked, pool.map(self._complete, asked), strict=True):
                for place in self._read(prompt, answer):
                    found += place
        except BaseException:
            self.server.stop.set()  # no answer is of use any more
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        ids, log_p = (torch.tensor(x, device=input_ids.device) for x in zip(*found, strict=True))
        shape = (*input_ids.shape, self.k)
        return Largest(ids.view(shape), log_p.view(shape), len(self.tokenizer))

    def _complete(self, prompt: list[int]) -> str:
        return self.server.ask(
            model=self.name,
            prompt=prompt,
            echo=True,
            logprobs=self.k,
            max_tokens=1,  # whose distribution is the one after the last token
            temperature=1,  # some servers report what they draw from
            top_p=1,
            return_tokens_as_token_ids=True,
        )

    def _read(self, prompt: list[int], answer: str) -> list[list[tuple[int, float]]]:
        """(id, log-probability) of the k largest, for what follows each token of the prompt."""
        try:
            said = json.loads(answer)["choices"][0]["logprobs"]
            tokens, places = list(said["tokens"]), list(said["top_logprobs"])[1:]
        except (ValueError, LookupError, TypeError):
            raise self.server.nonsense(
                answer, "there is no choices[0].logprobs; it must support echo and logprobs."
            ) from None
        if len(tokens) < len(prompt) or not all(map(self._is, tokens, prompt)):
            raise self.server.nonsense(
                answer,
                f"its tokens are not those of the prompt, {str(prompt)[:40]}…. It must take token "
                "ids for a prompt, and teacher.tokenizer must be its own.",
            )
        if len(places) < len(prompt):
            raise self.server.nonsense(
                answer, f"top_logprobs for {len(places)} of {len(prompt)} places."
            )
        return [self._largest(place, answer) for place in places[: len(prompt)]]

    def _largest(self, place: Any, answer: str) -> list[tuple[int, float]]:
        """Of one place's {token: log-probability}, which may hold the drawn token as well."""
        try:
            said = [(str(token), float(value)) for token, value in place.items()]
        except (AttributeError, TypeError, ValueError):
            raise self.server.nonsense(answer, "top_logprobs are not numbers by token.") from None
        found = {self._id(token): value for token, value in said}
        if len(found) < self.k:
            raise self.server.nonsense(
                answer,
                f"{len(found)} log-probabilities a token, fewer than transfer.k={self.k}. Set "
                "transfer.k to what the server allows (vLLM: --max-logprobs).",
            )
        if not all(math.isfinite(value) and value <= TOLERANCE for value in found.values()):
            raise self.server.nonsense(answer, "a log-probability is no number of at most 0.")
        largest = sorted(found.items(), key=lambda pair: -pair[1])[: self.k]
        if (total := sum(math.exp(value) for _, value in largest)) > 1 + TOLERANCE:
            raise self.server.nonsense(answer, f"the probabilities of a place sum to {total:.3f}.")
        return largest

    def _is(self, token: Any, sent: int) -> bool:
        """Whether an echoed token is the one that was sent."""
        if token == f"{AS_ID}{sent}" or token == self.tokenizer.convert_ids_to_tokens(sent):
            return True
        return bool(token == self.tokenizer.decode([sent]))

    def _id(self, token: str) -> int:
        if token not in self._known:
            self._known[token] = self._find(token)
        return self._known[token]

    def _find(self, token: str) -> int:
        """Of `token_id:5`, of a token of the vocabulary, or of text that only one token gives."""
        number = token.removeprefix(AS_ID)
        if number != token and number.isdecimal():
            found = {int(number)}
        else:
            ids = self.tokenizer.encode(token, add_special_tokens=False)
            found = set(ids if len(ids) == 1 and self.tokenizer.decode(ids) == token else [])
            found |= {self._vocabulary[token]} if token in self._vocabulary else set()
        if len(found) == 1 and 0 <= (one := found.pop()) < len(self.tokenizer):
            return one
        raise ConfigError(
            f"teacher.url={self.server.url} lists the token {self.server.shown(token, 40)!r}, "
            f"which is not one of the {len(self.tokenizer)} of teacher.tokenizer, or several. That "
            "must be the server's own, and the server should write tokens as ids, as vLLM does."
        )


def prompts(input_ids: Tensor, position_ids: Tensor) -> Iterator[list[int]]:
    """The texts that the rows [B, T] consist of: positions that follow each other."""
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[:, 1:] = position_ids.diff() != 1
    starts = begins.flatten().nonzero()[:, 0].tolist()
    ids = input_ids.flatten().tolist()
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        yield ids[start:stop]
