"""The terms of the objective: their sums over one micro-batch."""

from dataclasses import dataclass, field

from torch import Tensor

from lightning_distill.losses.intermediate import IntermediateLoss


@dataclass(frozen=True)
class Terms:
    """Sums over the target tokens of one micro-batch, so that a global batch is averaged exactly.

    total: Σ weight · term, a scalar in nats, to be differentiated.
    parts: each term without its weight, scalars.
    tokens: the number of target tokens.
    details: averages over them, to be logged.
    """

    total: Tensor
    parts: dict[str, Tensor]
    tokens: Tensor
    details: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_sums(cls, total: Tensor, sums: dict[str, Tensor], tokens: Tensor, count: int) -> "Terms":
        """sums: `hard`, `soft`, and details; a detail `*_square` becomes its root, `*_norm`."""
        parts = {str(name): sums.pop(name) for name in ("hard", "soft") if name in sums}
        count = max(1, count)
        details = {
            name.replace("_square", "_norm"): (x.sqrt() if name.endswith("_square") else x) / count
            for name, x in sums.items()
        }
        return cls(total, parts, tokens, details)

    def plus(self, name: str, term: IntermediateLoss, value: Tensor, details: bool) -> "Terms":
        """With an intermediate-layer loss added. details: also its gradient norm."""
        norm = {f"{name}_gradient_norm": term.gradient_norm(value) / self.tokens} if details else {}
        return Terms(
            self.total + term.weight * value,
            self.parts | {name: value.detach()},
            self.tokens,
            self.details | norm,
        )
