import json
import signal

import lightning as L
import pytest
import torch
from conftest import TINY
from forked import Place

from lightning_distill.constants import IGNORED
from lightning_distill.errors import ConfigError
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.objective import Objective
from lightning_distill.models import sizes
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer.base import Workspace
from lightning_distill.transfer.sequence import Sequence

P = 8  # tokens of a prompt
LOSS = Objective(forward_kl, 1.0, 1.0, 1.0, "labels")


def sequence(num_blocks=40, num_sequences=None, length=None, temperature=1.0, batch=16, mix=0.0):
    return Sequence(num_blocks, num_sequences, P, length, temperature, 1.0, 0, batch, mix)


def trainer(_):
    return L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)


@pytest.fixture
def prepare(make_data, tmp_path):
    """Has a teacher write. Returns the data, the seconds, and the folder of what was written."""

    def prepare(transfer, data=None, store=tmp_path):
        data = data or make_data()
        torch.manual_seed(3)
        model = sizes.decoder(sizes.Size(32, 1, 2, 64), data.tokenizer)
        teacher = Teacher([lambda: model], [1.0], "t", 0.0, data)
        seconds = transfer.prepare(
            data, teacher, Workspace(Store(store), tmp_path / "run", trainer)
        )
        (folder,) = (f for f in (store / "artifacts/text").iterdir() if f.suffix == "")
        return data, seconds, folder

    return prepare


def lines_of(folder):
    text = "".join(f.read_text() for f in sorted(folder.glob("text-*.jsonl")))
    return [json.loads(line) for line in text.splitlines()]


def test_each_block_of_the_transfer_set_begins_a_sequence(prepare):
    data, seconds, folder = prepare(sequence(num_blocks=40, num_sequences=90))
    assert seconds > 0
    lines, blocks = lines_of(folder), data.examples("train")
    assert len(lines) == 90
    for i, line in enumerate(lines):
        assert line["prompt_ids"] == blocks[i % 40]["input_ids"][:P].tolist()
        ids, eos = line["ids"], data.tokenizer.eos_token_id
        assert len(ids) == 33 - P or ids[-1] == eos
        assert eos not in ids[:-1]
    assert lines[0]["ids"] != lines[40]["ids"]  # the same prompt, another throw of the dice


def test_the_student_learns_what_was_written_and_not_the_prompts(prepare):
    transfer = sequence()
    data, _, folder = prepare(transfer)
    blocks = transfer.dataset(data)
    learned = [i for n in range(len(blocks)) for i in blocks[n]["labels"].tolist() if i != IGNORED]
    assert learned == [i for line in lines_of(folder) for i in line["ids"]]


def test_kept_apart_no_sequence_reads_another(prepare, make_data):
    transfer = sequence()
    _, _, folder = prepare(transfer, make_data(isolate_documents=True))
    lines, found = lines_of(folder), []
    for block in (transfer.generated[n] for n in range(len(transfer.generated))):
        for t in (block["labels"] != IGNORED).nonzero()[:, 0].tolist():
            start = t - int(block["position_ids"][t])
            found.append([*block["input_ids"][start : t + 1].tolist(), int(block["labels"][t])])
    texts = [line["prompt_ids"] + line["ids"] for line in lines]
    spans = {tuple(text[i:j]) for text in texts for j in range(len(text) + 1) for i in range(j)}
    assert found
    assert all(tuple(span) in spans for span in found)


@pytest.mark.parametrize(("mix", "own"), [(0.0, 0.0), (0.25, 0.25), (0.75, 0.75)])
def test_mix_is_the_share_of_the_datas_own_blocks(prepare, mix, own):
    transfer = sequence(mix=mix)
    data, _, _ = prepare(transfer)
    blocks, written = transfer.dataset(data), len(transfer.generated)
    assert (len(blocks) - written) / len(blocks) == pytest.approx(own, abs=0.02)
    for i in range(written, len(blocks)):
        assert torch.equal(
            blocks[i]["labels"], data.examples("train")[(i - written) % 40]["labels"]
        )


def test_what_was_written_is_reused_and_can_be_read(prepare, tmp_path):
    prepare(sequence())
    _, seconds, folder = prepare(sequence())
    assert seconds == 0
    shown = [json.loads(s) for s in (tmp_path / "run/generated.jsonl").read_text().splitlines()]
    assert shown == [{k: line[k] for k in ("prompt", "text")} for line in lines_of(folder)]


def test_going_on_after_an_interruption_makes_the_same_files(prepare, tmp_path):
    _, _, folder = prepare(sequence())
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    half = tmp_path / "half" / folder.relative_to(tmp_path)
    partial = half.with_name(f"{half.name}.partial")
    partial.mkdir(parents=True)
    (partial / "text-00001.jsonl").write_bytes(files["text-00001.jsonl"])
    (partial / "text-00000.jsonl.partial").write_bytes(files["text-00000.jsonl"][:100])
    _, seconds, again = prepare(sequence(), store=tmp_path / "half")
    assert seconds > 0
    assert {f.name: f.read_bytes() for f in again.iterdir()} == files


def test_the_likeliest_text_is_written_once_for_each_prompt(make_data):
    with pytest.raises(ConfigError, match="temperature=0 has one sequence for each of the 40"):
        sequence(num_sequences=41, temperature=0.0).check(LOSS, make_data(), make_data())


def test_a_sequence_that_the_teacher_cannot_hold_is_refused(prepare):
    with pytest.raises(ConfigError, match="longer than the 64 positions"):
        prepare(sequence(length=66))


def test_too_little_text_for_a_block_is_refused(prepare):
    with pytest.raises(ConfigError, match=r"more transfer\.num_sequences"):
        prepare(sequence(num_sequences=1, length=P + 2))


@pytest.mark.slow
def test_the_teachers_text_alone_needs_a_teacher_once(in_process, tmp_path):
    settings = ["transfer=sequence", "loss.alpha=0", f"paths.outputs={tmp_path}"]
    found = []
    for seed in (0, 1):
        in_process(*settings, f"seed={seed}", f"hydra.run.dir={tmp_path / str(seed)}")
        found.append(json.loads((tmp_path / str(seed) / "results.json").read_text()))
    assert found[0]["cost"]["transfer_seconds"] > 0
    assert found[1]["cost"]["transfer_seconds"] == found[1]["cost"]["teacher_seconds"] == 0
    assert found[0]["student"]["nll"] != found[1]["student"]["nll"]


@pytest.mark.long
def test_killed_while_it_writes_and_started_again_it_writes_the_same(tmp_path):
    place, outputs = Place(tmp_path), {name: tmp_path / name for name in "ab"}
    settings = [*TINY, "transfer=sequence", "transfer.batch_size=1", "stage=transfer"]

    def written():
        return len(list(outputs["a"].glob("artifacts/text/*.partial/*.jsonl")))

    for target in (5, 22, 39):
        command = place.start(*settings, f"paths.outputs={outputs['a']}")
        assert command.until(lambda target=target: written() >= target), command.said
        command.signal(signal.SIGKILL)
        command.wait(-signal.SIGKILL)
    for folder in outputs.values():
        place.run(*settings, f"paths.outputs={folder}")
    whole, again = (
        {f.name: f.read_bytes() for f in (tmp_path / x).glob("artifacts/text/*/*")} for x in "ab"
    )
    assert whole == again
    assert len(whole) > 60
