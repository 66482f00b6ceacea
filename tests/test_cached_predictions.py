"""The cache of a run as a data set, against the teacher that it is of."""

import shutil

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import lightning_distill as ld
from lightning_distill.losses.distributions import Sparse

STORED = {
    "hidden": ("transfer.stored=hidden", "transfer.bits=32"),
    "topk": ("transfer.stored=topk", "transfer.k=300"),  # all tokens
    "hybrid": ("transfer.stored=hybrid", "transfer.k=200", "transfer.draws=100"),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def make(in_process, outputs):
    """The folder of a run."""

    def make(name, *overrides):
        folder = outputs / "runs" / name
        where = (f"paths.outputs={outputs}", f"hydra.run.dir={folder}")
        in_process("stage=transfer", "transfer.num_blocks=6", *overrides, *where)
        return folder

    return make


@pytest.fixture(scope="module")
def folders(make):
    return {kind: make(kind, "transfer=cached", *more) for kind, more in STORED.items()}


@pytest.fixture(scope="module")
def teacher(folders, outputs):
    (folder,) = (f for f in (outputs / "artifacts" / "teacher").iterdir() if f.is_dir())
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def batch_of(cache):
    (batch,) = DataLoader(cache, batch_size=6, collate_fn=cache.collate, num_workers=0)
    return batch


@pytest.mark.slow
def test_an_example_has_its_tokens_and_labels_and_the_teachers_logits(folders, teacher):
    cache = ld.CachedPredictions(folders["hidden"])
    assert len(cache) == len(list(cache)) == 6
    example = cache[2]
    assert torch.equal(example["labels"][:-1], example["input_ids"][1:])
    with torch.no_grad():
        expected = teacher(example["input_ids"][None]).logits[0, :, : cache.vocab_size]
    torch.testing.assert_close(example["teacher"][0].logits(), expected)
    assert torch.equal(cache[-1]["input_ids"], cache[5]["input_ids"])
    assert cache.tokenizer.decode(example["input_ids"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "divergence", "tolerance"),
    [
        ("hidden", "forward_kl", 1e-5),
        ("hidden", "reverse_kl", 1e-5),
        ("topk", "forward_kl", 1e-3),  # 16 bits a value
        ("topk", "total_variation", 1e-3),
        ("hybrid", "forward_kl", 1e-3),
    ],
)
def test_a_batch_gives_the_loss_of_the_teacher_itself(
    folders, teacher, kind, divergence, tolerance
):
    cache = ld.CachedPredictions(folders[kind])
    batch, objective = batch_of(cache), ld.Objective(divergence, temperature=2.0)
    student = torch.randn(*batch["labels"].shape, cache.vocab_size, requires_grad=True)
    with torch.no_grad():
        online = teacher(batch["input_ids"]).logits
    loss, terms = objective(student, batch["teacher"], batch["labels"], shifted_labels=True)
    expected, expected_terms = objective(student, online, batch["labels"], shifted_labels=True)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(terms["soft"], expected_terms["soft"], rtol=tolerance, atol=1e-3)
    loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.slow
def test_workers_and_devices_get_the_same(folders):
    cache = ld.CachedPredictions(folders["topk"])
    loader = DataLoader(cache, batch_size=4, collate_fn=cache.collate, num_workers=1)
    first, second = loader
    assert isinstance(first["teacher"], Sparse)
    assert first["teacher"].ids.shape == (4, 32, 300)
    assert torch.equal(second["teacher"].to("cpu").log_p[1], cache[5]["teacher"].log_p)
    hidden = batch_of(ld.CachedPredictions(folders["hidden"]))["teacher"]
    assert hidden[0].to("cpu").logits().shape[:2] == (6, 32)


@pytest.mark.slow
def test_labels_that_are_not_shifted_are_refused_with_a_cache(folders):
    cache = ld.CachedPredictions(folders["hidden"])
    batch = batch_of(cache)
    student = torch.randn(*batch["labels"].shape, cache.vocab_size)
    with pytest.raises(ld.ConfigError, match="shifted_labels=True"):
        ld.Objective()(student, batch["teacher"], batch["labels"])


@pytest.mark.slow
def test_a_folder_without_a_cache_is_refused(make, folders, tmp_path, outputs):
    online = make("online", "transfer=online")
    with pytest.raises(ld.ConfigError, match="transfer=cached"):
        ld.CachedPredictions(online)
    with pytest.raises(ld.ConfigError, match="artifacts"):
        ld.CachedPredictions(tmp_path)
    (outputs / "moved").mkdir()
    shutil.copytree(folders["topk"], outputs / "moved" / "runs" / "topk")
    (outputs / "moved" / "artifacts").mkdir()
    with pytest.raises(ld.ConfigError, match="Run its command again"):
        ld.CachedPredictions(outputs / "moved" / "runs" / "topk")
