import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

from lightning_distill.data.sources.image_folder import ImageFolder
from lightning_distill.data.splits import SPLITS
from lightning_distill.data.tasks.images import Images, as_characters
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import ClassQuality, omitted_class
from lightning_distill.models.sizes import Size
from lightning_distill.models.vision import convnet, vit
from lightning_distill.storage.artifacts import Store

CLASSES = ("bright", "dark", "striped")
TINY = [
    "data=images",
    "data.image_size=8",
    "data.held_out=0.2",
    "data.batch_size=4",
    "teacher=xs",
    "student=xs",
    "teacher.max_steps=6",
    "teacher.hidden_size=16",
    "student.hidden_size=8",
    "student.max_steps=4",
    "trainer=cpu",
    "trainer.log_every_n_steps=2",
    "logger=none",
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """20 images of each of three classes."""
    dice = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("images")
    for name in CLASSES:
        (root / name).mkdir()
        for i in range(20):
            pixels = dice.integers(0, 80, (12, 12, 3), dtype=np.uint8)
            if name == "bright":
                pixels += 150
            if name == "striped":
                pixels[::2] += 150
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def make(folder, tmp_path):
    def made(omit=None, **settings):
        settings = {
            "path": str(folder),
            "image_size": 8,
            "channels": 3,
            "skip_bad_rows": False,
            **settings,
        }
        data = Images(ImageFolder, 4, 0.2, omit, 0.5, 0.25, **settings)
        data.prepare(Store(tmp_path / "outputs"))
        return data

    return made


def test_a_folder_of_classes_is_split_and_scaled(make):
    data = make()
    assert data.names == list(CLASSES)
    assert data.image_size == (3, 8, 8)
    assert [len(data.examples(split)) for split in SPLITS] == [36, 12, 12]
    seen = [data._tensors[split].flatten(1) for split in SPLITS]
    assert len(torch.cat(seen).unique(dim=0)) == 60  # none is in two splits


def test_pixels_are_those_of_the_exported_image_processor(make, tmp_path):
    data = make()
    model = vit(Size(8, 1, 2, 1), data.image_size, data.label_settings)
    data.save(model, tmp_path / "student")
    classify = pipeline("image-classification", str(tmp_path / "student"), top_k=3)
    example = data.examples("test")[0]
    image = Image.fromarray(data._tensors["test"][0].permute(1, 2, 0).numpy())
    said = {one["label"]: one["score"] for one in classify(image)}
    with torch.no_grad():
        ours = model.eval()(pixel_values=example["pixel_values"][None]).logits[0].softmax(-1)
    for i, name in enumerate(CLASSES):
        assert said[name] == pytest.approx(float(ours[i]), abs=1e-5)


def test_an_omitted_class_is_missing_from_the_transfer_set_alone(make):
    data = make(omit="dark")
    labels = [int(data.transfer_set()[i]["labels"]) for i in range(len(data.transfer_set()))]
    assert set(labels) == {0, 2}
    assert len(data.examples("train")) == 36
    assert {int(data.examples("test")[i]["labels"]) for i in range(12)} == {0, 1, 2}
    assert data.artifact.key == make().artifact.key


def test_a_moved_bias_predicts_the_omitted_class_as_often_as_it_occurs():
    torch.manual_seed(0)
    labels = torch.arange(5).repeat(40)
    logits = torch.randn(200, 5) + 3 * torch.nn.functional.one_hot(labels, 5)
    logits[:, 2] -= 8  # the class that was never shown
    log_probs = logits.log_softmax(-1)
    found = omitted_class(log_probs, labels, 2, 0.2)
    moved = logits.clone()
    moved[:, 2] += found["bias_correction"] + 1e-6
    guess = moved.argmax(-1)
    assert int((guess == 2).sum()) == 40
    assert found["omitted_accuracy"] == float((logits.argmax(-1) == 2)[labels == 2].float().mean())
    corrected = float((guess == 2)[labels == 2].float().mean())
    assert found["corrected_omitted_accuracy"] == pytest.approx(corrected)
    assert found["corrected_accuracy"] == pytest.approx(float((guess == labels).float().mean()))
    assert corrected > 0.8
    assert found["omitted_accuracy"] < 0.1


def test_class_quality_by_hand():
    torch.manual_seed(0)
    log_probs, labels = torch.randn(30, 3).log_softmax(-1), torch.randint(3, (30,))
    quality = ClassQuality(3)
    for part in (slice(0, 20), slice(20, 30)):
        quality.update(log_probs[part], labels[part])
    found, guess = quality.compute(), log_probs.argmax(-1)
    assert found["nll"] == pytest.approx(-float(log_probs[range(30), labels].mean()), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((guess == labels).float().mean()))
    f1 = []
    for c in range(3):
        hits = int(((guess == c) & (labels == c)).sum())
        f1.append(2 * hits / (int((guess == c).sum()) + int((labels == c).sum())))
    assert found["f1"] == pytest.approx(sum(f1) / 3, rel=1e-5)


def test_convnets_say_the_same_of_an_image_whatever_is_beside_it(make):
    data = make()
    model = convnet([4, 8], [1, 1], data).train()
    images = torch.stack([data.examples("train")[i]["pixel_values"] for i in range(6)])
    alone = torch.cat([model(pixel_values=one[None]).logits for one in images])
    assert torch.allclose(model(pixel_values=images).logits, alone, atol=1e-5)


def test_an_image_is_drawn_bright_where_it_is():
    image = torch.zeros(1, 4, 4)
    image[0, 1, 2] = 255
    assert as_characters(image).splitlines()[1] == "    @@  "


def test_the_command_distils_a_classifier_and_another_tool_loads_it(in_process, folder, tmp_path):
    outputs = tmp_path / "outputs"
    in_process(
        "-m", *TINY, f"data.path={folder}", "data.omit=dark", "loss.alpha=0,1", "transfer=cached",
        "transfer.stored=topk", "transfer.k=3", f"paths.outputs={outputs}", "sweep.name=images",
        tiny=False,
    )  # fmt: skip
    sweep = outputs / "sweeps" / "images"
    found = {file.parent: json.loads(file.read_text()) for file in sweep.glob("*/results.json")}
    job = next(one for one, results in found.items() if "loss.alpha=1" in results["overrides"])
    results = found[job]
    assert {"nll", "accuracy", "f1", "corrected_omitted_accuracy"} <= set(results["student"])
    assert "perplexity" not in results["student"]
    assert results["student"]["teacher_agreement"] <= 1
    model = AutoModelForImageClassification.from_pretrained(job / "student")
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert "accuracy" in (sweep / "results.csv").read_text().splitlines()[0]


REFUSED = [
    (["data.omit=green"], "data.omit=green does not exist."),
    (["data.path=/no/folder"], "data.path=/no/folder does not exist"),
    (["data.channels=2"], "data.channels=2 must be 1 or 3."),
    (["transfer=sequence"], "transfer=sequence needs models that generate text"),
    (["student=convnet", "student.depths=[1]"], "must have one entry per stage"),
    (["loss.hidden.weight=1", "teacher=convnet"], "loss.hidden"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_is_refused_in_a_line(in_process, folder, overrides, message):
    convnets = [one.split("=")[0] for one in overrides if one.endswith("=convnet")]
    settings = [one for one in TINY if one.split(".")[0] not in convnets or "steps" in one]
    done = in_process(*settings, f"data.path={folder}", *overrides, tiny=False, expect=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_a_file_that_is_no_image_is_named_or_left_out(make, folder, tmp_path, caplog):
    copy = tmp_path / "copy"
    for file in folder.rglob("*.png"):
        (copy / file.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / file.parent.name / file.name).write_bytes(file.read_bytes())
    (copy / "dark" / "0.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"dark/0.png cannot be read as an image"):
        make(path=str(copy))
    data = make(path=str(copy), skip_bad_rows=True)
    assert sum(len(data.examples(split)) for split in SPLITS) == 59
    assert "skipped 1 of 60 images" in caplog.text


def test_a_language_model_data_set_has_no_convnet(in_process):
    done = in_process("student=convnet", expect=2)
    assert "convnet is a model for images; choose a size" in done.stderr
