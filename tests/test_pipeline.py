"""Real commands, end to end, on two models of a few thousand weights."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from conftest import without_its_end
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_distill.tracking import wandb_run

pytestmark = pytest.mark.slow


def results(folder):
    return {f.parent.name: json.loads(f.read_text()) for f in sorted(folder.rglob("results.json"))}


def without_times(found):
    return {k: v for k, v in found.items() if k != "cost"}


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    """One distilled student, and the folder of all outputs."""
    outputs = tmp_path_factory.mktemp("outputs")
    command("loss.temperature=2", f"paths.outputs={outputs}", "logger=wandb")
    (folder,) = (outputs / "runs" / "distill").iterdir()
    return folder, outputs


def test_a_run_leaves_what_the_design_promises(run):
    folder, _ = run
    (found,) = results(folder).values()
    assert found["status"] == "finished"
    assert found["overrides"][-3] == "loss.temperature=2"
    assert found["teacher"].keys() >= {"parameters", "nll", "perplexity", "bits_per_byte"}
    assert found["student"].keys() >= found["teacher"].keys() | {"teacher_agreement", "teacher_kl"}
    assert found["cost"]["teacher_seconds"] > 0
    assert found["cost"]["student_tokens_per_second"] > 0
    assert found["cost"]["peak_memory_mb"] > 100
    samples = json.loads((folder / "samples.json").read_text())
    assert all(sample.keys() == {"prompt", "student", "teacher"} for sample in samples)
    assert (folder / ".hydra" / "config.yaml").exists()
    assert found["environment"].keys() >= {"machine", "python", "torch", "lightning_distill"}
    assert "tokens: " in found["examples"]


def test_other_tools_load_the_student_and_find_the_reported_nll(run, tmp_path):
    folder, outputs = run
    (tokens,) = (outputs / "artifacts" / "tokens").glob("*/tokens.safetensors")
    script = tmp_path / "elsewhere.py"
    script.write_text(
        f"""
import json, sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(folder / "student")!r}).eval()
tokenizer = AutoTokenizer.from_pretrained({str(folder / "student")!r})
ids = load_file({str(tokens)!r})["test"].long()
total = 0.0
with torch.no_grad():
    for start in range(0, len(ids) - 1, 32):  # data.sequence_length
        window = ids[start : start + 33]
        logits = model(window[None, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
assert tokenizer.decode(ids.tolist()).count(tokenizer.eos_token) > 3
assert "lightning_distill" not in sys.modules and "lightning" not in sys.modules
print(json.dumps(total / (len(ids) - 1)))
"""
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    (found,) = results(folder).values()
    assert json.loads(done.stdout) == pytest.approx(found["student"]["nll"], abs=1e-5)


def test_predictions_are_those_of_transformers(run):
    """The bins give the calibration error, and the tokens' KL is that of the saved models."""
    folder, outputs = run
    (results_of_run,) = results(folder).values()
    found = json.loads((folder / "predictions.json").read_text())
    for role in ("student", "teacher"):
        bins = found["reliability"][role]
        gaps = [one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins]
        error = sum(gaps) / sum(one["count"] for one in bins)
        assert error == pytest.approx(results_of_run[role]["calibration_error"], abs=1e-6)

    (tokens,) = (outputs / "artifacts" / "tokens").glob("*/tokens.safetensors")
    (teacher,) = (outputs / "artifacts" / "teacher").iterdir()
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    window = load_file(tokens)["test"][:33].long()  # of data.sequence_length=32
    log_probs = []
    for place in (folder / "student", teacher):
        model = AutoModelForCausalLM.from_pretrained(place).double().eval()
        with torch.no_grad():
            log_probs.append(model(window[None, :-1]).logits[0].log_softmax(-1))
    student, teacher_log_probs = log_probs
    kl = (teacher_log_probs.exp() * (teacher_log_probs - student)).sum(-1)
    passage = found["differences"]["passages"][0]
    assert passage["kl"] == pytest.approx(kl.tolist(), abs=1e-4)
    assert passage["tokens"] == [tokenizer.decode([token]) for token in window[1:].tolist()]
    largest = found["differences"]["largest"]
    assert [one["kl"] for one in largest] == sorted((one["kl"] for one in largest), reverse=True)
    assert largest[0]["kl"] >= kl.max() - 1e-4
    assert all(len(one["student"]) == len(one["teacher"]) == 3 for one in largest)


def test_the_checkpoint_holds_the_student_alone(in_process, tmp_path):
    in_process(f"paths.outputs={tmp_path}", "checkpoint_every_n_steps=5")
    (file,) = tmp_path.glob("runs/distill/*/checkpoints/last.ckpt")
    weights = torch.load(file, weights_only=True)["state_dict"]
    widths = {p.shape[-1] for p in weights.values()}
    assert all(name.startswith("model.") for name in weights)
    assert 16 in widths  # the student's
    assert 32 not in widths  # the teacher's


def test_the_same_command_gives_the_same_numbers(run, in_process, tmp_path):
    in_process("loss.temperature=2", f"paths.outputs={tmp_path}")
    (again,), (first,) = results(tmp_path).values(), results(run[0]).values()
    assert again["student"] == first["student"]
    assert again["teacher"] == first["teacher"]
    assert again["key"] == first["key"]


def test_evaluating_a_run_again_gives_its_numbers(run, in_process):
    folder, outputs = run
    before = results(folder)
    in_process("stage=evaluate", f"evaluate.run={folder}", f"paths.outputs={outputs}")
    assert results(folder) == before


def test_a_teacher_alone_can_be_trained_and_evaluated_again(run, in_process, tmp_path):
    _, outputs = run
    same = f"paths.outputs={outputs}"
    in_process("stage=teacher", same, f"hydra.run.dir={tmp_path}")
    (found,) = results(tmp_path).values()
    assert found["cost"]["teacher_seconds"] == 0  # the run before trained it
    assert found["student"] is None
    in_process("stage=evaluate", f"evaluate.run={tmp_path}", same)
    assert results(tmp_path) == {tmp_path.name: found}


def test_an_interrupted_run_resumes_and_ends_at_the_same_numbers(run, in_process, tmp_path):
    """Stopped behind its step 8 of 12; then the same command again."""
    _, outputs = run
    same = ("loss.temperature=2", f"paths.outputs={outputs}", f"hydra.run.dir={tmp_path}")
    with without_its_end():
        in_process(*same, "checkpoint_every_n_steps=8")
    (whole,) = results(tmp_path).values()
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    interrupted = {"status": "running", "key": whole["key"]}
    (tmp_path / "results.json").write_text(json.dumps(interrupted))
    said = in_process(*same, "checkpoint_every_n_steps=8").stdout
    assert "resuming from" in said
    (resumed,) = results(tmp_path).values()
    assert resumed["student"] == whole["student"]


def test_a_checkpoint_of_other_settings_is_not_resumed(run, in_process, tmp_path):
    _, outputs = run
    same = (f"paths.outputs={outputs}", f"hydra.run.dir={tmp_path}", "checkpoint_every_n_steps=5")
    in_process("loss.temperature=2", *same)
    interrupted = json.loads((tmp_path / "results.json").read_text()) | {"status": "running"}
    (tmp_path / "results.json").write_text(json.dumps(interrupted))
    said = in_process("loss.temperature=3", *same).stdout
    assert "resuming from" not in said


@pytest.fixture(scope="module")
def sweep(command, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("sweep")
    done = command(
        "-m",
        "student=xs,s",
        "loss.alpha=0,1",
        "loss.temperature=1,2",
        f"paths.outputs={outputs}",
        "sweep.name=all",
        "student.num_attention_heads=2",
    )
    return outputs / "sweeps" / "all", outputs, done.stdout


def test_a_sweep_of_eight_trains_one_teacher_and_ends_in_one_table(sweep):
    folder, outputs, said = sweep
    found = results(folder)
    assert len(found) == 8
    assert all(job["status"] == "finished" for job in found.values())
    trained = [job["cost"]["teacher_seconds"] for job in found.values()]
    assert sum(seconds > 0 for seconds in trained) == 1
    assert len(list((outputs / "artifacts" / "teacher").glob("*/model.safetensors"))) == 1
    assert "report.html" in said


def test_a_baseline_that_came_before_the_teacher_is_compared_with_it_too(sweep):
    folder, _, _ = sweep
    for job in results(folder).values():
        assert job["student"]["teacher_agreement"] is not None
        assert job["teacher"]["nll"] > 0


def test_results_csv_says_what_each_results_json_does(sweep):
    folder, _, _ = sweep
    with (folder / "results.csv").open() as lines:
        rows = {row["job"]: row for row in csv.DictReader(lines)}
    assert len(rows) == 8
    for found in results(folder).values():
        row = next(r for r in rows.values() if r["overrides"] == " ".join(found["overrides"]))
        assert float(row["student.nll"]) == found["student"]["nll"]
        assert float(row["cost.teacher_seconds"]) == found["cost"]["teacher_seconds"]
    baseline = {r["student.parameters"]: r for r in rows.values() if r["loss.alpha"] == "0"}
    for row in rows.values():
        if row["loss.alpha"] == "1":
            plain = float(baseline[row["student.parameters"]]["student.nll"])
            expected = (plain - float(row["student.nll"])) / (plain - float(row["teacher.nll"]))
            assert float(row["gap_closed"]) == pytest.approx(expected)


def test_the_temperature_is_of_no_effect_without_the_teachers_term(sweep):
    folder, _, _ = sweep
    nlls = {" ".join(j["overrides"]): j["student"]["nll"] for j in results(folder).values()}
    compared = 0
    for overrides, nll in nlls.items():
        if "loss.alpha=0" in overrides and "temperature=1" in overrides:
            assert nlls[overrides.replace("temperature=1", "temperature=2")] == nll
            compared += 1
    assert compared == 2


@pytest.mark.long
def test_two_jobs_at_a_time_share_one_teacher_from_an_empty_start(command, tmp_path, sweep):
    command(
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "loss.temperature=1,2",
        f"paths.outputs={tmp_path}",
        "sweep.name=two",
    )
    found = results(tmp_path / "sweeps" / "two")
    assert [job["status"] for job in found.values()] == ["finished"] * 2
    assert sorted(job["cost"]["teacher_seconds"] > 0 for job in found.values()) == [False, True]
    assert len(list((tmp_path / "artifacts" / "teacher").glob("*/model.safetensors"))) == 1


def test_a_job_that_fails_leaves_the_others_and_the_sweep_says_why(in_process, tmp_path):
    done = in_process(
        "-m", "loss.alpha=0,-1", f"paths.outputs={tmp_path}", "sweep.name=one", expect=1
    )
    found = results(tmp_path / "sweeps" / "one").values()
    status = {"loss.alpha=-1" in job["overrides"]: job["status"] for job in found}
    assert status == {True: "failed", False: "finished"}
    assert "loss.alpha=-1 must be a number from 0" in done.stdout
    assert (tmp_path / "sweeps" / "one" / "report.html").exists()


def test_a_pretrained_teacher_teaches_as_it_is(run, in_process, tmp_path):
    folder, outputs = run
    (teacher,) = (outputs / "artifacts" / "teacher").glob("*/model.safetensors")
    in_process(
        "teacher=pretrained",
        f"teacher.name={teacher.parent}",
        f"paths.outputs={tmp_path}",
        "~teacher.hidden_size",
        tiny=False,
        expect=2,
    )
    settings = ["student=xs", "student.hidden_size=16", "student.max_steps=5", "trainer=cpu"]
    source = [o for o in results(folder)[folder.name]["overrides"] if o.startswith("data")]
    in_process(
        "teacher=pretrained",
        f"teacher.name={teacher.parent}",
        f"paths.outputs={tmp_path}",
        *settings,
        *source,
        "logger=none",
        tiny=False,
    )
    (found,) = results(tmp_path).values()
    assert found["teacher"]["nll"] == pytest.approx(
        results(folder)[folder.name]["teacher"]["nll"], abs=1e-6
    )
    assert found["cost"]["teacher_seconds"] == 0


def test_the_tracker_was_offline_and_holds_config_curves_and_results(run, tracked):
    folder, _ = run
    teacher, student = tracked(folder)
    assert (student.run.run_group, student.run.job_type) == ("distill", "student")
    assert student.config["loss"]["temperature"] == 2
    for name in ("loss", "hard", "soft", "kl", "gradient_norm", "learning_rate"):
        values = student.history[f"train/{name}"]
        assert len(values) == 3  # every 4 of 12 steps
        assert all(value >= 0 for value in values)
    assert len(student.history["validation/nll"]) == 4
    (found,) = results(folder).values()
    assert student.summary["student"]["nll"] == pytest.approx(found["student"]["nll"])
    assert teacher.run.job_type == "teacher"


def test_a_tracker_that_refuses_leaves_the_run_offline(in_process, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "online")  # so that what the run sets is unset again
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT", 3)
    done = in_process(f"paths.outputs={tmp_path}", "loss.alpha=0", "logger=wandb")
    assert "logged offline" in done.stdout
    assert list(tmp_path.glob("runs/distill/*/wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("logger", ["none", "tensorboard"])
def test_the_other_loggers_work(in_process, tmp_path, logger):
    in_process(f"paths.outputs={tmp_path}", "loss.alpha=0", f"logger={logger}")
    events = list(tmp_path.glob("runs/distill/*/tensorboard/events*"))
    assert len(events) == (1 if logger == "tensorboard" else 0)
    assert bool(list(tmp_path.glob("runs/distill/*/metrics.csv"))) == (logger != "none")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_numbers_of_the_processor(run, command, tmp_path):
    folder, _ = run
    same = ("loss.temperature=2", f"paths.outputs={tmp_path}")
    command(*same, "trainer=gpu", "trainer.precision=32-true")
    (gpu,), (cpu,) = results(tmp_path).values(), results(folder).values()
    assert gpu["student"]["nll"] == pytest.approx(cpu["student"]["nll"], rel=1e-3)
    assert gpu["cost"]["peak_memory_mb"] < cpu["cost"]["peak_memory_mb"]
