"""Students that train on stored predictions: what is reused, what is refused, what it ends at."""

import gc
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lightning_distill import pipeline
from lightning_distill.storage.artifacts import MANIFEST
from lightning_distill.training.fit import fit

TWO_TEACHERS = "teacher.members=[{seed: 0}, {seed: 1}]"


def results(folder):
    return {f.parent.name: json.loads(f.read_text()) for f in folder.rglob("results.json")}


def caches(outputs):
    return {f.parent for f in outputs.glob(f"artifacts/predictions/*/{MANIFEST}")}


def contents(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Shared by all runs of this file, which so share their teachers."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def sweep(in_process, outputs):
    """Two temperatures with one cache. Returns the results of each, and the folder of the cache."""
    in_process(
        "-m",
        "transfer=cached",
        "loss.temperature=1,2",
        "loss.alpha=1",
        "sweep.name=one",
        f"paths.outputs={outputs}",
    )
    (cache,) = caches(outputs)
    found = results(outputs / "sweeps" / "one").values()
    return sorted(found, key=lambda job: "loss.temperature=2" in job["overrides"]), cache


@pytest.fixture
def run(in_process, outputs, tmp_path):
    """A run with those teachers. Returns its results."""

    def run(*overrides):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        in_process(*overrides, f"paths.outputs={outputs}", f"hydra.run.dir={folder}")
        (found,) = results(folder).values()
        return found

    return run


@pytest.fixture
def refused(in_process, outputs):
    """What a run with those teachers is refused with: exit code 2, and a line or two."""

    def run(*overrides):
        said = in_process(*overrides, f"paths.outputs={outputs}", expect=2).stderr.strip()
        assert len(said.splitlines()) <= 2
        return said

    return run


def test_a_sweep_has_its_transfer_set_labelled_once(sweep):
    first, second = sweep[0]
    assert first["cost"]["transfer_seconds"] > 0
    assert second["cost"]["transfer_seconds"] == 0
    assert first["status"] == second["status"] == "finished"


def test_the_manifest_says_what_a_token_costs_and_what_is_lost(sweep):
    content = json.loads((sweep[1] / MANIFEST).read_text())["content"]
    assert content["bytes_per_token"] == 32 * (2 + 2) + 3 * 4 + 6  # ids and values, log Z, hybrid's
    assert content["kl"] > 0


def test_a_stage_labels_ahead_of_the_students(run):
    seconds = run("stage=transfer", "transfer=cached", "transfer.stored=sampled")["cost"]
    assert seconds["transfer_seconds"] > 0
    later = run("transfer=cached", "transfer.stored=sampled", "loss.temperature=4")
    assert later["cost"]["transfer_seconds"] == 0
    assert later["status"] == "finished"


@pytest.fixture
def in_memory(monkeypatch):
    """The widths of all models in memory when a training starts, and the teachers of its module.

    Without those of other tests in this process.
    """
    found = []

    def models_of_process():
        gc.collect()
        return [x for x in gc.get_objects() if isinstance(x, PreTrainedModel)]

    others = models_of_process()  # held here, so that no other model gets the id of one

    def watched(cfg, module, *rest):
        models = [x for x in models_of_process() if not any(x is one for one in others)]
        found.append((sorted({m.config.hidden_size for m in models}), len(module.teachers)))
        return fit(cfg, module, *rest)

    monkeypatch.setattr(pipeline, "fit", watched)
    return found


def test_students_train_with_no_teacher_in_memory(run, in_memory, sweep, tmp_path):
    run("transfer=cached")
    labelled_now = ("transfer.stored=hidden", "transfer.num_blocks=200")
    run("transfer=cached", *labelled_now, "checkpoint_every_n_steps=5")
    checkpoint = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    run("transfer=online")
    assert in_memory == [([16], 0), ([16], 0), ([16, 32], 1)]
    assert all(name.startswith("model.") for name in checkpoint["state_dict"])
    assert 32 not in {p.shape[-1] for p in checkpoint["state_dict"].values()}


@pytest.mark.parametrize("isolate", ["false", "true"])
def test_hidden_states_end_where_the_teacher_itself_does(run, isolate):
    same = (f"data.isolate_documents={isolate}", "loss.temperature=2", "student.max_steps=40")
    online = run("transfer=online", *same)["student"]["nll"]
    cached = run("transfer=cached", "transfer.stored=hidden", *same)["student"]["nll"]
    assert cached == pytest.approx(online, abs=1e-4)


def test_the_largest_of_the_whole_vocabulary_end_there_too(run):
    same = ("loss.temperature=2", "student.max_steps=40")
    online = run("transfer=online", *same)["student"]["nll"]
    all_of_it = ("transfer.stored=topk", "transfer.k=300")
    cached = run("transfer=cached", *all_of_it, *same)["student"]["nll"]
    assert cached == pytest.approx(online, abs=1e-4)


def test_hidden_states_of_two_teachers_end_where_the_two_do(run):
    same = (TWO_TEACHERS, "teacher.weights=[1,2]", "loss.temperature=2")
    online = run("transfer=online", *same)["student"]["nll"]
    cached = run("transfer=cached", "transfer.stored=hidden", *same)["student"]["nll"]
    assert cached == pytest.approx(online, abs=1e-4)


def test_two_teachers_are_stored_as_their_mean(run, outputs):
    before = caches(outputs)
    assert run("transfer=cached", TWO_TEACHERS)["status"] == "finished"
    (cache,) = caches(outputs) - before
    content = json.loads((cache / MANIFEST).read_text())["content"]
    assert content["bytes_per_token"] == 146  # no more than for one


def test_a_temperature_without_draws_of_its_own_warns_and_trains(in_process, outputs):
    same = ("transfer=cached", "transfer.temperatures=[1,2]", f"paths.outputs={outputs}")
    said = in_process(*same, "loss.temperature=3").stdout
    assert "loss.temperature=3 is not among transfer.temperatures=[1.0, 2.0]" in said
    assert "biased" not in in_process(*same, "loss.temperature=2", "stage=transfer").stdout


OTHERS = [
    (["teacher.max_steps=10"], "another teacher: "),
    (["data.sequence_length=16"], "another data.sequence_length: 32; this run's is 16"),
    (["transfer.num_blocks=10"], "another transfer.num_blocks: 271; this run's is 10"),
    (["data.isolate_documents=true"], "another data.isolate_documents: False"),
    (["data.vocab_size=290"], "another text and tokenizer: "),
]


@pytest.mark.parametrize(("overrides", "message"), OTHERS, ids=str)
def test_a_cache_that_was_made_from_something_else_is_refused(sweep, refused, overrides, message):
    said = refused("transfer=cached", f"transfer.cache={sweep[1]}", *overrides)
    assert f"transfer.cache={sweep[1]} was made from {message}" in said


def test_a_cache_can_be_given_by_its_folder(sweep, run):
    (_, second), cache = sweep
    given = run("transfer=cached", f"transfer.cache={cache}", "loss.temperature=2", "loss.alpha=1")
    assert given["cost"]["transfer_seconds"] == 0
    assert given["student"] == second["student"]


@pytest.mark.parametrize("given", ["nowhere", ".", "teacher", "half"])
def test_a_folder_that_is_no_cache_is_refused(sweep, refused, outputs, tmp_path, given):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / MANIFEST).write_text('{"kind": "predictions", ')
    (teacher, *_) = outputs.glob("artifacts/teacher/*/manifest.json")
    folder = teacher.parent if given == "teacher" else tmp_path / given
    said = refused("transfer=cached", f"transfer.cache={folder}")
    assert f"transfer.cache={folder} is not the folder of a finished cache" in said


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {"changed": flip_a_byte, "removed": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_shard_alone_is_made_again(sweep, in_process, outputs, damage, number):
    _, cache = sweep
    shards = sorted(cache.glob("shard-*"))
    assert len(shards) == 2
    damaged, whole = shards[number], shards[1 - number]
    before, untouched = contents(cache), whole.stat()
    DAMAGE[damage](damaged)
    said = in_process("transfer=cached", "stage=transfer", f"paths.outputs={outputs}").stdout
    line = f"{cache.name} is damaged ({damaged.name}) and will be created again"
    assert line in " ".join(said.split())
    assert contents(cache) == before
    now = whole.stat()
    assert (now.st_ino, now.st_mtime_ns) == (untouched.st_ino, untouched.st_mtime_ns)


def test_a_damaged_cache_that_is_given_by_its_folder_is_refused(sweep, refused):
    _, cache = sweep
    shard = cache / "shard-00001.safetensors"
    whole = shard.read_bytes()
    flip_a_byte(shard)
    said = refused("transfer=cached", f"transfer.cache={cache}")
    shard.write_bytes(whole)
    assert f"transfer.cache={cache} is damaged ({shard.name})" in said


REFUSED = [
    (["transfer.k=290"], "transfer.k=290 + transfer.draws=24 is more than the 300"),
    (["transfer.stored=topk", "transfer.k=301"], "transfer.k=301 is more than the 300"),
    (["loss=reverse_kl", "transfer.stored=sampled"], "stored=sampled is unbiased for loss=forward"),
    (["loss=logit_mse"], "This loss compares logits; choose transfer.stored=hidden."),
    (["loss.hidden.weight=1"], "loss.hidden.weight=1 compares layers of the teacher"),
    (
        [TWO_TEACHERS, "loss.temperature=2", "transfer.stored=topk"],
        "transfer.stored=topk of several teachers needs loss.temperature=1",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda x: str(x)[:50])
def test_what_stored_predictions_cannot_bring_is_refused(refused, overrides, message):
    assert message in refused("transfer=cached", *overrides)


@pytest.mark.parametrize("stage", [["loss.alpha=1"], ["loss.alpha=0", "stage=transfer"]], ids=str)
def test_a_teacher_of_another_tokenizer_is_refused(in_process, refused, tmp_path, stage):
    for size in (280, 290):
        in_process(
            "stage=teacher", f"data.vocab_size={size}", f"paths.outputs={tmp_path / str(size)}"
        )
    student, teacher = [
        f.parent for f in sorted(tmp_path.glob("*/artifacts/teacher/*/config.json"))
    ]
    models = ["student=pretrained", f"student.name={student}", f"teacher.name={teacher}"]
    other = ["teacher=pretrained", "teacher.max_steps=0", "loss=universal", "transfer=cached"]
    said = refused(*models, *other, *stage)
    assert "transfer=cached needs a teacher with the student's tokenizer" in said
