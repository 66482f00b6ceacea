"""The tokenizers of teachers and student, and checks that they agree."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lightning_distill.errors import ConfigError
from lightning_distill.models.pretrained import load_tokenizer
from lightning_distill.models.spec import ModelSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokenizers:
    """teacher, student: None where all models are built from a size; they share a trained one.

    shared: teacher and student have the same vocabulary but for tokens that were added to one, and
    the teacher's tokenizer is used for both. loaded: the tokenizers of all pretrained models, by
    the config key that names them, the student's last. new_tokens: of the teacher's, those that the
    student's lacks. unshared: these, and those of the student's that the teacher's lacks.
    """

    teacher: PreTrainedTokenizerBase | None
    student: PreTrainedTokenizerBase | None
    shared: bool
    loaded: dict[str, PreTrainedTokenizerBase]
    new_tokens: tuple[str, ...] = ()
    unshared: tuple[str, ...] = ()

    def check_encoding(self, texts: Sequence[str]) -> None:
        """Raises ConfigError where tokenizers with the same vocabulary encode a text differently,
        between the tokens that they do not share.

        The student would be trained on the teacher's ids, and later used with its own tokenizer.
        """
        if not self.shared or len(self.loaded) < 2:
            return
        if self.unshared:
            between = "|".join(map(re.escape, self.unshared))
            texts = [part for text in texts for part in re.split(between, text)]
        (first_key, first), *others = self.loaded.items()
        expected = [first(text, add_special_tokens=False)["input_ids"] for text in texts]
        for key, tokenizer in others:
            encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            pairs = zip(texts, expected, encoded, strict=True)
            if different := [text for text, ids, other_ids in pairs if ids != other_ids]:
                raise ConfigError(
                    f"{first_key} and {key} have the same vocabulary, but their tokenizers encode "
                    f"{len(different)} of {len(texts)} texts differently, such as "
                    f"{different[0][:40]!r}. Give both folders the same tokenizer.json."
                )
            if tokenizer.eos_token_id != first.eos_token_id:
                log.warning(
                    "%s ends a text with %r, %s with %r: the student learns the first",
                    *(first_key, first.eos_token, key, tokenizer.eos_token),
                )


def load_tokenizers(
    teachers: Sequence[ModelSpec], student: ModelSpec, loss_shares: bool, task_shares: bool = False
) -> Tokenizers:
    """Loads the tokenizers of pretrained models; a model built from a size uses the other role's.

    loss_shares, task_shares: whether the loss, or the task, needs one vocabulary for both roles.
    Raises ConfigError where they differ and one is needed, or where those of teachers differ.
    """
    loaded = {}
    for index, spec in enumerate(teachers):
        if spec.source:
            key = "teacher" if len(teachers) == 1 else f"teacher.members[{index}]"
            loaded[f"{key}.{spec.source.setting}"] = _load(spec)
    student_tokenizer = _load(student) if student.source else None
    for key, other in loaded.items():
        first_key, first = next(iter(loaded.items()))
        if not _same_vocab(other, first):
            raise ConfigError(
                f"{key} ({len(other)} tokens) and {first_key} ({len(first)} tokens) have different "
                "vocabularies; their probabilities cannot be averaged."
            )
    teacher = next(iter(loaded.values()), student_tokenizer)
    if student.source and student_tokenizer is not None:
        loaded[f"student.{student.source.setting}"] = student_tokenizer
    if teacher is None or student_tokenizer is None:
        return Tokenizers(teacher, teacher, True, loaded)
    unshared = _unshared(teacher, student_tokenizer)
    if unshared is not None:
        new = sorted(unshared & teacher.get_vocab().keys(), key=teacher.get_vocab().__getitem__)
        return Tokenizers(teacher, teacher, True, loaded, tuple(new), tuple(sorted(unshared)))
    if loss_shares or task_shares:
        raise _different_vocabularies(loaded, teachers[0], task_shares)
    return Tokenizers(teacher, student_tokenizer, False, loaded)


def _same_vocab(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    return bool(a.get_vocab() == b.get_vocab())


def _unshared(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> set[str] | None:
    """The tokens that were added to one of them alone; None where more differs: the id of a token,
    the token of an id, or the vocabulary that tokens were added to."""
    pairs = a.get_vocab().items() ^ b.get_vocab().items()
    tokens, ids = {token for token, _ in pairs}, {id for _, id in pairs}
    added = a.get_added_vocab().keys() | b.get_added_vocab().keys()
    is_added = len(tokens) == len(ids) == len(pairs) and tokens <= added
    return tokens if is_added else None


def _different_vocabularies(
    loaded: dict[str, PreTrainedTokenizerBase], teacher: ModelSpec, task_shares: bool
) -> ConfigError:
    remedy = "Choose loss=universal, which needs no shared vocabulary."
    if teacher.source and teacher.source.is_api:
        remedy = "Choose a student with its tokenizer, or a size, as in student=s."
    if task_shares:
        remedy = "This task needs one: choose a student with the teacher's tokenizer."
    (first_key, first), *_, (key, last) = loaded.items()
    return ConfigError(
        f"{first_key} ({len(first)} tokens) and {key} ({len(last)} tokens) have different "
        f"vocabularies: the same id is not the same text. {remedy}"
    )


def _load(spec: ModelSpec) -> PreTrainedTokenizerBase:
    source = spec.source
    assert source
    if source.name is None:
        raise ConfigError(
            f"{spec.role}=pretrained needs {spec.role}.name=<a local folder or a name on the hub>."
        )
    try:
        return load_tokenizer(source.name, source.revision, source.trust_remote_code)
    except ConfigError as error:
        hint = " Set teacher.tokenizer to a local folder or a name on the hub." * source.is_api
        prefix = "" if source.is_api else f"{spec.role}."
        raise ConfigError(f"{prefix}{error}{hint}") from error
