"""What `import lightning_distill` offers, against transformers, torch and the command."""

import json
import subprocess
import sys

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import lightning_distill as ld
from lightning_distill.losses import divergences

V, T = 40, 12


def llama(width, seed, vocab_size=V):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32,
        )
    )  # fmt: skip


@pytest.fixture
def student():
    return llama(16, 1)


@pytest.fixture
def teacher():
    return llama(32, 2)


def batches(count=6, size=3, seed=0):
    """As transformers' collators make them: labels are the tokens themselves, -100 for none."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(V, (size, T), generator=generator)
        labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.3, -100)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(batches(), batch_size=None)


def trainer(*callbacks, **more):
    settings = {"max_epochs": 1, "accelerator": "cpu", "logger": False, **more}
    return L.Trainer(
        callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, **settings,
    )  # fmt: skip


# The objective


def test_without_a_teacher_the_loss_is_transformers_own(student):
    (batch,) = batches(1)
    outputs = student(**batch)
    loss, terms = ld.Objective(alpha=0)(outputs.logits, None, batch["labels"])
    torch.testing.assert_close(loss, outputs.loss)
    torch.testing.assert_close(terms["hard"], outputs.loss.detach())
    loss.backward()
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_a_teacher_the_soft_term_is_torchs_kl_div(student, teacher, temperature):
    (batch,) = batches(1)
    labels = batch["labels"]
    z, y = student(batch["input_ids"]).logits, teacher(batch["input_ids"]).logits.detach()
    objective = ld.Objective("forward_kl", temperature=temperature, alpha=0.5, hard_weight=0)
    loss, terms = objective(z, y, labels)
    learned = labels[:, 1:] != -100
    q, p = ((x[:, :-1][learned] / temperature).log_softmax(-1) for x in (z, y))
    kl = F.kl_div(q, p, log_target=True, reduction="batchmean") * temperature**2
    torch.testing.assert_close(terms["soft"], kl.detach())
    torch.testing.assert_close(loss, 0.5 * kl)


@pytest.mark.parametrize("name", divergences.names())
def test_each_divergence_has_a_name_and_no_value_for_a_perfect_student(student, name):
    (batch,) = batches(1)
    z = student(batch["input_ids"]).logits
    loss, _ = ld.Objective(name, hard_weight=0)(z, z.detach(), batch["labels"])
    assert abs(float(loss)) < 1e-6


def test_an_embedding_that_is_padded_changes_nothing(student, teacher):
    (batch,) = batches(1)
    z, y = student(batch["input_ids"]).logits, teacher(batch["input_ids"]).logits
    padded = F.pad(y, (0, 7), value=5.0)
    expected, _ = ld.Objective()(z, y, batch["labels"])
    torch.testing.assert_close(ld.Objective()(z, padded, batch["labels"])[0], expected)


def test_a_classifier_has_a_label_for_each_example():
    z, y = torch.randn(5, 3), torch.randn(5, 3)
    labels = torch.tensor([0, 2, -100, 1, 1])
    loss, _ = ld.Objective(alpha=0)(z, y, labels)
    torch.testing.assert_close(loss, F.cross_entropy(z, labels))


def test_an_unknown_divergence_is_refused_with_the_names_that_there_are():
    with pytest.raises(ld.ConfigError, match=r"Did you mean forward_kl\?"):
        ld.Objective("forward")


# The modules


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def by_hand(student, teacher, objective, lr):
    """The losses of a plain loop, and the weights after it."""
    optimizer, losses = torch.optim.SGD(student.parameters(), lr=lr), []
    for batch in batches():
        ids = batch["input_ids"]
        with torch.no_grad():
            y = teacher(ids).logits
        loss, _ = objective(student(ids).logits, y, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses, student.state_dict()


def test_a_module_trains_on_anyones_batches_as_a_plain_loop_does(teacher):
    objective = ld.Objective(temperature=2.0, alpha=0.5)
    losses, expected = by_hand(llama(16, 1), teacher, objective, lr=0.1)
    seen, student = Losses(), llama(16, 1)
    module = ld.StudentModule(
        student, teacher, objective, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1)
    )
    trainer(seen).fit(module, Data())
    assert seen.values == pytest.approx(losses, rel=1e-5)  # the loss, not a multiple of it
    torch.testing.assert_close(student.state_dict(), expected, rtol=1e-5, atol=1e-6)


def test_a_module_has_defaults_for_all_but_the_models(student, teacher):
    before = float(ld.Objective()(*logits(student, teacher))[0])
    trainer().fit(ld.StudentModule(student, teacher), Data())
    assert float(ld.Objective()(*logits(student, teacher))[0]) < before


def logits(student, teacher):
    (batch,) = batches(1)
    ids = batch["input_ids"]
    return student(ids).logits, teacher(ids).logits, batch["labels"]


def test_a_teacher_learns_from_labels(teacher):
    (batch,) = batches(1)
    before = float(teacher(**batch).loss)
    trainer(max_epochs=3).fit(ld.TeacherModule(teacher), Data())
    assert float(teacher(**batch).loss) < before


# The command


@pytest.fixture(scope="module")
def tiny(text_file, tmp_path_factory):
    from conftest import TINY

    outputs = tmp_path_factory.mktemp("api")
    return [*TINY, "logger=none", f"data.path={text_file}", f"paths.outputs={outputs}"]


@pytest.fixture(scope="module")
def results(tiny):
    return ld.run(tiny)


def test_a_run_has_its_folder_and_its_scores(results):
    content = json.loads((results.folder / "results.json").read_text())
    assert results.status == "finished"
    assert results.student.nll == content["student"]["nll"]
    assert results.teacher.parameters == content["teacher"]["parameters"]
    assert results.cost.student_seconds == content["cost"]["student_seconds"]
    model = LlamaForCausalLM.from_pretrained(results.student_folder)
    assert sum(p.numel() for p in model.parameters()) == results.student.parameters


def test_a_sweep_is_a_table(tiny, results):
    made = ld.sweep([*tiny, "loss.alpha=0,1", "sweep.name=api"])
    assert [job.status for job in made.jobs] == ["finished", "finished"]
    table = made.to_pandas()
    assert sorted(table["loss.alpha"]) == [0, 1]
    assert set(table["student.nll"]) == {job.student.nll for job in made.jobs}
    assert (made.folder / "report.html").exists()


def test_a_stage_that_trains_nothing_has_no_results(tiny):
    made = ld.run([*tiny, "stage=plan"])
    assert (made.folder / "plan.json").exists()
    assert (made.status, made.student) == (None, None)


def test_a_mistake_is_an_exception(tiny):
    arguments = list(sys.argv)
    with pytest.raises(ld.ConfigError, match=r"loss.temperature"):
        ld.run([*tiny, "loss.temperature=-1"])
    with pytest.raises(ld.ConfigError, match="Did you mean"):
        ld.run([*tiny, "loss.temperatur=1"])
    with pytest.raises(ld.ConfigError, match="sweep"):
        ld.run(["-m", *tiny])
    assert sys.argv == arguments


def test_a_config_is_that_of_the_command():
    cfg = ld.compose(["student=xs", "loss.temperature=2"])
    assert (cfg.student.hidden_size, cfg.loss.temperature) == (64, 2)
    assert ld.compose(["student=pretrained", "student.name=x"]).optimizer.lr == 5e-5
    with pytest.raises(ld.ConfigError, match="Did you mean"):
        ld.compose(["stuent=xs"])


# Imports


def loaded_by(code):
    script = f"{code}; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_package_imports_no_torch_and_its_losses_no_transformers():
    assert "torch" not in loaded_by("import lightning_distill")
    modules = loaded_by("import lightning_distill as ld; ld.losses.Objective('forward_kl')")
    assert not {"transformers", "lightning", "wandb", "hydra"} & set(modules)


def test_each_name_exists():
    for name in ld.__all__:
        assert getattr(ld, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = ld.nothing
