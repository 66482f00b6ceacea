"""One measurement, in a process of its own: a whole training step of one contender.

All train the same student under the same frozen teacher (Llama architecture) on the same random
tokens, with fused AdamW, gradients clipped at 1, one batch a step. On a GPU in bfloat16.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

WARM_UP = 1  # steps that are not timed
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# (layers, width, heads): on a GPU, what a small research group trains.
TEACHER, STUDENT = ((24, 2048, 16), (12, 1024, 8)) if CUDA else ((8, 512, 8), (4, 256, 4))


class Workload:
    def __init__(self, vocabulary: int, length: int, sequences: int, steps: int) -> None:
        self.vocabulary, self.length, self.sequences = vocabulary, length, sequences
        self.steps = steps
        torch.manual_seed(0)
        self.teacher: Any = self.model(*TEACHER).eval().requires_grad_(False)
        self.student: Any = self.model(*STUDENT)

    def model(self, layers: int, width: int, heads: int) -> LlamaForCausalLM:
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.vocabulary,
                hidden_size=width,
                intermediate_size=-(-8 * width // 24) * 8,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                max_position_embeddings=self.length,
                pad_token_id=0,
            )
        )

    def rows(self) -> list[dict[str, Tensor]]:
        """As many sequences as all steps need. labels: the same tokens, shifted by the model."""
        dice = torch.Generator().manual_seed(1)
        shape = (self.steps + WARM_UP) * self.sequences, self.length
        ids = torch.randint(1, self.vocabulary, shape, generator=dice)
        return [{"input_ids": row, "labels": row, "attention_mask": row > 0} for row in ids]

    def batches(self) -> Iterator[dict[str, Tensor]]:
        rows = self.rows()
        for start in range(0, len(rows), self.sequences):
            part = rows[start : start + self.sequences]
            yield {k: torch.stack([row[k] for row in part]).to(DEVICE) for k in part[0]}

    def blocks(self, count: int | None = None) -> Any:
        """The same tokens as the blocks of a split; or the first few."""
        from lightning_distill.data.packing import Blocks

        ids = torch.stack([row["input_ids"] for row in self.rows()[:count]]).flatten()
        ids = torch.cat([ids, ids[:1]]).int()
        return Blocks(ids, torch.zeros_like(ids), self.length, isolate_documents=False)

    def step_flops(self, with_teacher: bool) -> int:
        """Of the matrix products and attention of one step, counted by torch without a device."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            teacher, student = self.model(*TEACHER), self.model(*STUDENT)
            ids = torch.zeros(self.sequences, self.length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            student(input_ids=ids, labels=ids).loss.backward()
            if with_teacher:
                with torch.no_grad():
                    teacher(input_ids=ids)
        return counter.get_total_flops()


class Clock:
    """Seconds of each step, the first ones left out; memory from the first on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def start(self, *args: Any, **kwargs: Any) -> None:
        if CUDA:
            torch.cuda.synchronize()
        self._start = time.perf_counter()

    def stop(self, *args: Any, **kwargs: Any) -> None:
        if CUDA:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds[WARM_UP:])


def ours(work: Workload, clock: Clock, fused: bool = True) -> None:
    """lightning_distill: StudentModule under Lightning, forward KL from the teacher alone."""
    from lightning_distill.models.frozen import Frozen
    from lightning_distill.transfer.online import Online

    teachers = [Frozen(work.teacher, work.vocabulary, fused)]
    _train(work, clock, _forward_kl(fused), Online(None), teachers, work.blocks())


def unfused(work: Workload, clock: Clock) -> None:
    """lightning_distill with loss.fused=false."""
    ours(work, clock, fused=False)


def labels_alone(work: Workload, clock: Clock) -> None:
    """lightning_distill with loss.alpha=0: the same module on labels, without a teacher."""
    from lightning_distill.losses.objective import LABELS_ALONE
    from lightning_distill.transfer.online import Online

    _train(work, clock, LABELS_ALONE, Online(None), [], work.blocks())


def cached_topk(work: Workload, clock: Clock) -> None:
    """lightning_distill with transfer=cached: 32 largest probabilities a token."""
    _cached(work, clock, "topk", k=32)


def cached_sampled(work: Workload, clock: Clock) -> None:
    """32 draws."""
    _cached(work, clock, "sampled", draws=32)


def cached_hybrid(work: Workload, clock: Clock) -> None:
    """16 largest and 16 draws from the rest."""
    _cached(work, clock, "hybrid", k=16, draws=16)


def cached_hidden(work: Workload, clock: Clock) -> None:
    """The teacher's last hidden states."""
    _cached(work, clock, "hidden")


def _cached(work: Workload, clock: Clock, stored: str, k: int = 0, draws: int = 0) -> None:
    """The labelling is done before the clock starts; the teacher is gone by then."""
    import tempfile
    from types import SimpleNamespace

    from lightning_distill.data.tasks.base import DistillationData
    from lightning_distill.storage.artifacts import Store
    from lightning_distill.training.teacher import Teacher
    from lightning_distill.transfer.base import Workspace
    from lightning_distill.transfer.cached import Cached

    parts = {
        "tokenizer": range(work.vocabulary),
        "num_classes": work.vocabulary,
        "artifact": SimpleNamespace(key="random tokens"),
        "example_settings": {"data.sequence_length": work.length},
        "examples": lambda _, split: work.blocks() if split == "train" else work.blocks(1),
    }
    data: Any = type("RandomBlocks", (DistillationData,), parts)(work.sequences)
    held, work.teacher = [work.teacher], None
    teacher = Teacher([held.pop], [1.0], "", 0.0, data)
    transfer = Cached(None, stored, k, draws, [1.0], 16)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Store(folder), Path(folder), lambda _: _trainer())
        transfer.prepare(data, teacher, workspace)
        del teacher
        reset_peak()
        _train(work, clock, _forward_kl(True), transfer, [], transfer.dataset(data))


def _forward_kl(fused: bool) -> Any:
    from lightning_distill.losses.divergences.forward_kl import forward_kl
    from lightning_distill.losses.objective import Objective

    return Objective(forward_kl, 1.0, 1.0, 0.0, "labels", fused=fused)


def _train(
    work: Workload, clock: Clock, objective: Any, transfer: Any, teachers: list[Any], dataset: Any
) -> None:
    from lightning.pytorch.callbacks import Callback

    from lightning_distill.training.student import StudentModule

    class Timing(Callback):
        """A step is from the end of the one before, so that fetching its batch counts."""

        def on_train_start(self, *args: Any) -> None:
            clock.start()

        def on_train_batch_end(self, *args: Any) -> None:
            clock.stop()
            clock.start()

    module = StudentModule(
        work.student,
        teachers,
        objective,
        transfer,
        lambda groups: torch.optim.AdamW(groups, lr=1e-4, fused=True),
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        work.vocabulary,
        shifted_labels=True,
    )
    trainer = _trainer(max_steps=work.steps + WARM_UP, gradient_clip_val=1.0, callbacks=[Timing()])
    trainer.fit(module, torch.utils.data.DataLoader(dataset, work.sequences))


def _trainer(**settings: Any) -> Any:
    import lightning as L

    return L.Trainer(
        accelerator=DEVICE if CUDA else "cpu",
        devices=1,
        precision="bf16-mixed" if CUDA else "32-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **settings,
    )


def cross_entropy(work: Workload, clock: Clock) -> None:
    """A bare loop on the labels, without a teacher."""
    _loop(work, clock, lambda batch: work.student(**batch).loss)


def tutorial(work: Workload, clock: Clock) -> None:
    """The bare loop that tutorials write: kl_div on all logits."""
    work.teacher.to(DEVICE)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            teacher = work.teacher(**inputs).logits
        student = work.student(**inputs).logits
        return F.kl_div(
            F.log_softmax(student[:, :-1].flatten(0, 1), dim=-1),
            F.softmax(teacher[:, :-1].flatten(0, 1), dim=-1),
            reduction="batchmean",
        )

    _loop(work, clock, loss)


def liger(work: Workload, clock: Clock) -> None:
    """Liger's fused loss, from hidden states to gradients in chunks, in the same bare loop."""
    work.teacher.to(DEVICE)
    _loop(work, clock, liger_loss(work.student, work.teacher))


def liger_loss(
    student: Any, teacher: Any, temperature: float = 1.0, compiled: bool = True
) -> Callable[[dict[str, Tensor]], Tensor]:
    """The forward KL (beta=0) a target token, from the teacher alone. It lacks the T² of ours."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    divergence = LigerFusedLinearJSDLoss(0.0, 1.0, 0.0, -100, temperature, compiled)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            theirs = teacher.model(**inputs).last_hidden_state
        own = student.model(**inputs).last_hidden_state
        found: Tensor = divergence(
            own[:, :-1].flatten(0, 1),
            student.lm_head.weight,
            theirs[:, :-1].flatten(0, 1),
            teacher.lm_head.weight,
            batch["labels"][:, 1:].flatten(),
        )
        return found

    return loss


def liger_is_missing() -> str | None:
    """Why it cannot be measured here."""
    if not CUDA:
        return "it needs a GPU"
    return None if find_spec("liger_kernel") else "liger_kernel is not installed"


def trl(work: Workload, clock: Clock) -> None:
    """TRL's GKDTrainer on given text alone (lmbda=0), forward KL (beta=0)."""
    import tempfile

    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Timing(TrainerCallback):
        on_step_begin = clock.start
        on_step_end = clock.stop

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        names = ("input_ids", "labels", "attention_mask")
        return {name: torch.tensor([row[name] for row in rows]) for name in names}

    words = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    tokenizer.eos_token = "<pad>"
    rows = [{k: v.long().tolist() for k, v in row.items()} for row in work.rows()]
    args = GKDConfig(
        output_dir=tempfile.mkdtemp(),
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        max_steps=work.steps + WARM_UP,
        per_device_train_batch_size=work.sequences,
        learning_rate=1e-4,
        max_length=work.length,
        use_cpu=not CUDA,
        bf16=CUDA,
        gradient_checkpointing=False,
        optim="adamw_torch_fused",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = GKDTrainer(
        model=work.student,
        teacher_model=work.teacher,
        args=args,
        data_collator=collate,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.add_callback(Timing())
    trainer.train()


def _loop(work: Workload, clock: Clock, loss: Callable[[dict[str, Tensor]], Tensor]) -> None:
    work.student.to(DEVICE).train()
    optimizer = torch.optim.AdamW(work.student.parameters(), lr=1e-4, fused=True)
    for batch in work.batches():
        clock.start()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(work.student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.stop()


def loss_alone(work: Workload, clock: Clock, fused: bool = True) -> None:
    """The objective and its gradients alone, from hidden states that are there already."""
    from lightning_distill.losses.divergences.forward_kl import forward_kl
    from lightning_distill.losses.objective import Objective
    from lightning_distill.models.output_head import find_head
    from lightning_distill.models.predictions import Predictions

    objective = Objective(forward_kl, 1.0, 1.0, 0.0, "labels", fused=fused)
    sides = []
    for model, (_, width, _) in ((work.student, STUDENT), (work.teacher, TEACHER)):
        model.to(DEVICE)
        states = torch.randn(work.sequences, work.length, width, device=DEVICE)
        sides.append(Predictions(states, find_head(model), work.vocabulary))
    sides[0].states.requires_grad_()
    reset_peak()
    for batch in work.batches():
        clock.start()
        objective.terms(sides[0], sides[1:], batch["labels"]).total.backward()
        clock.stop()


def unfused_loss_alone(work: Workload, clock: Clock) -> None:
    """The same on all logits at once."""
    loss_alone(work, clock, fused=False)


def matrix_rate() -> float:
    """The best FLOP/s of a matrix product that this device reaches now."""
    best = 0.0
    dtype = torch.bfloat16 if CUDA else torch.float32
    for size in (4096, 8192) if CUDA else (1024, 2048):
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        for _ in range(6):
            clock = Clock()
            clock.start()
            torch.mm(a, b, out=out)
            clock.stop()
            best = max(best, 2 * size**3 / clock.seconds[0])
    return best


def reset_peak() -> None:
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def memory(peak: bool) -> int:
    """Bytes in use now, or at the most; of the GPU where there is one."""
    if CUDA:
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


FROM_CACHE = (cached_topk, cached_sampled, cached_hybrid, cached_hidden)
WITHOUT_TEACHER = {f.__name__ for f in (cross_entropy, labels_alone, *FROM_CACHE)}
CONTENDERS = {
    f.__name__: f
    for f in (
        *(ours, unfused, cross_entropy, tutorial, liger, trl, loss_alone, unfused_loss_alone),
        *(labels_alone, *FROM_CACHE),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=[*CONTENDERS, "matrix_rate"])
    for name in ("vocabulary", "length", "sequences", "steps", "cores"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    if not CUDA:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        torch.set_num_threads(args.cores)
    if args.contender == "matrix_rate":
        print(json.dumps({"rate": matrix_rate()}))
        return
    work = Workload(args.vocabulary, args.length, args.sequences, args.steps)
    flops = work.step_flops(with_teacher=args.contender not in WITHOUT_TEACHER)
    clock = Clock()
    before = memory(peak=False)
    reset_peak()
    CONTENDERS[args.contender](work, clock)
    tokens = args.sequences * args.length
    print(
        json.dumps(
            {
                "seconds": clock.median,
                "tokens_per_second": tokens / clock.median,
                "peak": memory(peak=True),
                "added": memory(peak=True) - before,
                "flops": flops,
            }
        )
    )


if __name__ == "__main__":
    main()
