"""The command line: what it refuses that takes more than a line to type; the rest is in
bad_input/commands.yaml."""

import logging
import subprocess
import sys

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_distill.cli import app


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """Runs the app in this process. Returns its exit code and what it said on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", ["lightning-distill", *overrides])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        capsys.readouterr()  # what the test has printed itself
        try:
            app.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    yield run
    # Hydra's handlers hold this test's stdout, which is closed when it ends.
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.StreamHandler):
            logging.getLogger().removeHandler(handler)


PRETRAINED = ["teacher=pretrained", "teacher.name=x"]
LORA = ["student=pretrained", "student.name=x", "student.lora.rank=4"]


@pytest.mark.parametrize("folder", ["outputs/mine", "mine"])
def test_what_is_refused_leaves_what_its_folder_held(main, tmp_path, folder):
    refused = ["loss.temperature=0", "logger=none", f"hydra.run.dir={folder}"]
    assert main(*refused)[0] == 2
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "notes.txt").write_text("mine")
    assert main(*refused)[0] == 2
    assert (tmp_path / folder / "notes.txt").read_text() == "mine"
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("package", "extra", "overrides"),
    [
        ("torchao", "quantization", [*PRETRAINED, "teacher.quantization=int8"]),
        ("peft", "lora", LORA),
    ],
)
def test_a_missing_extra_is_named(main, monkeypatch, package, extra, overrides):
    monkeypatch.setitem(sys.modules, package, None)
    code, said = main(*overrides, "logger=none")
    assert code == 2
    assert f"needs {package}: pip install 'lightning_distill[{extra}]'" in said


def test_all_settings_can_be_shown_with_what_they_come_to(main):
    assert main("--cfg=job", "--resolve") == (0, "")


def test_under_a_debugger_a_mistake_is_told_too(main, monkeypatch):
    """OmegaConf's errors then name a cause, which is themselves."""
    monkeypatch.setenv("OC_CAUSE", "1")
    code, said = main("teacher.members=[{seed: 0}, {sed: 1}]", "logger=none")
    assert code == 2
    assert "There is no setting teacher.sed" in said


def test_what_a_pretrained_model_has_not_is_refused_in_a_line(main, tmp_path, make_data, text_file):
    folder = tmp_path / "model"
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1))
    model.save_pretrained(folder)
    make_data().tokenizer.save_pretrained(folder)
    same = ["data=text", f"data.path={text_file}", "data.sequence_length=32", "logger=none"]
    quick = "attn_implementation=quick", 'attn_implementation="quick"` is not supported'
    for role, setting, message in (
        ("teacher", *quick),
        ("student", *quick),
        ("student", "attn_implementation=a/b", "is only run with trust_remote_code=true"),
        ("student", "dtype=float33", "dtype=float33"),
        ("student", "lora={rank: 2, target_modules: [q_proj]}", "Did you mean c_proj? There is"),
    ):
        code, said = main(f"{role}=pretrained", f"{role}.name={folder}", f"{role}.{setting}", *same)
        assert code == 2
        assert message in said
        assert len(said.strip().splitlines()) == 1


def test_all_numbers_out_of_range_are_told_at_once(main):
    _, said = main("data.batch_size=0", "student.max_steps=-1", "optimizer.lr=-1")
    assert all(key in said for key in ("data.batch_size", "student.max_steps", "optimizer.lr"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.rerun=bogus", "sweep.rerun=bogus does not exist. There is: all, failed, none."),
        ("sweep.stop_after_failures=-1", "sweep.stop_after_failures=-1 must be a whole number"),
        ("sweep.jobs_per_gpu=0", "sweep.jobs_per_gpu=0 must be a whole number of at least 1"),
        ("sweep.objectives=[student.nl]", "Did you mean student.nll?"),
        ("sweep.name=", "sweep.name= must be the name of a folder below outputs/sweeps"),
        ("sweep.name=../up", "sweep.name=../up must be the name of a folder"),
        ("sweep=pareto hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0 must be a whole"),
        ("hydra.launcher.n_job=2", "`lightning-distill --cfg hydra` shows all"),
    ],
)
def test_a_mistake_about_the_whole_sweep_begins_no_job(main, tmp_path, override, message):
    if "pareto" in override:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    swept = [] if "pareto" in override else ["loss.alpha=0,1"]
    code, said = main("-m", *override.split(), "logger=none", *swept)
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_of_mistakes_exits_with_2_and_names_each_job(main, capsys):
    code, _ = main("-m", "loss.temperature=0,-1", "logger=none")
    assert code == 2


def test_help_is_for_a_person_and_imports_no_torch():
    run = "try: app.main()\nfinally: print('torch' in sys.modules)"
    probe = f"import sys\nimport lightning_distill.cli.app as app\n{run}"
    done = subprocess.run(
        [sys.executable, "-c", probe, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert done.stdout.count("lightning-distill ") >= 3
    for group in ("data:", "teacher:", "student:", "loss:", "trainer:", "logger:"):
        assert group in done.stdout
