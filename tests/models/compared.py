"""A model as this package computes it, compared with transformers alone.

transformers gets each example by itself, without padding, and without position ids; this package
gets batches as its tasks make them.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import torch
from tiny_models import END, LABELS, MASK, PADDING, ROWS, tiny_model
from tokenizers import processors
from transformers import FSMTForConditionalGeneration

from lightning_distill.constants import IGNORED
from lightning_distill.data.sources.labelled_rows import LabelledRows
from lightning_distill.data.sources.pairs import Pairs
from lightning_distill.data.sources.text import Text
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tasks.classification import Classification
from lightning_distill.data.tasks.masked_lm import MaskedLM
from lightning_distill.data.tasks.translation import Translation
from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.evaluation.test_split import evaluate
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.objective import Objective
from lightning_distill.models import pretrained
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.generation import Sampling, generate
from lightning_distill.models.output_head import Predictor
from lightning_distill.models.spec import ModelSpec, PretrainedSource
from lightning_distill.storage.artifacts import Store

LENGTH = 32  # of a block
NEW_TOKENS = 8
WORDS = ["a", "teacher", "student", "learns", "soft", "targets", "from", "small", "models"]


@dataclass
class Comparison:
    """Largest deviations; of a model that is refused, the reason instead."""

    logits: float = 0.0
    nll: float = 0.0
    fused: float | None = None  # loss and gradients; None where all logits are held at once
    generation: bool | None = None  # None for models that generate no text
    refused: str = ""

    @property
    def largest(self) -> float:
        return max(self.logits, self.nll, self.fused or 0)


def make_tokenizer():
    texts = [" ".join(WORDS)] * 3
    tokenizer = train_tokenizer(texts, 300, ["<|mask|>", "<|padding|>"])
    tokenizer.pad_token = "<|padding|>"
    end = ("<|endoftext|>", END)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[end]
    )
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (MASK, PADDING)
    return tokenizer


def make_tasks(folder: Path, tokenizer) -> dict:
    """The tasks by their names, with a few examples in the test split."""
    torch.manual_seed(0)
    texts = [" ".join(_words(5 + n % 7)) for n in range(120)]
    files = {}
    for name, rows in {
        "causal": [{"text": text} for text in texts],
        "classification": [{"text": t, "label": LABELS[n % 3]} for n, t in enumerate(texts)],
        "translation": [{"source": t, "target": texts[n - 1]} for n, t in enumerate(texts)],
    }.items():
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("\n".join(map(json.dumps, rows)))
    shared = LENGTH, 3, 300
    tasks = {
        "causal": CausalLM(Text, *shared, path=str(files["causal"]), isolate_documents=False),
        "masked": MaskedLM(Text, *shared, path=str(files["causal"]), mask_share=0.2),
        "classification": Classification(
            LabelledRows,
            *shared,
            held_out=8,
            path=str(files["classification"]),
            column="text",
            label_column="label",
            skip_bad_rows=False,
        ),
        "translation": Translation(Pairs, *shared, path=str(files["translation"])),
    }
    for task in tasks.values():
        task.prepare(Store(folder / "outputs"), tokenizer)
    return tasks


def _words(count):
    return [WORDS[i] for i in torch.randint(len(WORDS), (count,))]


def compare(model_type: str, task: str, data, folder: Path) -> Comparison:
    """folder: where the model is saved and loaded from. Raises what transformers raises."""
    made = tiny_model(data.auto_class, model_type, task)
    made.save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    make = partial(pretrained.load, str(folder), None, "float32", False, attn_implementation=None)
    spec = ModelSpec("teacher", make, 0, PretrainedSource(str(folder)))
    try:
        data.check_model(spec.outline(data), spec.name)
        model = spec.build(data).eval()
        split = Predictor(model, data.num_classes)
        predictions = Predictor(model, data.num_classes, split=False)
        batch = data.collate(rows_of(data))
        logits = [predict(batch).logits() for predict in (split, predictions)]
    except ConfigError as error:
        return Comparison(refused=str(error))
    reference = data.auto_class.from_pretrained(folder, dtype=torch.float32).eval()
    expected = [reference_logits(reference, task, row, data.num_classes) for row in rows_of(data)]
    found = Comparison()
    found.logits = max(
        deviation(ours[b].reshape(-1, data.num_classes)[: len(wanted)], wanted)
        for ours in logits
        for b, wanted in enumerate(expected)
    )
    if split.head:
        found.fused = fused_against_plain(data, model, batch)
    found.nll = abs(tested_nll(data, model) - longhand_nll(data, expected))
    if data.is_generative:
        found.generation = generates_alike(data, model, reference)
    return found


def rows_of(data):
    examples = data.examples("test")
    return [examples[i] for i in range(len(examples))]


@torch.no_grad()
def reference_logits(reference, task, row, num_classes):
    """Of one example, without its padding: [N, V]."""
    ids, labels = row["input_ids"], row["labels"]
    if task == "causal":
        ids = ids[: int((labels != IGNORED).sum())]
    elif task != "masked":
        ids = ids[row["attention_mask"].bool()]
    more = {"use_cache": False} if reference.can_generate() else {}
    if task == "translation":
        more["labels"] = labels[labels != IGNORED][None]
        if isinstance(reference, FSMTForConditionalGeneration):  # takes labels as they are
            start = torch.tensor([[reference.config.decoder_start_token_id]])
            before = more.pop("labels")[:, :-1]
            more["decoder_input_ids"] = torch.cat([start, before], 1)
    logits = reference(input_ids=ids[None], **more).logits
    return logits[..., :num_classes].reshape(-1, num_classes)


def deviation(found, expected):
    """Relative to the largest, where that is above 1: float32 has 7 digits."""
    difference = (found.double() - expected.double()).abs().max()
    return float((difference / expected.abs().max().clamp(min=1)).nan_to_num(float("inf")))


def tested_nll(data, model):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    return evaluate(trainer, data, model, None).scores["student"]["nll"]


def longhand_nll(data, expected):
    total, count = 0.0, 0
    for row, logits in zip(rows_of(data), expected, strict=True):
        labels = row["labels"].reshape(-1)[: len(logits)]
        kept = labels != IGNORED
        log_probs = logits.double().log_softmax(-1)[kept]
        total -= float(log_probs.gather(1, labels[kept, None]).sum())
        count += int(kept.sum())
    return total / count


def fused_against_plain(data, model, batch):
    """The larger deviation: of the loss per token, or of its gradients relative to the largest."""
    torch.manual_seed(1)
    teacher = type(model).from_pretrained(model.name_or_path)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(torch.randn_like(p) * p.std().nan_to_num() * 0.1)
    results = []
    model.train()  # without dropout, which all these models lack
    for fused in (True, False):
        objective = Objective(forward_kl, 2.0, 0.5, 0.5, "labels", fused=fused)
        student = Predictor(model, data.num_classes, split=fused)(batch)
        soft = Frozen(teacher, data.num_classes, split=fused)(batch)
        terms = objective.terms(student, [soft], batch["labels"])
        model.zero_grad()
        (terms.total / terms.tokens).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((float(terms.total / terms.tokens), gradients))
    model.eval()
    model.zero_grad()
    (fused_loss, fused_gradients), (plain_loss, gradients) = results
    assert fused_gradients.keys() == gradients.keys()
    largest = max(float(g.abs().max()) for g in gradients.values())
    apart = max(deviation(fused_gradients[n], g) for n, g in gradients.items())
    return max(abs(fused_loss - plain_loss), apart / largest)


def generates_alike(data, model, reference):
    rows = rows_of(data)
    length = NEW_TOKENS
    if not data.continues_prompt:
        prompts = [row["input_ids"][row["attention_mask"].bool()] for row in rows[:4]]
    else:
        prompts = [row["input_ids"][:n] for row, n in zip(rows, (5, 7, 2, 4), strict=False)]
        length += max(map(len, prompts))
    stops = [ROWS - 1]  # is suppressed, so that each text has all tokens
    ours = generate(model, data.tokenizer, prompts, length, Sampling(0.0), 0, stops)
    same = True
    for prompt, completion in zip(prompts, ours, strict=True):
        theirs = reference.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt)[None],
            do_sample=False,
            num_beams=1,
            max_new_tokens=max(1, length - len(prompt)) if data.continues_prompt else length,
            eos_token_id=stops,
            suppress_tokens=list(range(data.num_classes, ROWS)),
        )[0, len(prompt) if data.continues_prompt else 1 :]
        same &= theirs.tolist() == completion
    return same
