import itertools
import json
import random

import datasets
import lightning as L
import pytest
import torch

from lightning_distill.data.sources import base, readers
from lightning_distill.data.sources.base import held_out
from lightning_distill.data.sources.huggingface import HuggingFace
from lightning_distill.data.sources.text import Text
from lightning_distill.data.splits import SplitSources
from lightning_distill.data.streaming import StreamPosition, TokenChunks, load_chunks
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import Store


class SparseCodec:
    """A source that has all of its documents at hand."""

    def __init__(self, path):
        self.path = path

    def fingerprint(self):
        return "listed"

    def rows(self):
        return ["a", "b"]


class Generated(SparseCodec):
    """One that knows no places."""

    def rows(self):
        with open(self.path) as lines:
            for line in lines:
                yield json.loads(line)["text"]


SPLIT_OF = SplitSources(Generated, {"path": ""}, None).split_of


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(readers, "CHUNK", 800)  # several documents
    monkeypatch.setattr("lightning_distill.data.sources.huggingface.ROWS", 7)


@pytest.fixture
def make(text_file, tmp_path):
    def make(source=Text, isolate=True, **settings):
        settings = {"path": str(text_file)} | settings
        data = CausalLM(source, 16, 4, 300, isolate_documents=isolate, streaming=True, **settings)
        data.prepare(Store(tmp_path / "outputs"), None)
        return data

    return make


def taken(stream, count, state=None, rank=0, world=1, samples=10**6):
    order = iter(stream.begin(state, rank, world, samples, num_states=10**6))
    return [stream[next(order)] for _ in range(count)]


def same(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def train_documents(text_file):
    texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
    return [text for text in texts if SPLIT_OF(text) == "train"]


def test_a_stream_is_the_train_documents_in_their_order_again_and_again(make, text_file):
    data = make(isolate=False)
    documents = train_documents(text_file)
    ids = data.tokenizer(documents * 2)["input_ids"]
    expected = torch.tensor([i for own in ids for i in [*own, 0]])
    count = (len(expected) - 1) // 16
    found = taken(data.examples("train"), count)
    assert torch.equal(torch.cat([b["input_ids"] for b in found]), expected[: 16 * count])
    assert torch.equal(torch.cat([b["labels"] for b in found]), expected[1 : 16 * count + 1])
    assert [int(b["block"]) for b in found] == list(range(count))


def test_a_stream_keeps_documents_apart_as_blocks_of_a_split_do(make, text_file):
    data = make()
    documents = train_documents(text_file)
    own = [torch.tensor([*ids, 0]) for ids in data.tokenizer(documents)["input_ids"]]
    numbers = [torch.full((len(ids),), n) for n, ids in enumerate(own)]
    whole = data._blocks(torch.cat(own), torch.cat(numbers), None)
    count = len(whole) - 1  # the last one goes on in the next pass
    assert same(taken(data.examples("train"), count), [whole[i] for i in range(count)])


def test_the_number_of_workers_changes_no_block(make):
    expected = taken(make().examples("train"), 400)
    for workers in (1, 3):
        assert same(taken(make(num_workers=workers).examples("train"), 400), expected)


def test_every_block_is_of_one_rank_alone(make, text_file):
    data = make(num_workers=2)
    alone = sum(len(ids) + 1 for ids in data.tokenizer(train_documents(text_file))["input_ids"])
    seen = []
    for rank in range(3):
        chunks = TokenChunks(*data.examples("train").text, StreamPosition(), rank, 3)
        first = itertools.takewhile(lambda chunk: not chunk.position.epoch, load_chunks(chunks, 2))
        seen += [(chunk.position.chunk, len(chunk.tokens)) for chunk in first]
    numbers = [number for number, _ in seen]
    assert sorted(numbers) == list(range(len(numbers)))
    assert sum(tokens for _, tokens in seen) == alone


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 3)])
def test_a_stream_goes_on_at_the_next_token_from_any_state(make, workers, rank, world, monkeypatch):
    monkeypatch.setattr(process_group, "all_gather", lambda own: [own] * world)
    data = make()
    stream = data.examples("train")
    whole = taken(stream, 500, None, rank, world)
    dice = random.Random(0)
    for start in [0, 1, 499, 500, *(dice.randrange(500) for _ in range(6))]:
        state = json.loads(json.dumps(stream.state(start)))
        again = make(num_workers=workers).examples("train")
        found = taken(again, 500 - start, state, rank, world)
        assert same(found, whole[start:])


def test_what_is_behind_the_state_is_not_tokenized_again(make, monkeypatch):
    data = make()
    stream = data.examples("train")
    taken(stream, 300)
    seen = []
    monkeypatch.setattr(SplitSources, "split_of", lambda _, text: seen.append(text) or "train")
    taken(data.examples("train"), 1, stream.state(300))
    assert sum(map(len, seen)) < 2 * 1200


@pytest.mark.parametrize("kind", ["generator", "saved", "files"])
def test_every_kind_of_source_goes_on_where_it_was(make, text_file, tmp_path, kind):
    if kind == "saved":
        texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
        settings = {"source": HuggingFace, "path": None, "name": str(tmp_path / "saved")}
    elif kind == "files":
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "a.jsonl").write_text(text_file.read_text())
        settings = {"source": HuggingFace, "path": None, "name": str(tmp_path / "files")}
    else:
        settings = {"source": Generated}
    if settings.get("path", "") is None:
        settings["source"] = lambda path, name, streaming=False: HuggingFace(
            name, streaming=streaming
        )
    data = make(num_workers=2, isolate=False, **settings)
    stream = data.examples("train")
    whole = taken(stream, 500)
    assert same(whole, taken(make(isolate=False).examples("train"), 500))
    again = make(num_workers=1, isolate=False, **settings).examples("train")
    for start in (170, 333):
        assert same(taken(again, 500 - start, stream.state(start)), whole[start:])


def test_held_out_documents_are_the_first_and_never_trained_on(make, text_file):
    data = make(held_out_documents=3)
    texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
    for split in ("validation", "test"):
        expected = [text for text in texts if SPLIT_OF(text) == split][:3]
        ids = data._tokens[split].tolist()
        assert data.tokenizer.decode(ids) == "".join(text + "<|endoftext|>" for text in expected)
    shares = [SPLIT_OF(f"document {i}") for i in range(9000)]
    assert shares.count("test") == pytest.approx(500, abs=70)
    assert shares.count("validation") == pytest.approx(500, abs=70)


def test_held_out_text_is_an_artifact_that_the_number_decides(make, monkeypatch):
    first = make(held_out_documents=3).artifact
    assert first.seconds > 0
    monkeypatch.setattr(base, "documents", lambda source: pytest.fail("it is there already"))
    assert make(held_out_documents=3).artifact.key == first.key
    monkeypatch.undo()
    assert make(held_out_documents=4).artifact.key != first.key


@pytest.mark.parametrize("texts", [["one"], ["one"] * 50])
def test_a_stream_that_holds_out_nothing_is_refused(texts):
    class Few(Generated):
        def rows(self):
            yield from texts

    with pytest.raises(ConfigError, match=f"split without a document, of {len(texts)} that"):
        held_out(SplitSources(Few, {"path": ""}, None), 10)


def test_a_source_that_lists_its_documents_is_refused(make):
    with pytest.raises(ConfigError, match="SparseCodec cannot be streamed"):
        make(SparseCodec)


def test_a_run_that_goes_on_on_another_number_of_devices_is_refused(make):
    stream = make().examples("train")
    with pytest.raises(ConfigError, match="started on 1 devices"):
        stream.begin(stream.state(0), 0, 2, 9, 9)


class Trained(L.LightningModule):
    """Notes the blocks that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = True
        self.seen = []

    def training_step(self, batch, _):
        self.seen += batch["input_ids"].tolist()
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_checkpoint_goes_on_with_the_blocks_that_follow(make, tmp_path, workers):
    def trainer(steps):
        return L.Trainer(
            max_steps=steps,
            accumulate_grad_batches=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    data, whole, part, rest = make(num_workers=workers), Trained(), Trained(), Trained()
    data.set_train_examples(None, 0)
    trainer(20).fit(whole, datamodule=data)
    assert len(whole.seen) == 20 * 2 * 4
    data = make()
    half = trainer(7)
    half.fit(part, datamodule=data)
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(20).fit(rest, datamodule=make(num_workers=workers), ckpt_path=tmp_path / "half.ckpt")
    assert part.seen + rest.seen == whole.seen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["transfer=cached"], "data.streaming=true has no end, and this transfer prepares"),
        (["transfer=sequence"], "choose transfer=online or on_policy"),
        (["transfer.num_blocks=3"], "transfer.num_blocks=3 chooses from a text of known length"),
        (["data.num_workers=-1"], "data.num_workers=-1 must be a whole number of at least 0"),
        (["data.held_out_documents=0"], "data.held_out_documents=0 must be a whole number"),
        (["data.tokenizer_mb=0"], "data.tokenizer_mb=0 must be a number above 0"),
        (["data.streaming=yes"], "data.streaming=yes must be true or false"),
        (["data=chat"], "data.streaming is a setting of data=huggingface or data=python_docs"),
        (["data=masked_text", "+data.streaming=true"], "unexpected keyword argument 'streaming'"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(in_process, settings, message):
    own = "data.streaming" in " ".join(settings)
    given = settings if own else ["data.streaming=true", *settings]
    said = in_process(*given, expect=2).stderr
    assert message in said
    assert len(said.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "leaves the validation split without a document, of 0 that"),
        ('{"text": "one"}\n', "leaves the validation split without a document, of 1 that"),
        ('{"text": "one"}\n{', "line 2"),
    ],
)
def test_a_text_that_cannot_be_streamed_is_refused(in_process, tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    said = in_process("data.streaming=true", f"data.path={tmp_path / 'a.jsonl'}", expect=2).stderr
    assert message in said
    assert len(said.strip().splitlines()) <= 2


def test_a_bad_row_behind_the_beginning_ends_a_run_in_one_line(in_process, text_file, tmp_path):
    lines = text_file.read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines * 2, "{"]))
    settings = ("data.streaming=true", "data.num_workers=1", "data.held_out_documents=2")
    steps = ("loss.alpha=0", "student.max_steps=200", "data.tokenizer_mb=0.01")
    path = f"data.path={tmp_path / 'a.jsonl'}"
    said = in_process(*settings, *steps, path, expect=2).stderr
    assert "line 361" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["data.streaming=true"],
        ["data.streaming=true", "transfer=on_policy", "transfer.prompt_length=8"],
        pytest.param(["data.streaming=true", "loss.alpha=0"], marks=pytest.mark.long),
        pytest.param(["transfer=cached"], marks=pytest.mark.long),
    ],
)
def test_the_number_of_workers_changes_no_result(in_process, tmp_path, settings):
    found = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        where = (f"hydra.run.dir={folder}", f"paths.outputs={folder}/outputs")
        in_process(*settings, f"data.num_workers={workers}", *where)
        results = json.loads((folder / "results.json").read_text())
        found.append({key: results[key] for key in ("key", "student", "teacher")})
        weights = (folder / "student" / "model.safetensors").read_bytes()
        found[-1]["weights"] = weights
    assert found[0] == found[1]
