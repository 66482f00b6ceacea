"""What a package of the user's own can add: one of each kind, written to a folder of theirs.

Each takes as many files as `docs/how-to/extending.md` says, is chosen by its name, and shows where
those of the package do.
"""

import csv
import json
from importlib import invalidate_caches
from textwrap import dedent

import pytest
from conftest import TINY

FILES = {
    "divergence": {
        "my_package/jeffreys.py": '''
            def jeffreys(student, teacher):
                """(p - q) (log p - log q), summed. Symmetric."""
                return ((teacher.exp() - student.exp()) * (teacher - student)).sum(-1)
            ''',
        "conf/loss/jeffreys.yaml": """
            # The sum of forward and reverse KL.
            _target_: lightning_distill.losses.Objective
            divergence:
              _target_: hydra.utils.get_method
              path: my_package.jeffreys.jeffreys
            """,
    },
    "intermediate loss": {
        "my_package/norms.py": '''
            from lightning_distill.losses.intermediate import (
                IntermediateLoss, layers_of, sum_over_labels)

            class StateNorms(IntermediateLoss):
                """(|h_s| - |h_t|)^2 of the last layers."""

                key = "loss.norms"

                def __init__(self, weight):
                    super().__init__(weight, [])

                def attach(self, student, teacher):
                    for role, model in (("student", student), ("teacher", teacher)):
                        self.record(role, layers_of(model, role, self.key)[-1], "last")

                def forward(self, labels, position_ids=None, attention_mask=None):
                    student, teacher = self.take()
                    gap = student["last"].norm(dim=-1) - teacher["last"].norm(dim=-1)
                    return sum_over_labels(gap.square(), labels, attention_mask)
            ''',
        "conf/loss/norms.yaml": """
            # Forward KL, and the norms of the last hidden states.
            defaults: [forward_kl]
            norms:
              _target_: my_package.norms.StateNorms
              weight: 0.1
            """,
    },
    "source": {
        "my_package/numbers.py": '''
            class Numbers:
                """Documents that count."""

                def __init__(self, documents):
                    self.documents = documents

                def fingerprint(self):
                    return f"numbers 1 {self.documents}"

                def rows(self):
                    for first in range(self.documents):
                        yield " ".join(str(first + step) for step in range(40))
            ''',
        "conf/data/numbers.yaml": """
            # Counting, from different numbers.
            _target_: lightning_distill.data.CausalLM
            source:
              _target_: hydra.utils.get_class
              path: my_package.numbers.Numbers
            sequence_length: 32
            batch_size: 4
            vocab_size: 300
            isolate_documents: false
            documents: 150
            """,
    },
    "transfer": {
        "my_package/pseudo_labels.py": '''
            import torch
            from torch.utils.data import Dataset

            from lightning_distill.constants import IGNORED
            from lightning_distill.transfer.base import Transfer

            class Relabeled(Dataset):
                def __init__(self, examples, labels):
                    self.examples, self.labels = examples, labels

                def __len__(self):
                    return len(self.labels)

                def __getitem__(self, index):
                    return {**self.examples[index], "labels": self.labels[index]}

            class PseudoLabels(Transfer):
                """The teacher's most probable tokens in place of the labels."""

                prepares = "pseudo_labels"
                supervises_by_text = True

                def dry_run_settings(self, batch_size, api_teacher):
                    return {"num_blocks": 2 * batch_size}

                def units_to_prepare(self, data, teacher_data):
                    return self.num_examples(data.transfer_set())

                def made_from(self, data, teacher):
                    blocks = self.num_examples(data.transfer_set())
                    return {"teacher": teacher.hash, "tokens": data.artifact.key,
                            **data.example_settings, "transfer.num_blocks": blocks}

                def prepare(self, data, teacher, workspace):
                    super().prepare(data, teacher, workspace)
                    made_from = self.made_from(data, teacher)

                    @torch.no_grad()
                    def make(target):
                        labels = []
                        for index in range(made_from["transfer.num_blocks"]):
                            example = data.transfer_set()[index]
                            logits = teacher.models[0](example["input_ids"][None]).logits[0]
                            best, known = logits.argmax(-1), example["labels"] != IGNORED
                            labels.append(torch.where(known, best, IGNORED))
                        torch.save(torch.stack(labels), target / "labels.pt")

                    artifact = workspace.store.get(self.prepares, made_from, make)
                    self.labels = torch.load(artifact.folder / "labels.pt")
                    return artifact.seconds

                def dataset(self, data):
                    return Relabeled(data.transfer_set(), self.labels)
            ''',
        "conf/transfer/pseudo_labels.yaml": """
            # The student learns the teacher's most probable tokens.
            _target_: my_package.pseudo_labels.PseudoLabels
            num_blocks: null
            """,
    },
    "task": {
        "my_package/reversed_text.py": '''
            from lightning_distill.data.tasks.causal_lm import CausalLM
            from my_package.counting import Counting

            class ReversedText(CausalLM):
                """Text that is read from its end."""

                metrics = Counting.metrics

                def _split_documents(self):
                    splits = super()._split_documents()
                    return {name: [text[::-1] for text in texts]
                            for name, texts in splits.items()}

                def quality_metric(self):
                    return Counting(self.bytes_per_token("test"))
            ''',
        "conf/data/reversed_text.yaml": """
            # The documents of a file, last letter first.
            defaults: [text]
            _target_: my_package.reversed_text.ReversedText
            """,
    },
    "metric": {
        "my_package/counting.py": '''
            import torch

            from lightning_distill.metrics.declarations import Metric
            from lightning_distill.metrics.quality import Quality

            class Counting(Quality):
                """How many different tokens the model predicts."""

                metrics = (Metric("distinct_tokens", "distinct", "maximize", 0,
                                  "different tokens predicted"),)

                def __init__(self, bytes_per_token):
                    super().__init__(bytes_per_token)
                    self.seen = set()

                def update(self, log_probs, labels):
                    super().update(log_probs, labels)
                    self.seen |= set(log_probs.argmax(-1).tolist())

                def compute(self):
                    return super().compute() | {"distinct_tokens": float(len(self.seen))}
            ''',
    },
    "stage": {
        "my_package/stages.py": """
            from pathlib import Path

            from lightning_distill.stages import Stage

            LIST_RUNS = Stage("my_package.stages.list_runs", "list the finished runs",
                              inspects_only=True)

            def list_runs(settings, job):
                for file in sorted(Path(settings["paths"]["outputs"]).rglob("results.json")):
                    print(f"run {file.parent.name}")
            """,
    },
}
# Python files and YAML files of each, as docs/how-to/extending.md says.
ALLOWED = {
    "divergence": 2,
    "intermediate loss": 2,
    "source": 2,
    "transfer": 2,
    "task": 2,
    "metric": 1,
    "stage": 1,
}


# What `in_process` sets for a small run, without the path of a file.
NUMBERS = [*(setting for setting in TINY if not setting.startswith("data")), "data=numbers"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder of the package and of its config files."""
    folder = tmp_path_factory.mktemp("user")
    for files in FILES.values():
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(dedent(content).lstrip())
    return folder


@pytest.fixture(autouse=True)
def importable(package, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("LIGHTNING_DISTILL_ALLOW", "my_package,my_package.stages")
    invalidate_caches()


@pytest.fixture
def run(package, in_process, tmp_path):
    def run(*overrides, **more):
        outputs = f"paths.outputs={tmp_path / 'outputs'}"
        return in_process(f"--config-dir={package / 'conf'}", outputs, *overrides, **more)

    return run


def jobs_of(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def results_of(folder):
    return [json.loads(file.read_text()) for file in sorted(folder.rglob("results.json"))]


def test_each_takes_as_many_files_as_documented():
    assert {kind: len(files) for kind, files in FILES.items()} == ALLOWED


@pytest.mark.parametrize(
    ("topic", "lines"),
    [
        ("loss", ["jeffreys", "The sum of forward and reverse KL.", "norms"]),
        ("data", ["numbers", "Counting, from different numbers.", "reversed_text"]),
        ("transfer", ["pseudo_labels", "The student learns the teacher's most probable tokens."]),
        ("stage", ["my_package.stages.LIST_RUNS", "list the finished runs"]),
        ("sweep.objectives", ["student.distinct_tokens", "different tokens predicted; maximized"]),
    ],
)
def test_help_lists_it(run, monkeypatch, package, capsys, topic, lines):
    printed = run("--help", topic, tiny=False).stdout
    assert not [line for line in lines if line not in printed]


def test_losses_are_swept_and_reported(run, tmp_path):
    run("-m", "loss=forward_kl,jeffreys,norms", "sweep.name=losses")
    sweep = tmp_path / "outputs" / "sweeps" / "losses"
    assert {job["status"] for job in results_of(sweep)} == {"finished"}
    scores = {job["loss"]: float(job["student.nll"]) for job in jobs_of(sweep)}
    assert len(set(scores.values())) == 3
    assert "jeffreys" in (sweep / "report.html").read_text()
    # Without its weight, the added term is the loss that it was added to.
    run("loss=norms", "loss.norms.weight=0", f"hydra.run.dir={tmp_path / 'plain'}")
    (plain,) = results_of(tmp_path / "plain")
    assert plain["student"]["nll"] == scores["forward_kl"]


def test_an_intermediate_loss_makes_another_run_than_its_baseline(run, tmp_path):
    """With alpha = 0 the added term is all that needs the teacher."""
    run("-m", "loss=norms", "loss.alpha=0", "loss.norms.weight=0,1", "sweep.name=alpha")
    first, second = results_of(tmp_path / "outputs" / "sweeps" / "alpha")
    assert first["key"] != second["key"]
    assert first["student"]["nll"] != second["student"]["nll"]


def test_a_source_is_read(run, tmp_path):
    run(*NUMBERS, f"hydra.run.dir={tmp_path / 'run'}", tiny=False)
    (results,) = results_of(tmp_path / "run")
    assert results["status"] == "finished"


def test_a_transfer_prepares_its_artifact_once_and_its_cost_is_planned(run, tmp_path):
    settings = ("-m", "transfer=pseudo_labels", "loss.alpha=0", "sweep.name=labels", "seed=0,1")
    printed = run("stage=plan", *settings).stdout
    assert "pseudo_labels" in printed
    plans = [json.loads(p.read_text()) for p in tmp_path.rglob("plan.json")]
    assert len(plans) == 2
    for plan in plans:
        (labels,) = [one for one in plan["shared"] if one["what"] == "pseudo_labels"]
        assert labels["seconds"] > 0
        assert labels["bytes"] > 0
        assert not labels["there"]
    run(*settings)
    outputs = tmp_path / "outputs"
    assert len(list(outputs.glob("artifacts/pseudo_labels/*/manifest.json"))) == 1
    jobs = results_of(outputs / "sweeps" / "labels")
    assert [job["status"] for job in jobs] == ["finished"] * 2
    assert jobs[0]["teacher"]
    assert sorted(job["cost"]["transfer_seconds"] > 0 for job in jobs) == [False, True]
    # The text is not what a student without a teacher learns from.
    run("loss.alpha=0", f"hydra.run.dir={tmp_path / 'baseline'}")
    (baseline,) = results_of(tmp_path / "baseline")
    assert baseline["key"] not in {job["key"] for job in jobs}


def test_the_dry_run_of_a_transfer_is_small(run, tmp_path, monkeypatch):
    from my_package.pseudo_labels import PseudoLabels

    prepared = []
    made_from = PseudoLabels.made_from

    def recorded(self, data, teacher):
        settings = made_from(self, data, teacher)
        prepared.append(settings["transfer.num_blocks"])
        return settings

    monkeypatch.setattr(PseudoLabels, "made_from", recorded)
    run("stage=plan", "transfer=pseudo_labels")
    (plan,) = [json.loads(p.read_text()) for p in tmp_path.rglob("plan.json")]
    (labels,) = [one for one in plan["shared"] if one["what"] == "pseudo_labels"]
    assert set(prepared) == {2 * 4}  # twice data.batch_size
    assert labels["count"] > 100


def test_a_task_and_its_metric_show_in_results_and_choose_the_best(run, tmp_path):
    chosen = "sweep.objectives=[student.distinct_tokens]"
    run("-m", "data=reversed_text", "seed=0,1", chosen, "sweep.name=reversed")
    sweep = tmp_path / "outputs" / "sweeps" / "reversed"
    assert all(float(job["student.distinct_tokens"]) >= 1 for job in jobs_of(sweep))
    assert "distinct" in (sweep / "report.html").read_text()
    wrong = run("data=reversed_text", "sweep.objectives=[student.distinct]", expect=2)
    assert "student.distinct_tokens" in wrong.stderr


def test_a_stage_runs(run, tmp_path):
    run(f"hydra.run.dir={tmp_path / 'outputs' / 'one'}")
    assert "run one" in run("stage=my_package.stages.LIST_RUNS").stdout
