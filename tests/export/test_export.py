"""`stage=export`: the contents of the folder, what is refused, and that it is never partial."""

import base64
import dataclasses
import json
import re
import shutil
import threading
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from markdown_it import MarkdownIt
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.data.tasks.translation import Translation
from lightning_distill.errors import ConfigError
from lightning_distill.experiment.finished_run import FinishedRun
from lightning_distill.export import export, hub, huggingface, onnx
from lightning_distill.export.format import ExportSettings
from lightning_distill.storage.artifacts import find_damage

VLLM = {  # the files that its loader reads
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
}


@pytest.fixture(scope="module")
def sweep(in_process, tmp_path_factory):
    """A distilled student and its baseline; the folder of all outputs."""
    outputs = tmp_path_factory.mktemp("outputs")
    jobs = ("loss.alpha=0,0.5", "loss.temperature=2", "loss=jensen_shannon", "loss.beta=0.25")
    in_process("-m", *jobs, f"paths.outputs={outputs}", "sweep.name=both")
    return outputs


def job_of(sweep, override):
    files = sweep.glob("sweeps/both/*/results.json")
    (folder,) = (f.parent for f in files if override in json.loads(f.read_text())["overrides"])
    return folder


@pytest.fixture
def run(sweep):
    return job_of(sweep, "loss.alpha=0.5")


@pytest.fixture
def call(in_process, sweep):
    """Exports a run; returns the output of the command."""

    def call(run, *overrides, expect=0):
        stage = ("stage=export", f"paths.outputs={sweep}", "logger=none", f"export.run='{run}'")
        process = in_process(*stage, *overrides, tiny=False, expect=expect)
        return process.stderr.strip() if expect else process.stdout

    return call


def test_a_model_loaded_from_the_folder_has_the_reported_nll(sweep, run, call, tmp_path):
    call(run, f"export.folder={tmp_path / 'out'}")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    (tokens,) = sweep.glob("artifacts/tokens/*/tokens.safetensors")
    ids = load_file(tokens)["test"].long()
    assert tokenizer.decode(ids.tolist()).count(tokenizer.eos_token) > 3
    total = 0.0
    for start in range(0, len(ids) - 1, 32):  # data.sequence_length
        window = ids[start : start + 33]
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    scores = json.loads((run / "results.json").read_text())["student"]
    assert total / (len(ids) - 1) == pytest.approx(scores["nll"], abs=1e-5)


def test_the_folder_has_the_files_that_vllm_loads(run, call, tmp_path):
    call(run, f"export.folder={tmp_path / 'out'}")
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == VLLM | {"README.md", "manifest.json"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["GraniteForCausalLM"]
    assert not find_damage(tmp_path / "out")


def test_the_card_describes_the_run(run, call, tmp_path):
    call(run, f"export.folder={tmp_path / 'out'}")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "distillation" in card.data.tags
    text = card.text
    results = json.loads((run / "results.json").read_text())
    for role in ("student", "teacher"):
        line = next(line for line in text.splitlines() if line.startswith(f"| {role} |"))
        assert f"{results[role]['parameters']:,}" in line
        assert f"{results[role]['nll']:.3f}" in line
    assert "L = 1 · H(t, q) + 0.5 · 2² · D(p_T, q_T)" in text
    assert "β KL(p ‖ m) + (1 − β) KL(q ‖ m)" in text
    assert "beta: 0.25" in text
    assert "Gap closed: " in text  # the sweep has a baseline
    assert "12 steps of 128 tokens" in text
    assert "trained for 20 steps" in text
    command = text.split("```bash\n")[1].split("\n```")[0]
    assert command.startswith("lightning-distill student=xs")
    assert "loss.alpha=0.5" in command
    assert f"torch {torch.__version__}" in text


def test_the_card_has_the_steps_made_and_those_asked_for(run, call, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    results = json.loads((run / "results.json").read_text())
    results["training"] = {"steps": 6, "max_steps": 4000, "kept_step": 5}
    (copied / "results.json").write_text(json.dumps(results))
    config = copied / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("keep: last", "keep: best"))
    call(copied, f"export.folder={tmp_path / 'out'}")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "6 of 4,000 steps of 128 tokens (the best of validation: step 5)" in text


def test_the_license_is_left_to_the_user(run, call, tmp_path):
    call(run, f"export.folder={tmp_path / 'a'}")
    front = (tmp_path / "a" / "README.md").read_text().split("---")[1]
    assert "\nlicense: " in front
    assert yaml.safe_load(front)["license"] is None
    call(run, f"export.folder={tmp_path / 'b'}", "export.license=apache-2.0")
    assert ModelCard.load(tmp_path / "b" / "README.md").data.license == "apache-2.0"


MARKUP = "</code></pre><script>alert(1)</script>![x](http://other.org/x)"
BAD = f"{MARKUP} ``` | `\n---\n~~~\n```\n<img src=x>"


def test_no_setting_adds_markup_to_the_card(run, call, tmp_path):
    """Rendered without a filter of HTML."""
    hostile = tmp_path / "run"
    shutil.copytree(run, hostile)
    for name, change in (
        (".hydra/config.yaml", {"name": BAD, "data": {"path": BAD, "subset": BAD}}),
        (".hydra/config.yaml", {"loss": {"note": BAD}, "student": {"name": BAD}}),
        (".hydra/config.yaml", {"loss": {"temperature": {"shape": BAD}}}),
        (".hydra/hydra.yaml", {"hydra": {"runtime": {"choices": dict.fromkeys(CHOICES, BAD)}}}),
        ("results.json", {"overrides": [BAD], "student": {"tasks": {BAD: {BAD: 1.0}}}}),
    ):
        file = hostile / name
        changed = OmegaConf.merge(OmegaConf.create(file.read_text()), change)
        plain = OmegaConf.to_container(changed)
        file.write_text(json.dumps(plain) if name.endswith("json") else yaml.safe_dump(plain))
    call(hostile, f"export.folder={tmp_path / 'out'}")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    tags = re.findall(r"<(?!/)([a-z0-9]+)", page)
    expected = "h1 h2 p pre code table thead tbody tr th td ul li details summary"
    assert set(tags) <= set(expected.split())
    assert tags.count("table") == 1
    assert unescape(page).count("<script>alert(1)</script>") >= 6
    assert card.data.library_name == "transformers"


CHOICES = ("data", "student", "teacher", "transfer")


def test_the_card_of_a_baseline_names_no_teacher(sweep, call, tmp_path):
    run = job_of(sweep, "loss.alpha=0")
    call(run, f"export.folder={tmp_path / 'out'}")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "trained without a teacher" in card.text
    assert "Transfer:" not in card.text
    assert "distillation" not in card.data.tags


def test_the_folder_is_in_the_run_by_default(run, call):
    call(run)
    assert (run / "export" / "model.safetensors").exists()
    assert not list(run.glob("export.*"))


def test_an_export_replaces_an_earlier_one(run, call, tmp_path):
    out = tmp_path / "out"
    call(run, f"export.folder={out}")
    (tmp_path / "out.partial").mkdir()  # of a killed export
    (tmp_path / "out.partial" / "half").write_text("half")
    call(run, f"export.folder={out}", "export.license=mit")
    assert "license: mit" in (out / "README.md").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert not (out / "half").exists()


@pytest.mark.parametrize("name", ["README.md", "notes.txt"])
def test_a_changed_or_added_file_is_not_overwritten(run, call, tmp_path, name):
    out = tmp_path / "out"
    call(run, f"export.folder={out}")
    with (out / name).open("a") as file:
        file.write("mine")
    output = call(run, f"export.folder={out}", expect=2)
    assert f"added or changed since it was exported ({name})" in output
    assert (out / name).read_text().endswith("mine")


def test_a_folder_that_is_not_an_export_is_left_alone(run, call, tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    output = call(run, f"export.folder={tmp_path}", expect=2)
    assert "holds files that no export wrote" in output
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_export_that_fails_leaves_the_earlier_one(run, call, tmp_path, monkeypatch):
    def full(run, folder, settings):
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device", str(folder))

    out = tmp_path / "out"
    call(run, f"export.folder={out}")
    failing = dataclasses.replace(huggingface.FORMAT, write=full)
    monkeypatch.setitem(export.FORMATS, "huggingface", failing)
    output = call(run, f"export.folder={out}", expect=2)
    assert "No space left on device" in output
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert not find_damage(out)


def unfinished(folder):
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"status": "running"}))


def without_student(folder):
    for file in (folder / "student").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damaged", "message"),
    [(unfinished, "is running; run its command again first"), (without_student, "no student")],
)
def test_a_run_without_a_finished_student_is_refused(run, call, tmp_path, damaged, message):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    damaged(tmp_path / "run")
    output = call(tmp_path / "run", expect=2)
    assert message in output
    assert len(output.splitlines()) == 1
    assert not (tmp_path / "run" / "export").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["export.formats=[ggfu]"], "export.formats=ggfu does not exist. Did you mean gguf?"),
        (["export.formats=gguf"], "export.formats=gguf must be a list, such as [huggingface]"),
        (["export.formats=[]"], "export.formats=[] must be a list"),
        (["export.formats=[gguf]", "export.converter=/no/such.py"], "/no/such.py is not a file"),
        (["export.push=a/b/c"], "export.push=a/b/c is not the name of a model on the hub"),
        (["export.push=me/student"], "export.push=me/student needs a login"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    run, call, tmp_path, monkeypatch, overrides, message
):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    output = call(run, f"export.folder={tmp_path / 'out'}", *overrides, expect=2)
    assert message in output
    assert len(output.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(run, call, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    output = call(run, "export.formats=[onnx]", f"export.folder={tmp_path / 'out'}", expect=2)
    assert "needs onnx, onnxruntime, onnxscript: pip install 'lightning_distill[onnx]'" in output


class FakeHub(ThreadingHTTPServer):
    """The responses of the hub that an upload of small files needs."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.created, self.tokens, self.rejects = {}, None, set(), False
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        hub = self.server
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        hub.tokens.add(self.headers["Authorization"])
        if hub.rejects:
            return self.respond(403, {"error": f"{self.headers['Authorization']} may not write"})
        if self.path == "/api/repos/create":
            hub.created = json.loads(body)
            return self.respond(200, {"url": f"{hub.url}/me/student", "id": "me/student"})
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            return self.respond(200, {"files": [self.kind(path) for path in files]})
        if "/commit/" in self.path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    value = item["value"]
                    hub.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{hub.url}/me/student/commit/1"
            return self.respond(200, {"commitUrl": url, "commitOid": "1", "success": True})
        return self.respond(200, {"errors": [], "warnings": []})

    def do_GET(self):
        self.respond(200, {"id": "me/student", "sha": "0", "siblings": []})

    def kind(self, path):
        return {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None}

    def respond(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def on_hub(monkeypatch):
    """A fake hub, to which this process is logged in."""
    server = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


def test_a_push_uploads_the_export(run, call, tmp_path, on_hub):
    output = call(run, f"export.folder={tmp_path / 'out'}", "export.push=me/student")
    assert f"pushed to {on_hub.url}/me/student" in output
    assert "hf_secret" not in output
    assert on_hub.created["visibility"] == "private"
    assert on_hub.files.keys() == VLLM | {"README.md"}
    for name, content in on_hub.files.items():
        assert content == (tmp_path / "out" / name).read_bytes()
    front = on_hub.files["README.md"].decode().split("---")[1]
    assert "license" not in yaml.safe_load(front)  # the hub rejects an empty one
    assert 'from_pretrained("me/student")' in on_hub.files["README.md"].decode()


def test_a_rejected_push_shows_no_token_and_leaves_the_folder(run, call, tmp_path, on_hub):
    on_hub.rejects = True
    output = call(run, f"export.folder={tmp_path / 'out'}", "export.push=me/student", expect=2)
    assert "the hub rejected" in output
    assert "hf_secret" not in output
    assert on_hub.tokens == {"Bearer hf_secret"}
    assert not find_damage(tmp_path / "out")


@pytest.mark.long
def test_all_formats_fit_in_one_folder(run, call, tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("onnxscript")
    out = tmp_path / "out"
    output = call(run, f"export.folder={out}", "export.formats=[huggingface,gguf,onnx]")
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    graph = {f"onnx/{n}" for n in ("model.onnx", "config.json", "tokenizer.json")}
    assert files >= VLLM | graph | {"model-F32.gguf"}
    assert "onnxruntime's logits differ by at most" in output


class Labels(DistillationData):
    """A task other than language modeling."""

    auto_class = AutoModelForImageClassification
    model_kind, hub_task = "image classifier", "image-classification"
    has_tokenizer = False


def test_a_student_of_another_task_is_loaded_by_its_class(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8)
    config.update({"patch_size": 4, "intermediate_size": 16, "num_labels": 3})
    model = ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "student")
    (tmp_path / "out").mkdir()
    run = FinishedRun("export.run", tmp_path, {}, {}, Labels)
    huggingface.FORMAT.write(run, tmp_path / "out", ExportSettings())
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    onnx.FORMAT.check(run, ExportSettings())


def test_onnx_refuses_encoder_decoders(tmp_path):
    run = FinishedRun("export.run", tmp_path, {}, {}, Translation)
    with pytest.raises(ConfigError, match="an encoder-decoder needs more than one graph"):
        onnx.FORMAT.check(run, ExportSettings())
