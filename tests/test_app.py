"""The command line: what it refuses, how, and that nothing is written when it does."""

import logging
import subprocess
import sys

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_distill import app


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """Runs the app in this process. Returns its exit code and what it said on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", ["lightning-distill", *overrides])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
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


NAMES = [
    (["student=smal"], "student=smal does not exist. Did you mean s"),
    (["student=xxl"], "There is: convnet, l, m, pretrained, s, xs."),
    (["loss=forwrd_kl"], "Did you mean forward_kl?"),
    (["data=python_doc"], "Did you mean python_docs?"),
    (["experiment=demos"], "Did you mean demo?"),
    (["studnt=s"], "There is no setting studnt. Did you mean student?"),
    (["loss.temprature=2"], "Did you mean loss.temperature?"),
    (["student.hiden_size=64"], "Did you mean student.hidden_size?"),
    (["teacher.optimizer.lrr=1"], "Did you mean teacher.optimizer.lr?"),
    (["teacher=pretrained", "teacher.nam=x"], "Did you mean teacher.name?"),
    (["stage=distil"], "Did you mean distill?"),
    (["stage=distil", "hydra.mode=MULTIRUN"], "Did you mean distill?"),
    (["-m", "student=xs,smal"], "student=smal does not exist"),
    (["-m", "loss.temprature=1,2"], "Did you mean loss.temperature?"),
    (["student="], "student"),
    (["=3"], "override"),
]
SERVED = ["teacher=served", "teacher.name=x", "transfer=cached"]
AT = [*SERVED, "transfer.stored=topk", "teacher.url=http://localhost:9/v1"]
PRETRAINED = ["teacher=pretrained", "teacher.name=x"]
LORA = ["student=pretrained", "student.name=x", "student.lora.rank=4"]
VALUES = [
    (["loss.temperature=0"], "loss.temperature=0 must be a number above 0"),
    (["loss.temperature=hot"], "loss.temperature=hot must be a number"),
    (["loss.alpha=-1"], "loss.alpha=-1 must be a number from 0"),
    (["loss.hard_target=label"], "Did you mean labels?"),
    (["+loss.beta=1"], "loss.beta is not a setting of this loss"),
    (["loss=jensen_shannon", "loss.beta=1.5"], "loss.beta=1.5 must be a number from 0 to 1"),
    (["loss=skewed_forward_kl", "loss.skew=1"], "loss.skew=1 must be a number from 0 to below 1"),
    (["loss=forward_kl", "loss.fused=perhaps"], "loss.fused=perhaps must be true or false"),
    (["loss.label_smoothing=1"], "loss.label_smoothing=1 must be a number from 0 to below 1"),
    (["loss.label_smoothing=0.1", "loss.hard_target=teacher"], "loss.label_smoothing is of labels"),
    (["sweep.rerun=some"], "sweep.rerun=some does not exist"),
    (["sweep.stop_after_failures=0"], "sweep.stop_after_failures=0 must be a whole number"),
    (["loss=universal", "loss.hard_target=teacher"], "needs a loss for one shared vocabulary"),
    (["loss.alpha={shape: linear, start: 0}"], "is a schedule without an end"),
    (["loss.alpha={shape: steep, end: 1}"], "shape must be one of linear, cosine, warmup"),
    (["loss.temperature={end: 1}"], "loss.temperature={shape: linear, start: 0, end: 1} must be"),
    (["loss.temperature={start: 4, stop: 1}"], "a schedule has shape, start, end, steps, no stop"),
    (["loss.hidden.weight=-1"], "loss.hidden.weight=-1 must be a number from 0"),
    (["loss.hidden.distance=far"], "loss.hidden.distance=far must be one of mse, cosine"),
    (["loss.hidden.weigth=1"], "Did you mean loss.hidden.weight?"),
    (["loss.relations.pairs=[ab]"], "loss.relations.pairs="),
    (["teacher.weights=[1,2]"], "teacher.weights=[1, 2] gives 2 for 1 teacher"),
    (["teacher.members=[{seed: 0}, {seed: 1}]", "teacher.weights=[1]"], "gives 1 for 2 teachers"),
    (["teacher.members=[{seed: 0}, {seed: 1}]", "teacher.weights=[1,0]"], "numbers above 0"),
    (["teacher.members=[{seed: 0}, {sed: 1}]"], "There is no setting"),
    (["teacher.members=[{seed: 0}, {seed: -1}]"], "teacher.seed=-1"),
    (["teacher.members=[a, b]"], "must list what each teacher has of its own"),
    (["student.max_steps=many"], "student.max_steps=many must be a whole number of at least 1"),
    (["student.max_steps=0"], "student.max_steps=0 must be a whole number of at least 1"),
    (["teacher.max_steps=-1"], "teacher.max_steps=-1"),
    (["optimizer.lr=0"], "optimizer.lr=0 must be a number above 0"),
    (["seed=1.5"], "seed=1.5 must be a whole number"),
    (["data.batch_size=0", "data.sequence_length=1"], "data.batch_size=0"),
    (["student.hidden_size=63"], "must be a multiple of 2 × student.num_attention_heads"),
    (["student.initialize=teacher_layer"], "Did you mean teacher_layers?"),
    (
        ["student=pretrained", "student.name=x", "student.initialize=teacher_layers"],
        "student.initialize=teacher_layers takes the teacher's weights",
    ),
    (["student.initialize=teacher_layers", "student.layers=frist"], "Did you mean first?"),
    ([*PRETRAINED, "teacher.quantization=int3"], "teacher.quantization=int3 does not exist. Did"),
    ([*PRETRAINED, "teacher.quantization=int8", "teacher.max_steps=5"], "is for a frozen teacher"),
    (
        [*PRETRAINED, "teacher.quantization=int4", "student.initialize=teacher_layers"],
        "leaves no weights for student.initialize=teacher_layers",
    ),
    ([*LORA[:2], "student.quantization=int8"], "Did you mean teacher.quantization?"),
    ([*LORA[:2], "+student.quantization=int8"], "only those of a frozen teacher can be quantized"),
    (["teacher=s", "teacher.quantization=int8"], "is a setting of teacher=pretrained"),
    ([*LORA, "student.lora.rank=-1"], "student.lora.rank=-1 must be a whole number of at least 0"),
    ([*LORA, "student.lora.rank=1.5"], "student.lora.rank=1.5 must be a whole number"),
    ([*LORA, "student.lora.alpha=0"], "student.lora.alpha=0 must be a number above 0"),
    ([*LORA, "student.lora.dropout=1"], "student.lora.dropout=1 must be a number from 0 to below"),
    ([*LORA, "student.lora.target_modules=q_proj"], "target_modules=q_proj must be a list of"),
    (["student.lora.rank=4"], "set student=pretrained or student.initialize=teacher_layers"),
    (["teacher.lora.rank=4"], "set teacher=pretrained, or teacher.lora.rank=null"),
    ([*PRETRAINED, "teacher.lora.rank=4"], "teacher.max_steps=0 has nothing to train"),
    (["transfer.num_blocks=0"], "transfer.num_blocks=0"),
    (["transfer=sequence", "transfer.mix=1"], "transfer.mix=1 must be a number from 0 to below 1"),
    (["transfer=sequence", "transfer.top_p=0"], "transfer.top_p=0 must be a number from"),
    (["transfer=sequence", "transfer.temperature=-1"], "transfer.temperature=-1 must be a number"),
    (["transfer=sequence", "transfer.length=16"], "must be more than transfer.prompt_length=16"),
    (["transfer=sequence", "transfer.num_sequences=0"], "transfer.num_sequences=0 must be a whole"),
    (["transfer=sequence", "transfer.prompt_length=128"], "less than data.sequence_length=128"),
    (["transfer=on_policy", "transfer.student_fraction=2"], "transfer.student_fraction=2 must be"),
    (
        ["transfer=on_policy", "transfer.prompt_length=0"],
        "transfer.prompt_length=0 must be a whole",
    ),
    (["transfer=onpolicy"], "Did you mean on_policy?"),
    (["transfer=online", "transfer.k=8"], "transfer.k is a setting of transfer=cached"),
    (
        ["transfer=cached", "transfer.stored=hybird"],
        "stored=hybird does not exist. Did you mean hybrid?",
    ),
    (["transfer=cached", "transfer.bits=12"], "transfer.bits=12 must be 8 or 16"),
    (["transfer=cached", "transfer.k=0"], "transfer.k=0 must be a whole number of at least 1"),
    (["transfer=cached", "transfer.temperatures=2"], "temperatures=2 must be a list, as in [1, 2]"),
    (["transfer=cached", "transfer.temperatures=null"], "temperatures=None must be a list"),
    (["transfer=cached", "transfer.temperatures=[0]"], "transfer.temperatures=0 must be a number"),
    (["transfer=cached", "transfer.cache=/nowhere"], "/nowhere is not the folder of a finished"),
    (["trainer.precision=half"], "trainer: Precision 'half' is invalid"),
    (["trainer.accelerator=abacus"], "trainer: "),
    (["paths.outputs=/dev/null/x"], "Not a directory: /dev/null/x"),
    (["data.isolate_documents=maybe"], "data.isolate_documents=maybe must be true or false"),
    (["optimizer.weight_decay=much"], "optimizer.weight_decay=much must be a number"),
    (["data=text"], "data.path is not set"),
    (["data=text", "data.path=/no/such/file.txt"], "data.path=/no/such/file.txt does not exist."),
    (["data=huggingface"], "data.name is not set"),
    (["data=huggingface", "data.name=./nowhere"], "data.name=./nowhere"),
    (["teacher=pretrained"], "teacher=pretrained needs teacher.name="),
    (["teacher=pretrained", "teacher.name=/no/model"], "name=/no/model: there is no such folder."),
    ([*SERVED, "teacher.url=localhost:8000"], "teacher.url=localhost:8000 must be an address"),
    ([*SERVED, "teacher.url=file:///etc/passwd"], "must be an address such as http://localhost"),
    ([*SERVED, "teacher.url=http://h:port/v1"], "must be an address such as http://localhost"),
    ([*SERVED, "teacher.url=http://h/v1/completions"], "must end before /completions"),
    ([*SERVED, "teacher.url=http://me:secret@h/v1"], "teacher.url holds a user or a password"),
    ([*AT, "teacher.key_variable=sk-1"], "must be the name of an environment variable"),
    ([*AT, "teacher.timeout=0"], "teacher.timeout=0 must be a number above 0"),
    ([*AT, "teacher.retries=-1"], "teacher.retries=-1 must be a whole number of at least 0"),
    ([*AT, "teacher.connections=0"], "teacher.connections=0 must be a whole number"),
    ([*AT, "teacher.max_steps=5"], "teacher.max_steps=5 with teacher=served must be 0"),
    ([*AT, "teacher.members=[{name: a}, {name: b}]"], "one server is one teacher"),
    ([*AT, "stage=teacher"], "set stage=transfer"),
    ([*AT, "transfer.stored=hybrid"], "set transfer.stored=topk"),
    ([*AT[:2], AT[-1]], "set transfer=cached transfer.stored=topk"),
    ([*AT[:2], AT[-1], "transfer=sequence"], "set transfer=cached transfer.stored=topk"),
    ([*AT[:2], AT[-1], "transfer=on_policy"], "set transfer=cached transfer.stored=topk"),
    ([*AT, "student.initialize=teacher_layers"], "set student.initialize=random"),
    ([*AT, "loss.hidden.weight=1"], "loss.hidden.weight=1 with teacher=served"),
    ([*AT, "loss.relations.weight=1"], "loss.relations.weight=1 with teacher=served"),
    ([*AT, "loss=logit_mse"], "set loss=forward_kl"),
    ([*AT, "loss=universal"], "set loss=forward_kl"),
    ([*AT, "teacher.tokenizer=/no/folder"], "Set teacher.tokenizer to a local folder"),
    ([*AT[:3], "transfer.stored=topk"], "teacher.url is not set"),
    (["teacher=s", "teacher.url=http://h/v1"], "teacher.url is a setting of teacher=served"),
    (["stage=evaluate"], "evaluate.run=<the folder of a run or a sweep>"),
    (["stage=evaluate", "evaluate.run=nowhere"], "is not the folder of a run"),
    (["stage=export"], "export.run=<the folder of a finished run>"),
    (["stage=export", "export.run=nowhere"], "export.run=nowhere is not the folder of a run"),
    (["stage=export", "export.private=maybe"], "export.private=maybe must be true or false"),
    (["stage=report"], "report.sweep=<the folder of a sweep>"),
    (["stage=report", "report.sweep="], "report.sweep=<the folder of a sweep>"),
    (["stage=report", "report.sweep=nowhere"], "holds no job"),
    (["stage=report", "report.sweep=3"], "report.sweep=3 is no folder"),
]


@pytest.mark.parametrize(("overrides", "message"), NAMES + VALUES, ids=lambda x: str(x)[:50])
def test_a_mistake_ends_with_code_2_and_a_line_that_helps(main, overrides, message):
    code, said = main(*overrides, *(["logger=none"] if overrides[0] != "=3" else []))
    assert code == 2
    assert message in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("content", ["", "too short"])
def test_a_text_too_small_is_refused_in_a_line(main, tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    code, said = main("data=text", "data.path=a.txt", "logger=none")
    assert code == 2
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2


def test_a_teachers_folder_without_weights_is_refused_in_a_line(main, tmp_path, make_data):
    GPT2Config(vocab_size=300).save_pretrained(tmp_path / "teacher")
    make_data().tokenizer.save_pretrained(tmp_path / "teacher")
    code, said = main("teacher=pretrained", f"teacher.name={tmp_path / 'teacher'}", "logger=none")
    assert code == 2
    assert "it holds no weights (model.safetensors)" in said
    assert len(said.strip().splitlines()) <= 2


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
    _, said = main("data.batch_size=0", "student.max_steps=0", "optimizer.lr=-1")
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
    probe = f"import sys\nimport lightning_distill.app as app\n{run}"
    done = subprocess.run(
        [sys.executable, "-c", probe, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert done.stdout.count("lightning-distill ") >= 3
    for group in ("data:", "teacher:", "student:", "loss:", "trainer:", "logger:"):
        assert group in done.stdout
