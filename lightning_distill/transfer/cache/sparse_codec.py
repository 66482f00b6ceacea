"""What a cache keeps of a distribution over the vocabulary, in few bytes a token.

`topk` keeps the largest probabilities, `sampled` tokens drawn from the distribution, `hybrid` the
largest as they are and draws from the rest. Draws are unbiased: the sum over them expects the sum
over the vocabulary, whatever was drawn (random sampling knowledge distillation, Anshumann et al.
2025). Draws are systematic: one uniform number places all draws of a position at equal distances
along the cumulated probabilities (Madow 1949), which varies less than independent draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_distill.losses.chunked import block_rows
from lightning_distill.losses.distributions import Sparse
from lightning_distill.losses.ensemble import log_probabilities
from lightning_distill.models.output_head import Predictions

REACH = 64.0  # nats: the smallest log-probability that is told apart


@dataclass(frozen=True)
class SparseCodec:
    """Some tokens of each position; as fields of bytes by name.

    k: the largest probabilities kept. draws: tokens drawn. One of them is 0 but for `hybrid`.
    temperatures: at which the draws are unbiased, in rising order. bits: of a log-probability.
    weights: of several teachers, whose probabilities are averaged before they are stored.
    """

    kind: str
    k: int
    draws: int
    temperatures: tuple[float, ...]
    bits: int
    vocab_size: int
    weights: tuple[float, ...] = (1.0,)

    @property
    def id_bytes(self) -> int:
        return -(-(self.vocab_size - 1).bit_length() // 8)

    @property
    def bytes_per_token(self) -> int:
        listed = (self.k + self.draws) * (self.id_bytes + self.bits // 8)
        return listed + 4 * len(self.temperatures) + (6 if self.kind == "hybrid" else 0)

    def encode(self, said: Sequence[Predictions], uniform: Tensor) -> dict[str, Tensor]:
        """Of each teacher [N, ...]; uniform: [N], from 0 to below 1. Fields [N, ...]."""
        log_p = self._log_p(said)
        rows = block_rows(log_p)
        pairs = zip(log_p.split(rows), uniform.split(rows), strict=True)
        parts = [self.fields(*pair) for pair in pairs]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def fields(self, log_p: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Of log-probabilities [N, V]."""
        # All of a row is no number, or none of it. As a code it would be one, of any size.
        broken = log_p[:, :1].isnan()
        codes = quantised(log_p, self.bits)
        # Everything else follows from the rounded values, which are all that the reader will see.
        log_p = restored(codes, self.bits)
        # Sizes that sum to 1 at each temperature; log_p is at most 0, so nothing can overflow.
        log_z, r = [], torch.zeros_like(log_p)
        for T in self.temperatures:
            p = (log_p / T).exp_()
            z = p.sum(-1, keepdim=True)
            log_z.append(z.log())
            r.addcdiv_(p, z)
        fields = {"log_z": torch.cat(log_z, -1).masked_fill_(broken, torch.nan)}
        if self.kind == "topk":
            ids = log_p.topk(self.k).indices
        else:
            if self.kind == "sampled":
                ids = systematic(r, self.draws, uniform)
            else:
                ids, sure, rate = largest_and_draws(r, self.k, self.draws, uniform)
                fields |= {"sure": as_bytes(sure, 2), "rate": rate}
        ids = ids.clamp(max=self.vocab_size - 1)  # draws of what is no number are behind the last
        fields["ids"] = as_bytes(ids, self.id_bytes)
        fields["log_p"] = as_bytes(codes.gather(-1, ids), self.bits // 8)
        return fields

    def broken(self, fields: dict[str, Tensor]) -> Tensor:
        """At which positions what was encoded is no number."""
        return fields["log_z"].isnan().any(-1)

    def kl(self, said: Sequence[Predictions], fields: dict[str, Tensor]) -> Tensor:
        """KL(stored ‖ true) of each position, [N]: at T = 1, normalised."""
        true, stored = self._log_p(said), self.decode(fields)
        p = stored.log_p.exp()
        if stored.inverse is None:  # what is left is spread evenly over the other tokens
            p = (stored.log_p - stored.log_z[1.0][:, None]).exp()
            others = (1 - p.sum(-1, keepdim=True)).clamp(min=0) / (self.vocab_size - self.k)
            found = others.expand_as(true).scatter(-1, stored.ids, p)
        else:
            found = torch.zeros_like(true).scatter_add(-1, stored.ids, p * stored.inverse)
        found = found / found.sum(-1, keepdim=True)
        return (torch.xlogy(found, found) - found * true).sum(-1)

    def _log_p(self, said: Sequence[Predictions]) -> Tensor:
        return log_probabilities([one.logits() for one in said], self.weights, 1.0)

    def decode(self, fields: dict[str, Tensor]) -> Sparse:
        """What `encode` has made, of any leading shape."""
        ids = from_bytes(fields["ids"])
        log_p = restored(from_bytes(fields["log_p"]), self.bits)
        log_z = dict(zip(self.temperatures, fields["log_z"].unbind(-1), strict=True))
        if self.kind == "topk":
            return Sparse(ids, log_p, log_z, None)
        r = torch.stack([(log_p / T - z[..., None]).exp() for T, z in log_z.items()]).sum(0)
        if self.kind == "sampled":
            # r sums to the number of temperatures.
            return Sparse(ids, log_p, log_z, len(self.temperatures) / (self.draws * r))
        place = torch.arange(ids.shape[-1], device=ids.device)
        sure = place < from_bytes(fields["sure"])[..., None]
        return Sparse(
            ids, log_p, log_z, torch.where(sure, 1.0, 1 / (fields["rate"][..., None] * r))
        )


def largest_and_draws(
    r: Tensor, k: int, draws: int, uniform: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """k + draws different tokens of each position: the largest first, then draws from the rest.

    r: sizes [N, V], not normalised. uniform: [N]. Returns ids [N, k + draws], the number of them
    that are there for sure [N], at least k, and the rate [N]: each other token is drawn with
    probability rate · r. Sizes that would make it more than 1 are among the sure ones.
    """
    count = k + draws
    largest, ids = r.topk(count)
    rest = r.scatter(-1, ids, 0.0).sum(-1, keepdim=True)
    # What is left behind the first 0, 1, … count - 1 of the largest, summed from the small end.
    left = rest + largest.flip(-1).cumsum(-1).flip(-1)
    places = torch.arange(count, device=r.device)
    enough = (largest * (count - places) < left) & (places >= k)
    sure = torch.where(enough.any(-1), enough.int().argmax(-1), count)
    of_rest = r.scatter(-1, ids, torch.where(places < sure[:, None], 0.0, largest))
    total = of_rest.sum(-1)
    number = count - sure
    # With nothing left to draw from, what is drawn weighs nothing.
    rate = torch.where(total > 0, number / total, torch.inf)
    drawn = systematic(of_rest, number, uniform, at_most=count)
    shift = (places - sure[:, None]).clamp(min=0)
    return torch.where(places < sure[:, None], ids, drawn.gather(-1, shift)), sure, rate


def systematic(
    r: Tensor, draws: int | Tensor, uniform: Tensor, at_most: int | None = None
) -> Tensor:
    """Tokens drawn in proportion to r, at equal distances: [N, V] to [N, draws].

    draws: one number, or one for each position, of which there are `at_most`; the places behind
    it are filled up. A token is drawn r / Σr · draws times, rounded up or down by `uniform`, [N].
    """
    width = int(draws) if at_most is None else at_most
    ends = r.double().cumsum(-1)  # a sum over 100,000 tokens, whose small steps 32 bits would lose
    places = torch.arange(width, device=r.device) + uniform.double()[:, None]
    number = torch.as_tensor(draws, device=r.device).clamp(min=1).expand(len(r))
    total = ends[:, -1:]
    # Rounding must not put a point on the very end, behind the last token that can be drawn.
    points = (places / number[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(ends, points, right=True)


def quantised(log_p: Tensor, bits: int) -> Tensor:
    """Log-probabilities as whole numbers of so many bits, finer where they are large."""
    x = (-log_p / REACH).clamp(0, 1).sqrt()
    return (x * (2**bits - 1)).round().int()


def restored(codes: Tensor, bits: int) -> Tensor:
    return -REACH * (codes / (2**bits - 1)).square()


def as_bytes(numbers: Tensor, size: int) -> Tensor:
    """Whole numbers [...] in `size` bytes each, the lowest first: [..., size]."""
    return torch.stack([(numbers >> 8 * i & 255).to(torch.uint8) for i in range(size)], -1)


def from_bytes(fields: Tensor) -> Tensor:
    return torch.stack([x.long() << 8 * i for i, x in enumerate(fields.unbind(-1))]).sum(0)
