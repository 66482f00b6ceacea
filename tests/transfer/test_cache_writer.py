"""The teacher's pass over the transfer set: killed, cut short of room, and on two devices."""

import random
import resource
import shutil
import signal
from collections import namedtuple
from dataclasses import replace

import lightning as L
import pytest
import torch
from conftest import TINY
from forked import Place, as_ranks
from safetensors.torch import load_file, save_file

from lightning_distill.constants import IGNORED
from lightning_distill.data.sources.text import Text
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError
from lightning_distill.models import sizes
from lightning_distill.models.frozen import Frozen
from lightning_distill.storage.artifacts import Store
from lightning_distill.transfer.cache import shards, writer
from lightning_distill.transfer.cache.hidden_codec import HiddenStateCodec
from lightning_distill.transfer.cache.sparse_codec import SparseCodec
from lightning_distill.transfer.cache.writer import CacheWriter


def contents(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def predict(labeller, **devices):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **devices)
    trainer.predict(labeller, return_predictions=False)


@pytest.fixture
def label(make_data, monkeypatch):
    """Labels the text's first 64 blocks into a folder of 16 shards."""
    monkeypatch.setattr(shards, "SHARD_TOKENS", (128, 2**20))
    data = make_data()
    teacher = Frozen(sizes.decoder(sizes.Size(32, 2, 2, 64), data.tokenizer), len(data.tokenizer))
    layout = SparseCodec("hybrid", 4, 4, (1.0, 2.0), 16, len(data.tokenizer))

    def run(folder):
        folder.mkdir(exist_ok=True)
        train, validation = data.examples("train"), data.examples("validation")
        labeller = CacheWriter([teacher], layout, train, 64, validation, 3, folder)
        predict(labeller)
        return labeller.kl

    return run


def test_missing_shards_alone_are_made_and_are_the_same_again(label, tmp_path):
    kl = label(tmp_path / "cache")
    before = contents(tmp_path / "cache")
    assert len(before) == 16
    files = {f: f.stat() for f in (tmp_path / "cache").iterdir()}
    missing = [shards.shard_file(tmp_path / "cache", n) for n in (0, 7, 8, 15)]
    for file in missing:
        file.unlink()
    for _ in range(2):  # then none is missing
        assert label(tmp_path / "cache") == kl
        assert contents(tmp_path / "cache") == before
    for file in files.keys() - set(missing):
        assert file.stat().st_mtime_ns == files[file].st_mtime_ns


def test_a_disk_without_room_is_refused_before_anything_is_written(label, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 10_000, 10_000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"predictions take 94\.2 kB, and .*cache has 10\.0 kB"):
        label(tmp_path / "cache")
    assert contents(tmp_path / "cache") == {}


def test_a_disk_that_fills_up_leaves_no_part_of_a_shard(in_process, tmp_path):
    """The limit to a file's size stands for the disk: the first shard takes 1.2 MB."""
    same = ("stage=transfer", "transfer=cached", f"paths.outputs={tmp_path}")
    in_process("stage=teacher", f"paths.outputs={tmp_path}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        said = in_process(*same, expect=2).stderr
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (left,) = tmp_path.glob("artifacts/predictions/*.partial")
    assert f"File too large: {left / 'shard-00000.safetensors'}" in said
    assert len(said.strip().splitlines()) == 1
    assert contents(left) == {}
    in_process(*same)
    assert len(list(tmp_path.glob("artifacts/predictions/*/shard-*"))) == 2


@pytest.fixture(scope="module")
def trained(in_process, tmp_path_factory):
    """Outputs with a teacher, and its folder."""
    outputs = tmp_path_factory.mktemp("trained")
    in_process("stage=teacher", f"paths.outputs={outputs}")
    (teacher,) = outputs.glob("artifacts/teacher/*/")
    return outputs, teacher


def spoil(teacher, folder, place):
    """A copy of a teacher with one weight that is no number, as the command asks for it."""
    shutil.copytree(teacher, folder)
    weights = load_file(folder / "model.safetensors")
    weights[f"{place}.weight"].view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return "teacher=pretrained", f"teacher.name={folder}", "teacher.max_steps=0"


@pytest.fixture
def refused(in_process, trained, tmp_path):
    """What the command says of a teacher with such a weight, of which it keeps nothing."""

    def refused(place, kind, *settings):
        outputs, teacher = trained
        name = spoil(teacher, tmp_path / "broken", place)
        where = f"paths.outputs={outputs}"
        said = in_process("stage=transfer", *settings, *name, where, expect=2).stderr
        assert len(said.strip().splitlines()) == 1
        assert not [f for f in outputs.glob(f"artifacts/{kind}/*") if f.suffix != ".lock"]
        return said

    return refused


FIRST = "predicts NaN or Inf, first at block 0 of the transfer set"


@pytest.mark.parametrize(
    ("stored", "place", "says"),
    [
        *((stored, "model.norm", FIRST) for stored in ("topk", "sampled", "hybrid", "hidden")),
        ("hidden", "model.embed_tokens", "has NaN or Inf in its output matrix"),
    ],
)
def test_a_teacher_whose_predictions_are_no_numbers_leaves_no_cache(
    refused, tmp_path, stored, place, says
):
    said = refused(place, "predictions", "transfer=cached", f"transfer.stored={stored}")
    assert f"The teacher {tmp_path / 'broken'} {says}; nothing of it is stored" in said


@pytest.mark.parametrize("temperature", [0, 1])
def test_what_a_teacher_writes_whose_predictions_are_no_numbers_is_not_kept(
    refused, tmp_path, temperature
):
    settings = ["transfer=sequence", f"transfer.temperature={temperature}"]
    said = refused("model.norm", "text", *settings)
    assert f"{tmp_path / 'broken'} predicts NaN or Inf, first at sequences 0 to " in said


class LostFrom(Frozen):
    """Says nothing that is a number from one block on."""

    def forward(self, batch):
        said = super().forward(batch)
        lost = (batch["block"] >= 21).view(-1, 1, 1)
        return replace(said, states=said.states.masked_fill(lost, torch.nan))


@pytest.mark.parametrize("stored", ["topk", "sampled", "hybrid", "hidden", "hidden in 32 bits"])
def test_the_first_block_without_a_number_is_named_and_what_was_written_before_it_goes(
    make_data, tmp_path, monkeypatch, stored
):
    monkeypatch.setattr(shards, "SHARD_TOKENS", (128, 2**20))
    data = make_data()
    vocabulary = len(data.tokenizer)
    teacher = LostFrom(sizes.decoder(sizes.Size(32, 2, 2, 64), data.tokenizer), vocabulary)
    if "hidden" in stored:
        layout = HiddenStateCodec([teacher.predict.head], 32 if "32" in stored else 16, vocabulary)
    else:
        k, draws = {"topk": (8, 0), "sampled": (0, 8), "hybrid": (4, 4)}[stored]
        layout = SparseCodec(stored, k, draws, (1.0, 2.0), 16, vocabulary)
    train, validation = data.examples("train"), data.examples("validation")
    folder = tmp_path / "cache"
    folder.mkdir()
    with pytest.raises(ConfigError, match="NaN or Inf, first at block 21 of the transfer set"):
        predict(CacheWriter([teacher], layout, train, 64, validation, 3, folder))
    assert contents(folder) == {}


class Rows(list):
    positions = 32


def test_what_is_no_number_where_nothing_is_to_be_learned_is_no_hindrance(make_data, tmp_path):
    data = make_data()
    vocabulary = len(data.tokenizer)
    teacher = LostFrom(sizes.decoder(sizes.Size(32, 2, 2, 64), data.tokenizer), vocabulary)
    rows = Rows(data.examples("train")[i] for i in range(24))
    for row in rows[21:]:
        row["labels"] = torch.full_like(row["labels"], IGNORED)
    layout = SparseCodec("topk", 4, 0, (1.0,), 16, vocabulary)
    predict(CacheWriter([teacher], layout, rows, 24, data.examples("validation"), 3, tmp_path))
    assert list(contents(tmp_path)) == ["shard-00000.safetensors"]


def label_alike(text, outputs, folder):
    """What each of the devices does."""
    shards.SHARD_TOKENS = 128, 2**20
    data = CausalLM(Text, 32, 4, 300, isolate_documents=False, path=str(text))
    data.prepare(Store(outputs), None)
    torch.manual_seed(1)
    size = len(data.tokenizer)
    labeller = CacheWriter(
        [Frozen(sizes.decoder(sizes.Size(32, 2, 2, 64), data.tokenizer), size)],
        SparseCodec("hybrid", 4, 4, (1.0, 2.0), 16, size),
        *(data.examples("train"), 58, data.examples("validation"), 3, folder),
    )
    strategy = {
        "devices": process_group.world_size(),
        "strategy": "ddp" if process_group.is_distributed() else "auto",
    }
    predict(labeller, use_distributed_sampler=False, **strategy)
    if process_group.rank() == 0:
        folder.with_suffix(".kl").write_text(repr(labeller.kl))


@pytest.mark.slow
def test_two_devices_write_the_shards_of_one(text_file, tmp_path):
    """15 shards, 8 for the one and 7 for the other; then none for the other."""

    def label(world, folder):
        folder.mkdir(exist_ok=True)
        as_ranks(world, label_alike, text_file, tmp_path / "outputs", folder)
        return contents(folder), folder.with_suffix(".kl").read_text()

    one, two = tmp_path / "one", tmp_path / "two"
    alone, kl = label(1, one)
    assert len(alone) == 15
    assert label(2, two) == (alone, kl)
    for number in (2, 4):
        shards.shard_file(two, number).unlink()
    assert label(2, two) == (alone, kl)


def small_shards():
    """One block a shard, 271 of the tests' text."""
    shards.SHARD_TOKENS = 32, 32


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts `stage=transfer`, or another, in outputs that are given."""
    settings = [*TINY, "logger=none", "transfer=cached"]
    place = Place(tmp_path_factory.mktemp("place"))

    def start(outputs, stage="transfer"):
        own = [*settings, f"paths.outputs={outputs}", f"stage={stage}"]
        return place.start(*own, before=small_shards)

    return start


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """Outputs with a teacher, and the cache that it makes when it is left in peace."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    start(outputs, "teacher").wait()
    with_teacher = tmp_path_factory.mktemp("outputs") / "with_teacher"
    shutil.copytree(outputs, with_teacher)
    start(outputs).wait()
    (cache,) = outputs.glob("artifacts/predictions/*/manifest.json")
    return with_teacher, contents(cache.parent)


def shards_there(outputs):
    return len(list(outputs.glob("artifacts/predictions/*.partial/shard-*.safetensors")))


def check_killed(start, undisturbed, outputs, moments):
    """Killed as soon as so many shards are there."""
    with_teacher, expected = undisturbed
    shutil.copytree(with_teacher, outputs)
    for moment in moments:
        command = start(outputs)
        assert command.until(lambda moment=moment: shards_there(outputs) >= moment), command.said
        command.signal(signal.SIGKILL)
        command.wait(-signal.SIGKILL)
        assert not list(outputs.glob("artifacts/predictions/*/manifest.json"))
    start(outputs).wait()
    (cache,) = outputs.glob("artifacts/predictions/*/manifest.json")
    assert contents(cache.parent) == expected


def test_labelling_that_was_killed_twice_ends_at_the_same_bytes(start, undisturbed, tmp_path):
    assert len(undisturbed[1]) == 272
    check_killed(start, undisturbed, tmp_path / "outputs", [20, 160])


@pytest.mark.long
@pytest.mark.parametrize("moment", sorted(random.Random(0).sample(range(240), 10)))
def test_killed_at_any_moment_it_ends_at_the_same_bytes(start, undisturbed, tmp_path, moment):
    check_killed(start, undisturbed, tmp_path / "outputs", [moment])
