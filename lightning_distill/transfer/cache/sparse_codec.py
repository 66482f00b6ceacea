"""A cache of a few tokens of each next-token distribution, in few bytes.

`topk` keeps the k largest probabilities, all other tokens counting as one; it is biased. `sampled`
keeps tokens sampled from the distribution, `hybrid` the largest and samples of the rest; both are
unbiased for losses that are linear in p, as the expectation of the weighted sum over the samples is
the sum over the vocabulary (Horvitz and Thompson 1952; Anshumann et al. 2025, Sparse Logit
Sampling). Samples are systematic (Madow 1949): one uniform number a position places them at equal
distances along the cumulative distribution, with less variance than independent samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_distill.losses.chunked import block_rows
from lightning_distill.losses.distributions import Sparse
from lightning_distill.losses.ensemble import log_probabilities
from lightning_distill.models.predictions import Predictions

LOG_P_RANGE = 64.0  # nats: smaller log-probabilities are stored as this far below 0


@dataclass(frozen=True)
class SparseCodec:
    """Tokens of each position with their log-probabilities, as fields of bytes by name.

    kind: `topk`, `sampled` or `hybrid`. k: largest probabilities kept, 0 for `sampled`.
    num_samples: 0 for `topk`. temperatures: at which samples are unbiased, ascending.
    bits: of a log-probability. weights: of several teachers, whose mean probabilities are stored.
    """

    kind: str
    k: int
    num_samples: int
    temperatures: tuple[float, ...]
    bits: int
    vocab_size: int
    weights: tuple[float, ...] = (1.0,)

    @property
    def id_bytes(self) -> int:
        return -(-(self.vocab_size - 1).bit_length() // 8)

    @property
    def bytes_per_token(self) -> int:
        tokens = (self.k + self.num_samples) * (self.id_bytes + self.bits // 8)
        return tokens + 4 * len(self.temperatures) + (6 if self.kind == "hybrid" else 0)

    def encode(self, predictions: Sequence[Predictions], uniform: Tensor) -> dict[str, Tensor]:
        """Of each teacher [N, ...] to fields [N, ...]. uniform: [N] in [0, 1), to sample with."""
        log_p = self._log_p(predictions)
        rows = block_rows(log_p)
        chunks = zip(log_p.split(rows), uniform.split(rows), strict=True)
        parts = [self.encode_log_p(*chunk) for chunk in chunks]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def encode_log_p(self, log_p: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Log-probabilities [N, V] to fields [N, ...]."""
        # A row is NaN as a whole or not at all. Quantized, a NaN would be an arbitrary number.
        nonfinite = log_p[:, :1].isnan()
        codes = quantize(log_p, self.bits)
        # All else is computed from the rounded values, because the reader has no others.
        log_p = dequantize(codes, self.bits)
        # r: the sum of the distributions at all temperatures. log_p ≤ 0, so exp cannot overflow.
        log_z, r = [], torch.zeros_like(log_p)
        for T in self.temperatures:
            p = (log_p / T).exp_()
            z = p.sum(-1, keepdim=True)
            log_z.append(z.log())
            r.addcdiv_(p, z)
        fields = {"log_z": torch.cat(log_z, -1).masked_fill_(nonfinite, torch.nan)}
        if self.kind == "topk":
            ids = log_p.topk(self.k).indices
        elif self.kind == "sampled":
            ids = systematic_sample(r, self.num_samples, uniform)
        else:
            ids, certain, rate = topk_and_samples(r, self.k, self.num_samples, uniform)
            fields |= {"sure": to_bytes(certain, 2), "rate": rate}
        ids = ids.clamp(max=self.vocab_size - 1)  # samples of a row of NaN are beyond the last
        fields["ids"] = to_bytes(ids, self.id_bytes)
        fields["log_p"] = to_bytes(codes.gather(-1, ids), self.bits // 8)
        return fields

    def nonfinite(self, fields: dict[str, Tensor]) -> Tensor:
        """True at the positions where an encoded probability was NaN."""
        return fields["log_z"].isnan().any(-1)

    def kl(self, predictions: Sequence[Predictions], fields: dict[str, Tensor]) -> Tensor:
        """KL(stored ‖ true) at each position, [N], at T = 1, of the stored tokens normalized."""
        true, stored = self._log_p(predictions), self.decode(fields)
        p = stored.log_p.exp()
        if stored.inverse is None:  # spread the rest evenly over the other tokens
            p = (stored.log_p - stored.log_z[1.0][:, None]).exp()
            others = (1 - p.sum(-1, keepdim=True)).clamp(min=0) / (self.vocab_size - self.k)
            dense = others.expand_as(true).scatter(-1, stored.ids, p)
        else:
            dense = torch.zeros_like(true).scatter_add(-1, stored.ids, p * stored.inverse)
        dense = dense / dense.sum(-1, keepdim=True)
        return (torch.xlogy(dense, dense) - dense * true).sum(-1)

    def _log_p(self, predictions: Sequence[Predictions]) -> Tensor:
        return log_probabilities([one.logits() for one in predictions], self.weights, 1.0)

    def decode(self, fields: dict[str, Tensor]) -> Sparse:
        """Fields of any leading shape to the stored tokens, with their sampling weights."""
        ids = from_bytes(fields["ids"])
        log_p = dequantize(from_bytes(fields["log_p"]), self.bits)
        log_z = dict(zip(self.temperatures, fields["log_z"].unbind(-1), strict=True))
        if self.kind == "topk":
            return Sparse(ids, log_p, log_z, None)
        r = torch.stack([(log_p / T - z[..., None]).exp() for T, z in log_z.items()]).sum(0)
        if self.kind == "sampled":
            # Over the vocabulary, r sums to the number of temperatures.
            return Sparse(ids, log_p, log_z, len(self.temperatures) / (self.num_samples * r))
        place = torch.arange(ids.shape[-1], device=ids.device)
        certain = place < from_bytes(fields["sure"])[..., None]
        inverse = torch.where(certain, 1.0, 1 / (fields["rate"][..., None] * r))
        return Sparse(ids, log_p, log_z, inverse)


def topk_and_samples(
    r: Tensor, k: int, num_samples: int, uniform: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """k + num_samples different tokens of each position: the largest, then samples of the rest.

    A token that would be sampled with probability 1 or more is kept for certain instead.
    r: unnormalized probabilities [N, V]. uniform: [N] in [0, 1).
    Returns ids [N, k + num_samples]; how many of them are certain, [N], at least k; and a rate [N]:
    each other token is sampled with probability rate · r.
    """
    count = k + num_samples
    largest, ids = r.topk(count)
    rest = r.scatter(-1, ids, 0.0).sum(-1, keepdim=True)
    # What remains after the first 0, 1, … count - 1 of the largest, summed from the smallest.
    remaining = rest + largest.flip(-1).cumsum(-1).flip(-1)
    places = torch.arange(count, device=r.device)
    uncertain = (largest * (count - places) < remaining) & (places >= k)
    certain = torch.where(uncertain.any(-1), uncertain.int().argmax(-1), count)
    of_rest = r.scatter(-1, ids, torch.where(places < certain[:, None], 0.0, largest))
    total = of_rest.sum(-1)
    number = count - certain
    # Where nothing remains to sample from, samples get the weight 0.
    rate = torch.where(total > 0, number / total, torch.inf)
    sampled = systematic_sample(of_rest, number, uniform, at_most=count)
    shift = (places - certain[:, None]).clamp(min=0)
    ids = torch.where(places < certain[:, None], ids, sampled.gather(-1, shift))
    return ids, certain, rate


def systematic_sample(
    r: Tensor, num_samples: int | Tensor, uniform: Tensor, at_most: int | None = None
) -> Tensor:
    """Systematic sampling (Madow 1949) in proportion to r: [N, V] to ids [N, num_samples].

    A token is sampled r / Σr · num_samples times, rounded up or down by `uniform`, [N].
    num_samples: one number, or [N] with `at_most` their maximum; ids beyond a position's number
    have no meaning.
    """
    width = int(num_samples) if at_most is None else at_most
    ends = r.double().cumsum(-1)  # over 100,000 tokens, 32 bits would lose the small ones
    places = torch.arange(width, device=r.device) + uniform.double()[:, None]
    number = torch.as_tensor(num_samples, device=r.device).clamp(min=1).expand(len(r))
    total = ends[:, -1:]
    # Rounding must not put a point at the very end, which is beyond the last token.
    points = (places / number[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(ends, points, right=True)


def quantize(log_p: Tensor, bits: int) -> Tensor:
    """Log-probabilities to integers, in steps of the square root: finer near 0."""
    x = (-log_p / LOG_P_RANGE).clamp(0, 1).sqrt()
    return (x * (2**bits - 1)).round().int()


def dequantize(codes: Tensor, bits: int) -> Tensor:
    return -LOG_P_RANGE * (codes / (2**bits - 1)).square()


def to_bytes(numbers: Tensor, size: int) -> Tensor:
    """Integers [...] in `size` bytes each, little-endian: [..., size]."""
    return torch.stack([(numbers >> 8 * i & 255).to(torch.uint8) for i in range(size)], -1)


def from_bytes(fields: Tensor) -> Tensor:
    return torch.stack([x.long() << 8 * i for i, x in enumerate(fields.unbind(-1))]).sum(0)
