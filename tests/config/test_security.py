"""Nothing is let in: files of a stranger, each of which would leave a mark if it were believed."""

import base64
import io
import json
import os
import pickle
import shutil
import threading
from contextlib import redirect_stdout
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_job
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from lightning_distill.config import allowlist, untrusted
from lightning_distill.config.catalog import CONF
from lightning_distill.errors import ConfigError
from lightning_distill.report.summarize import summarize

ALLOW = "LIGHTNING_DISTILL_ALLOW"
# That Hydra refuses some functions by itself is no help here.
CALL = {"_target_": "os.makedirs", "name": "mark"}


class Their:
    """Leaves the mark when its pickle is read."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.makedirs, (self.mark,)


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.setenv(ALLOW, "")


@pytest.fixture
def mark(tmp_path):
    """Is there once somebody has called what `call` says."""
    return tmp_path / "mark"


@pytest.fixture
def call(mark):
    return {**CALL, "name": str(mark)}


@pytest.fixture
def stranger(tmp_path, in_process):
    """Runs the command with an experiment that somebody else has written."""

    def run(settings, *overrides, expect=2):
        folder = tmp_path / "theirs" / "experiment"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "their.yaml").write_text("# @package _global_\n" + yaml.safe_dump(settings))
        own = (f"--config-dir={folder.parent}", "experiment=their")
        return in_process(*own, f"paths.outputs={tmp_path / 'outputs'}", *overrides, expect=expect)

    return run


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(
    ("key", "flags"),
    [
        ("hydra.callbacks.their", ()),
        ("hydra.callbacks.their", ("-m",)),
        ("hydra.sweeper.params.their", ("-m",)),
        ("optimizer", ()),
    ],
)
def test_a_file_calls_nothing_but_what_is_listed(stranger, call, mark, tmp_path, key, flags):
    said = stranger(nested(key, call), *flags)
    assert not mark.exists()
    assert not (tmp_path / "outputs").exists()
    (line,) = said.stderr.strip().splitlines()
    assert f"{key}._target_=os.makedirs" in line
    assert f"{ALLOW}=os.makedirs" in line


def refused(settings):
    """What is said of a composed configuration."""
    with pytest.raises(ConfigError) as error:
        untrusted.check(settings)
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"logger": {"their": CALL}}, "logger.their."),
        ({"teacher": {"optimizer": CALL}}, "teacher.optimizer."),
        ({"teacher": {"members": [{"schedule": CALL}]}}, "teacher.members[0].schedule."),
        ({"trainer": {"callbacks": [CALL]}}, "trainer.callbacks[0]."),
        ({"trainer": {"plugins": {"_args_": [CALL]}}}, "trainer.plugins._args_[0]."),
        ({"hydra": {"launcher": {"one": {"two": CALL}}}}, "hydra.launcher.one.two."),
        (CALL, ""),
    ],
)
def test_all_places_are_looked_into(settings, key):
    assert refused(settings).startswith(f"{key}_target_=os.makedirs: settings may not call this")


@pytest.mark.parametrize("lookup", ["get_method", "get_class", "get_object", "get_static_method"])
@pytest.mark.parametrize("given", [{"path": "os.makedirs"}, {"_args_": ["os.makedirs"]}])
def test_a_file_looks_nothing_up_but_what_is_listed(lookup, given):
    divergence = {"_target_": f"hydra.utils.{lookup}", **given}
    said = refused({"loss": {"divergence": divergence}})
    assert said.startswith("loss.divergence.path=os.makedirs: settings may not call this")


@pytest.mark.parametrize(
    "name",
    [
        "torch.optim.adam.torch.load",
        "torch.optim.adam.torch.hub.load",
        "lightning_distill.data.loaders.torch.load",
        "lightning.pytorch.loggers.csv_logs.os.makedirs",
        "lightning.pytorch.plugins.TorchCheckpointIO.load_checkpoint",
        "lightning.pytorch.strategies.DDPStrategy.load_checkpoint",
        "lightning_distill.losses.Objective.__init__",
        "transformers.get_cosine_schedule_with_warmup.__globals__",
        "torch.optim.adamw",
        "torch.optim.__loader__",
        "lightning_distill.models.pretrained.load_tokenizer",
        "lightning_distill.cli.app.os.makedirs",
        "lightning_distill.storage.artifacts.write_atomic",
        "hydra.utils.instantiate",
        "torch.load",
        "wandb.init.__globals__",
        "lightning.Trainer.fit",
    ],
)
def test_what_is_listed_leads_to_nothing_else(name):
    with pytest.raises(ConfigError, match="settings may not call this"):
        allowlist.locate(name)


def test_another_thing_under_a_listed_name_is_refused_before_anything_is_trained(
    stranger, tmp_path
):
    said = stranger({"schedule": {"_target_": "torch.optim.adam.torch.load"}})
    assert "torch.optim.adam.torch.load is torch.serialization.load" in said.stderr
    assert not (tmp_path / "outputs" / "artifacts").exists()


@pytest.mark.parametrize(
    "theirs",
    [
        {"_target_": "${words}", "name": "${mark}"},
        "${oc.create:{_target_:os.makedirs,name:${mark}}}",
        "${oc.decode:'{_target_:os.makedirs,name:${mark}}'}",
    ],
)
@pytest.mark.parametrize("key", ["hydra.callbacks.their", "trainer.callbacks"])
def test_an_interpolation_calls_nothing_else_either(stranger, mark, theirs, key):
    value = [theirs] if key == "trainer.callbacks" else theirs
    words = {"words": "os.makedirs", "mark": str(mark)}
    said = stranger(nested(key, value) | words, "stage=teacher", "teacher.max_steps=1")
    assert "os.makedirs: settings may not call this" in said.stderr
    assert not mark.exists()


@pytest.mark.parametrize(
    "theirs",
    [
        {"handlers": {"console": {"class": "logging.handlers.HTTPHandler"}}},
        {"handlers": {"console": {"()": "os.makedirs", "name": "mark"}}},
        {"formatters": {"screen": {"()": "os.getcwd"}}},
        {"handlers": {"console": {"class": "${words}"}}},
        {"handlers": {"console": {"stream": "ext://antigravity.webbrowser"}}},
        {"handlers": {"file": {"filename": "${words}"}}},
        {"handlers": "${words}"},
    ],
)
@pytest.mark.parametrize("log", ["job_logging", "hydra_logging"])
def test_a_log_is_made_of_nothing_but_files_and_the_screen(theirs, log):
    said = refused({"hydra": {log: theirs}})
    assert said.startswith(f"hydra.{log}.{next(iter(theirs))}")
    assert "may not be used by a log" in said


def test_hydras_own_logs_are_let_through(in_process):
    for name in ("default", "disabled", "none"):
        in_process(f"hydra/job_logging={name}", f"hydra/hydra_logging={name}", "--cfg=job")
    in_process("hydra/job_logging=stdout", "--cfg=job")


@pytest.mark.parametrize("name", ["PYTHONPATH", "LD_PRELOAD", ALLOW, "HF_ENDPOINT"])
def test_a_file_sets_no_environment_variable_that_leads_elsewhere(name):
    said = refused({"hydra": {"job": {"env_set": {name: "theirs"}}}})
    assert f"hydra.job.env_set.{name} may not be set here" in said


def test_what_a_file_may_not_set_cannot_be_an_interpolation():
    theirs = dict.fromkeys(("env_set", "name"), "${theirs}")
    assert "hydra.job.env_set must be written out" in refused({"hydra": {"job": theirs}})
    assert "hydra.job must be written out" in refused({"hydra": {"job": "${theirs}"}})
    assert "hydra must be written out" in refused({"hydra": "${theirs}"})
    assert "evaluate.task_path runs code" in refused({"evaluate": "${theirs}"})


def test_a_variable_that_leads_nowhere_else_may_be_set(in_process):
    in_process("+hydra.job.env_set.OMP_NUM_THREADS=1", "--cfg=job")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("export.converter", "theirs.py"),
        ("evaluate.task_path", "theirs"),
        ("hydra.launcher.setup", ["touch mark"]),
        ("hydra.launcher.setup", "${theirs}"),
    ],
)
def test_what_has_other_code_run_is_for_the_command_line(key, value):
    assert f"{key} runs code that is not ours; give it on the" in refused(nested(key, value))


def test_what_is_typed_is_the_users_own_word(in_process, tmp_path):
    in_process("--cfg=job", f"evaluate.task_path={tmp_path}", "export.converter=mine.py")
    setup = ("hydra/launcher=submitit_local", "hydra.launcher.setup=[module load cuda]")
    in_process("--cfg=job", *setup)


@pytest.mark.parametrize("setting", ["evaluate.run", "export.run", "chat.run"])
def test_the_settings_of_a_run_are_read_as_carefully(in_process, call, mark, tmp_path, setting):
    run = tmp_path / "run"
    write_job(run, [], {"student": {"max_steps": 1}}, 1.0)
    file = run / ".hydra" / "config.yaml"
    noted = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(noted | {"data": call}))
    stage = setting.split(".")[0]
    outputs = f"paths.outputs={tmp_path / 'outputs'}"
    said = in_process(f"stage={stage}", f"{setting}={run}", outputs, expect=2)
    assert f"{setting}={run}: data._target_=os.makedirs" in said.stderr
    assert not mark.exists()


class Mine(Callback):
    """What a user adds of their own."""

    def on_fit_start(self, *_):
        Path(os.environ["MINE"]).mkdir()


def test_the_environment_allows_more(in_process, monkeypatch, mark, tmp_path):
    monkeypatch.setenv("MINE", str(mark))
    own = (f"+trainer.callbacks=[{{_target_: {__name__}.Mine}}]", "stage=teacher")
    few = ("teacher.max_steps=1", f"paths.outputs={tmp_path / 'outputs'}")
    said = in_process(*own, *few, expect=2)
    assert f"trainer.callbacks[0]._target_={__name__}.Mine" in said.stderr
    monkeypatch.setenv(ALLOW, f"other, {__name__}")
    in_process(*own, *few)
    assert mark.exists()


def test_a_package_that_is_allowed_allows_no_other(monkeypatch):
    monkeypatch.setenv(ALLOW, f"{__name__},js")
    assert allowlist.locate(f"{__name__}.Mine.on_fit_start")
    for name in (f"{__name__}.os.makedirs", f"{__name__}s.Mine", "json.loads"):
        with pytest.raises(ConfigError, match="settings may not call this"):
            allowlist.locate(name)


def test_all_that_our_own_settings_call_is_listed():
    files = sorted(CONF.rglob("*.yaml"))
    assert len(files) > 80
    for file in files:
        settings = OmegaConf.load(file)
        allowlist.check_targets(OmegaConf.to_container(settings), f"{file}: ")
        allowlist.check_imports(OmegaConf.to_container(settings))


def test_hydras_pickles_of_settings_are_not_read(in_process, tmp_path, mark):
    pickled = tmp_path / "config.pickle"
    pickled.write_bytes(pickle.dumps(Their(mark)))
    for flag in ("--experimental-rerun", "--exp"):
        said = in_process(f"{flag}={pickled}", tiny=False, expect=2)
        assert "reads a pickle" in said.stderr
    assert not mark.exists()


THEIRS = "</script></td>'\"><i-planted onx=1>&lt;"


class Tags(HTMLParser):
    """What a browser would make elements of, and the text that it would show."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [tag, *(name for name, _ in attrs)]

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_in_a_report_all_that_a_job_says_is_text(tmp_path, status):
    """Its names and values, wherever a file of it has words."""
    scores = {"tasks": {THEIRS: {f"{THEIRS},none": 0.5, "acc": 0.5}}, THEIRS: 1.0}
    for number in (1, 2):
        own = f"{THEIRS}{number}"
        results = {"status": status, "error": own, "key": own, "started": own}
        settings = {
            "data": {"path": own, THEIRS: own},
            "student": {"initialize": own, "hidden_size": own, THEIRS: number},
            "optimizer": {"_target_": own, THEIRS: own},
            "trainer": {"precision": own},
            "transfer": {"_target_": own, "stored": own},
        }
        overrides = [f"data.path={own}", f"{THEIRS}={number}", f"loss.alpha={number}"]
        folder = tmp_path / f"job {number}"
        write_job(folder, overrides, settings, 4.0 + number, sample=own, **results)
        known = json.loads((folder / "results.json").read_text())
        if status == "finished":
            for role in ("student", "teacher"):
                known[role] |= scores
            if number == 2:
                known["same_as"] = own
        (folder / "results.json").write_text(json.dumps(known))
        (folder / "samples.json").write_text(json.dumps([{"prompt": own, "student": own}]))
        curves = f"epoch,step,train/loss,{THEIRS}\n0,1,2.0,3.0\n0,2,2.0,{THEIRS}\n"
        (folder / "metrics.csv").write_text(curves)
    command = {"hydra": {"overrides": {"task": [f"name={THEIRS}"]}, "sweeper": {"_target_": "x"}}}
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump(command))
    with redirect_stdout(io.StringIO()):
        summarize(tmp_path)
    page = Tags((tmp_path / "report.html").read_text())
    assert "i-planted" not in page.found
    assert "onx" not in page.found
    assert "".join(page.text).count("<i-planted onx=1>") >= 4


@pytest.fixture(scope="module")
def finished(in_process, tmp_path_factory):
    """A run of a few steps, and its outputs; to be copied."""
    outputs = tmp_path_factory.mktemp("finished") / "outputs"
    in_process(*FEW, *where(outputs))
    return outputs


FEW = ("student.max_steps=1", "teacher.max_steps=1", "trainer.val_check_interval=1.0")


def where(outputs, run="run"):
    return f"paths.outputs={outputs}", f"hydra.run.dir={outputs / run}"


@pytest.fixture
def outputs(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "outputs"))


def code_in(folder, mark):
    """A model's folder whose Python code leaves the mark."""
    (folder / "theirs.py").write_text(f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\n")
    config = json.loads((folder / "config.json").read_text())
    names = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "theirs.Theirs")
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names} | UNKNOWN))
    return folder


UNKNOWN = {"model_type": "theirs", "architectures": ["Theirs"]}


def code_in_tokenizer(folder, mark):
    (folder / "theirs.py").write_text(f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\n")
    file = folder / "tokenizer_config.json"
    theirs = {"auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}, "tokenizer_class": "Theirs"}
    file.write_text(json.dumps(json.loads(file.read_text()) | theirs))
    return folder


# The tokenizer can be read without its code, the model not.
@pytest.mark.parametrize(("plant", "code"), [(code_in, 2), (code_in_tokenizer, 0)])
def test_code_that_comes_with_a_model_is_run_for_who_says_so_alone(
    in_process, stranger, outputs, mark, plant, code
):
    folder = plant(Path(shutil.copytree(outputs / "run" / "student", outputs / "model")), mark)
    named = ("student=pretrained", f"student.name={folder}", "student.dtype=float32")
    in_process(*named, *FEW, *where(outputs, "other"), expect=code)
    theirs = {"student": {"trust_remote_code": True, "name": str(folder)}}
    said = stranger(theirs, *named, *FEW, *where(outputs, "third"))
    assert "trust_remote_code=true" in said.stderr
    assert f"{ALLOW}=trust_remote_code" in said.stderr
    assert not mark.exists()
    with pytest.raises(AttributeError, match="Theirs"):
        in_process(*named, "student.trust_remote_code=true", *FEW, *where(outputs, "fourth"))
    assert mark.exists()  # it would have run


@pytest.mark.parametrize("stage", ["evaluate", "export", "chat"])
def test_code_in_the_student_of_a_run_is_not_run(in_process, outputs, mark, stage):
    code_in(outputs / "run" / "student", mark)
    asked = (f"stage={stage}", f"{stage}.run={outputs / 'run'}", f"paths.outputs={outputs}")
    said = in_process(*asked, expect=2)
    assert "cannot be loaded" in said.stderr
    assert not mark.exists()


def plant(folder, mark):
    (folder / "checkpoints").mkdir(exist_ok=True)
    file = folder / "checkpoints" / "last.ckpt"
    torch.save({"global_step": 1, "theirs": Their(mark)}, file)
    return file


def test_a_checkpoint_in_the_folder_of_a_run_runs_no_code(in_process, outputs, mark):
    run = outputs / "run"
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"status": "running"}))
    file = plant(run, mark)
    said = in_process(*FEW, *where(outputs), expect=2)
    assert f"{file} holds more than tensors and numbers" in said.stderr
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()  # it would have run


def test_a_checkpoint_in_an_unfinished_teacher_runs_no_code(in_process, outputs, mark):
    (teacher,) = (outputs / "artifacts" / "teacher").iterdir()
    unfinished = teacher.rename(teacher.with_name(f"{teacher.name}.partial"))
    file = plant(unfinished, mark)
    shutil.rmtree(outputs / "run")
    said = in_process(*FEW, *where(outputs), expect=2)
    assert f"{file} holds more than tensors and numbers" in said.stderr
    assert not mark.exists()


@pytest.mark.parametrize(
    "theirs",
    [[], {"files": []}, {"made_from": []}, {"made_from": {}}, {"content": []}, {"kind": 1}],
)
def test_a_cache_with_a_manifest_of_somebodys_is_refused_in_words(
    in_process, outputs, tmp_path, theirs
):
    cache, victim = tmp_path / "cache", tmp_path / "victim"
    cache.mkdir()
    victim.write_text("years of work")
    manifest = {"kind": "predictions", "made_from": {}, "content": {}}
    manifest |= {"files": {"../victim": "0", str(victim): "0"}}
    changed = manifest | theirs if isinstance(theirs, dict) else theirs
    (cache / "manifest.json").write_text(json.dumps(changed))
    asked = ("transfer=cached", f"transfer.cache={cache}")
    said = in_process(*asked, *FEW, *where(outputs, "other"), expect=2)
    assert f"transfer.cache={cache} is not the folder of a finished cache" in said.stderr
    assert victim.read_text() == "years of work"


@pytest.mark.parametrize("part", ["../other.safetensors", "/tmp/other.safetensors", "a/b"])
def test_the_parts_of_a_model_are_in_its_folder(in_process, outputs, part):
    folder = outputs / "run" / "student"
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    asked = ("stage=evaluate", f"evaluate.run={folder.parent}", f"paths.outputs={outputs}")
    said = in_process(*asked, expect=2)
    assert f"model.safetensors.index.json names {part}" in said.stderr


KEYS = {
    "WANDB_API_KEY": "wandbplanted" + "0" * 28,
    "HF_TOKEN": "hf_planted7361",
    "OPENAI_API_KEY": "sk-planted-7361",
}
PASSWORD = "planted-pass"


class Echo(BaseHTTPRequestHandler):
    """Refuses every key, and repeats it."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers["Authorization"]
        said = json.dumps({"error": {"message": f"Incorrect API key provided: {key}"}}).encode()
        self.send_response(401, f"not {key}")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


@pytest.fixture
def echo():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


class Breaks(Callback):
    def on_fit_start(self, *_):
        raise RuntimeError("in the middle")


@pytest.mark.slow
def test_no_key_is_said_or_written(in_process, outputs, tmp_path, monkeypatch, echo):
    for name, key in {**KEYS, "WANDB_MODE": "offline", ALLOW: __name__}.items():
        monkeypatch.setenv(name, key)
    said = []

    def run(*asked, code=0, few=(*FEW, f"paths.outputs={outputs}")):
        done = in_process(*asked, *few, expect=code)
        said.append(done.stdout + done.stderr)
        return said[-1]

    run("-m", "loss.alpha=0,1", "logger=wandb", "sweep.name=tracked")
    broken = f"+trainer.callbacks=[{{_target_: {__name__}.Breaks}}]"
    assert "in the middle" in run("-m", "seed=0", broken, "sweep.name=broken", code=1)
    run("stage=doctor", few=(f"paths.outputs={outputs}",))
    run("stage=plan")
    run("--cfg=all")
    run("stage=export", f"export.run={outputs / 'run'}")
    run("name=${oc.env:HF_TOKEN}", code=2)
    run("hydra.job.env_copy=[HF_TOKEN]", code=2)
    served = ("teacher=served", "transfer=cached", "transfer.stored=topk", "transfer.k=2")
    served += ("teacher.name=theirs", f"teacher.tokenizer={outputs / 'run' / 'student'}")
    few = ("student.max_steps=1", "teacher.max_steps=0", f"paths.outputs={outputs}")
    assert "***" in run(*served, f"teacher.url={echo}", code=2, few=few)
    run(*served, f"teacher.url=http://me:{PASSWORD}@127.0.0.1/v1", code=2, few=few)
    run(*served, f"teacher.url=http://127.0.0.1/v1?key={PASSWORD}", code=2, few=few)
    run(*served, f"teacher.url={echo}", f"teacher.key_variable={PASSWORD}", code=2, few=few)

    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert (outputs / "sweeps" / "broken" / "report.html") in files
    everything = {str(file): file.read_bytes() for file in files} | {"said": "".join(said).encode()}
    for key in (*KEYS.values(), PASSWORD):
        for spelled in (key.encode(), base64.b64encode(f"api:{key}".encode())):
            assert [where for where, data in everything.items() if spelled in data] == []
