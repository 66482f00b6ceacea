"""Translation: pairs to batches, and encoder-decoders through every transfer."""

import json
import random
import re
import struct

import datasets
import lightning as L
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)

from lightning_distill.constants import IGNORED
from lightning_distill.data.sources.django_messages import DjangoMessages, read_catalog
from lightning_distill.data.sources.pairs import Pairs
from lightning_distill.data.tasks.translation import Translation
from lightning_distill.errors import ConfigError
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.objective import LABELS_ALONE, Objective
from lightning_distill.models.generation import Sampling, generate
from lightning_distill.models.inspection import find_layers
from lightning_distill.models.output_head import Predictor
from lightning_distill.models.sizes import Size
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer.base import Workspace
from lightning_distill.transfer.cache.shards import CachedExamples
from lightning_distill.transfer.cached import Cached
from lightning_distill.transfer.sequence import Sequence

WORDS = {
    "a": "ein",
    "cat": "Kater",
    "dog": "Hund",
    "sees": "sieht",
    "the": "der",
    "hears": "hört",
    "red": "rote",
    "old": "alte",
}
DICE = random.Random(0)
ENGLISH = [
    [article, *DICE.sample(("red", "old"), DICE.randint(0, 2)), DICE.choice(("cat", "dog")), verb]
    for article in ("a", "the")
    for verb in ("sees", "hears")
    for _ in range(24)
]
OTHERS = ["a cat", "the dog", "the old dog", "a red cat", "the cat", "a dog"]
ENGLISH = [" ".join([*words, DICE.choice(OTHERS)]) for words in ENGLISH]
ENGLISH = list(dict.fromkeys(ENGLISH))
PAIRS = [(text, " ".join(WORDS[word] for word in text.split())) for text in ENGLISH]
SMALL = Size(16, 1, 2, 64)


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in [("source", "target"), *PAIRS]))
    return path


@pytest.fixture
def make(pairs_file, tmp_path_factory):
    """A prepared Translation of those pairs."""

    def make(tokenizer=None, sequence_length=24, batch_size=8, **settings) -> Translation:
        settings = settings or {"path": str(pairs_file)}
        data = Translation(Pairs, sequence_length, batch_size, 300, **settings)
        data.prepare(Store(tmp_path_factory.getbasetemp() / "translations"), tokenizer)
        return data

    return make


def model_of(data, size=SMALL):
    torch.manual_seed(0)
    return data.new_model(size)


def nll_of(model, data, split="test", trimmed=True) -> Tensor:
    examples = data.examples(split)
    batch = next(iter(data.loader(examples, len(examples))))
    if not trimmed:
        batch = torch.utils.data.default_collate(list(examples))
    with torch.no_grad():
        terms = LABELS_ALONE.terms(
            Predictor(model.eval(), data.num_classes)(batch), [], batch["labels"]
        )
    return terms.total / terms.tokens


# Pairs


def test_every_kind_of_file_gives_the_same_examples(make, tmp_path):
    rows = [{"source": a, "target": b} for a, b in PAIRS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text("source,target\n" + "".join(f"{a},{b}\n" for a, b in PAIRS))
    saved = datasets.Dataset.from_list(rows)
    saved.to_parquet(tmp_path / "a.parquet")
    saved.save_to_disk(str(tmp_path / "saved"))
    both = [{"translation": {"en": a, "de": b}} for a, b in PAIRS]
    datasets.Dataset.from_list(both).save_to_disk(str(tmp_path / "both"))
    languages = {"source_language": "en", "target_language": "de"}
    expected = make()._splits
    for path, settings in [
        *(("a.jsonl", {}), ("a.csv", {}), ("a.parquet", {}), ("saved", {})),
        ("both", languages),
    ]:
        assert make(path=str(tmp_path / path), **settings)._splits == expected
    assert sorted((p.source, p.target) for part, _ in expected.values() for p in part) == sorted(
        PAIRS
    )


def test_an_example_is_a_pair_and_decodes_to_it(make):
    data = make()
    examples, pairs = data.examples("train"), data._splits["train"].items
    assert len(examples) == len(pairs)
    for index in (0, len(pairs) - 1):
        example = examples[index]
        shown = example["attention_mask"].bool()
        eos = data.tokenizer.eos_token
        assert data.tokenizer.decode(example["input_ids"][shown]) == pairs[index].source + eos
        learned = example["labels"][example["labels"] != IGNORED]
        assert data.tokenizer.decode(learned) == pairs[index].target + eos
        assert {len(x) for name, x in example.items() if name != "block"} == {24}


def test_what_is_too_long_is_left_out_and_counted(make):
    whole = make()
    longest = [
        max(len(whole.tokenizer(text)["input_ids"]) for text in pair[:2])
        for part, _ in whole._splits.values()
        for pair in part
    ]
    most = sorted(longest)[len(longest) * 2 // 3]
    short = make(sequence_length=most)
    left_out = sum(length > most for length in longest)
    assert 0 < left_out < len(longest)
    counted = short.describe().split("left out, longer than data.sequence_length: ")[1]
    assert left_out == sum(int(n) for n in re.findall(r"(\d+) (?:train|val|test)", counted))
    assert sum(len(short.examples(s)) for s in short._splits) == len(longest) - left_out


def test_translations_of_one_text_are_never_in_different_splits(tmp_path):
    lines = [f"{text}\t{n}{text}\n" for text in map(str, range(90)) for n in "ab"]
    (tmp_path / "a.tsv").write_text("source\ttarget\n" + "".join(lines))
    pairs = Translation(Pairs, 24, 8, 300, path=str(tmp_path / "a.tsv"))._splits
    for part, _ in pairs.values():
        assert len(part) == 2 * len({pair.source for pair in part})
    assert [len(pairs[split].items) for split in ("train", "validation", "test")] == [160, 10, 10]


def test_a_batch_is_as_wide_as_its_longest_pair_and_says_the_same(make):
    data = make()
    batch = next(iter(data.loader(data.examples("test"), 4)))
    assert bool(batch["attention_mask"][:, -1].any())
    assert bool((batch["labels"][:, -1] != IGNORED).any())
    assert batch["labels"].shape[1] < 24
    model = model_of(data)
    torch.testing.assert_close(nll_of(model, data), nll_of(model, data, trimmed=False))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            [{"en": "a", "de": "b"}],
            {},
            r"line 1: no column source \(data.source_column=source\); it has: en, de",
        ),
        ([{"source": "a", "target": " "}], {}, "line 1: target is empty"),
        ([{"source": "a", "target": 3}], {}, "line 1: target is int, not text"),
        (
            [{"translation": {"en": "a", "de": "b"}}],
            {"source_language": "en", "target_language": "fr"},
            r"no language fr \(data.target_language=fr\); it has: en, de",
        ),
        (
            [{"en": "a"}],
            {"source_language": "en", "target_language": "de"},
            "no column translation with a text for each language; it has: en",
        ),
        ([], {"source_language": "en"}, "go together"),
        ([], {"source_column": "x", "target_column": "x"}, "source and target are the same, x"),
    ],
)
def test_pairs_that_cannot_be_read_are_named(tmp_path, rows, settings, message):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=message):
        list(Pairs(str(path), **settings).rows())


def test_bad_rows_are_left_out_when_asked_for(in_process, tmp_path):
    good = [json.dumps({"source": a, "target": b}) for a, b in PAIRS]
    (tmp_path / "a.jsonl").write_text("\n".join([good[0], '{"source": "a", ', *good[1:]]))
    ours = ["data=translation", f"data.path={tmp_path / 'a.jsonl'}", f"paths.outputs={tmp_path}"]
    done = in_process("stage=teacher", *ours, "trainer=cpu", "logger=none", tiny=False, expect=2)
    assert "a.jsonl, line 2" in done.stderr
    assert "data.skip_bad_rows=true" in done.stderr
    assert len(list(Pairs(str(tmp_path / "a.jsonl"), skip_bad_rows=True).rows())) == len(PAIRS)


# Django's messages


def catalogue(entries) -> bytes:
    """A .mo file, as msgfmt writes it."""
    strings = [part.encode() + b"\0" for column in zip(*entries, strict=True) for part in column]
    count, offset, table = len(entries), 28 + 16 * len(entries), b""
    for string in strings:
        table += struct.pack("<2I", len(string) - 1, offset)
        offset += len(string)
    head = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    return head + table + b"".join(strings)


def test_a_catalogue_is_read_as_gettext_reads_it(tmp_path):
    import gettext

    header = "Plural-Forms: nplurals=2; plural=(n != 1);\nContent-Type: text/plain; charset=UTF-8\n"
    entries = [
        ("", header),
        ("Log in", "Anmelden"),
        ("month\4May", "Mai"),
        ("%d day\0%d days", "%d Tag\0%d Tage"),
    ]
    (tmp_path / "a.mo").write_bytes(catalogue(entries))
    theirs = gettext.GNUTranslations((tmp_path / "a.mo").open("rb"))
    assert list(read_catalog(tmp_path / "a.mo")) == [
        ("Log in", theirs.gettext("Log in")),
        ("May", theirs.pgettext("month", "May")),
        ("%d day", theirs.ngettext("%d day", "%d days", 1)),
        ("%d days", theirs.ngettext("%d day", "%d days", 2)),
    ]


def test_django_brings_messages_in_many_languages():
    pytest.importorskip("django")
    found = list(DjangoMessages("de").rows())
    assert ("Afrikaans", "Afrikaans", "Afrikaans") in found
    assert 700 < len(found) < 2000
    several = list(DjangoMessages(["de", "nl"]).rows())
    assert {pair.source.split()[0] for pair in several} == {">>de<<", ">>nl<<"}
    assert len({pair.key for pair in several}) < len(several)
    with pytest.raises(
        ConfigError, match=r"data.language=pt_br does not exist. Did you mean pt_BR\?"
    ):
        DjangoMessages("pt_br")


def test_without_django_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("lightning_distill.data.sources.django_messages.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'lightning_distill\[translation\]'"):
        DjangoMessages("de")


# Models


def pretrained_tokenizer() -> PreTrainedTokenizerFast:
    """A word a token, with the special tokens of BART's, in its places."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {w: i for i, w in enumerate([*special, *WORDS, *WORDS.values()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


STACKS = {
    f"{stack}_{key}": value
    for stack in ("encoder", "decoder")
    for key, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()
}
SPECIAL = {"pad_token_id": 1, "eos_token_id": 2}
CHECKPOINTS = {
    "marian": lambda: MarianMTModel(
        MarianConfig(
            vocab_size=24,
            d_model=16,
            **STACKS,
            **SPECIAL,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
        )
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=24,
            d_model=16,
            **STACKS,
            **SPECIAL,
            decoder_start_token_id=2,
            bos_token_id=0,
            forced_eos_token_id=None,
        )
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=24,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_decoder_layers=1,
            num_heads=2,
            decoder_start_token_id=1,
            **SPECIAL,
        )
    ),
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A folder for each architecture, of models with weights large enough to say something."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    for name, build in CHECKPOINTS.items():
        model = build()
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name)
        pretrained_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_pretrained_translator_is_read_as_transformers_reads_it(name, checkpoints, make):
    data = make(pretrained_tokenizer())
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoints / name).eval()
    batch = next(iter(data.loader(data.examples("test"), 64)))
    found = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")})
    logits = found.logits.detach()[..., : data.num_classes]  # of a padded vocabulary
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(nll_of(model, data), theirs)
    data.check_model(model, name)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_its_step_is_the_same_fused_and_unfused(name, checkpoints, make):
    data = make(pretrained_tokenizer())
    batch = next(iter(data.loader(data.examples("train"), 8)))
    student = AutoModelForSeq2SeqLM.from_pretrained(checkpoints / name).eval()
    teacher = AutoModelForSeq2SeqLM.from_pretrained(checkpoints / "marian").eval()
    found = []
    for fused in (True, False):
        objective = Objective(forward_kl, 2.0, 0.5, 1.0, "labels", fused=fused)
        said = [Predictor(m, data.num_classes, split=fused)(batch) for m in (student, teacher)]
        assert bool(said[0].head) == (fused and name != "t5")
        terms = objective.terms(said[0], said[1:], batch["labels"])
        student.zero_grad()
        terms.total.backward()
        kept = [p.grad.clone() for p in student.parameters() if p.grad is not None]
        found.append([terms.total.detach(), *kept])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_it_learns_and_says_the_same_when_saved_and_read_again(name, checkpoints, make, tmp_path):
    data = make(pretrained_tokenizer())
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoints / name)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    batch = next(iter(data.loader(data.examples("train"), 32)))
    predict, losses = Predictor(model, data.num_classes), []
    for _ in range(5):
        optimizer.zero_grad()
        terms = LABELS_ALONE.terms(predict(batch), [], batch["labels"])
        terms.total.div(terms.tokens).backward()
        optimizer.step()
        losses.append(float(terms.total / terms.tokens))
    assert losses[-1] < losses[0] - 0.1
    data.save(model, tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.testing.assert_close(nll_of(again, data), nll_of(model, data))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_decoders_layers_are_found(name, checkpoints):
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoints / name)
    found = find_layers(model)
    assert found is not None
    assert "decoder" in found[0]
    assert len(found[1]) == 1


def test_a_model_that_is_no_translator_is_refused(in_process, checkpoints, make, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=8, n_layer=1, n_head=1, n_positions=24))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel, is not an encoder-decoder"):
        make(pretrained_tokenizer()).check_model(gpt, "gpt")


def test_a_saved_student_translates_without_this_package(make, tmp_path):
    data = make()
    model = model_of(data)
    data.save(model, tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.testing.assert_close(nll_of(again, data), nll_of(model, data))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    source = data._splits["test"].items[0].source
    asked = tokenizer(source, return_tensors="pt", return_token_type_ids=False)
    said = again.generate(**asked, max_new_tokens=24, do_sample=False, num_beams=1)
    ours = data._translate(model, [data.examples("test").source(0)])
    assert tokenizer.batch_decode(said, skip_special_tokens=True)[0].strip() == ours[0]


# Writing


def by_hand(model, source: Tensor, length: int) -> list[int]:
    """The likeliest tokens, reading everything anew each time."""
    said = [model.config.decoder_start_token_id]
    while len(said) <= length and (said[-1] != 2 or len(said) == 1):
        logits = model(
            input_ids=source[None], decoder_input_ids=torch.tensor([said]), use_cache=False
        ).logits
        said.append(int(logits[0, -1, : len(pretrained_tokenizer())].argmax()))
    return said[1:]


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_the_likeliest_translation_is_that_of_reading_it_all_anew(name, checkpoints, make):
    data = make(pretrained_tokenizer())
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoints / name).eval()
    sources = [data.examples("test").source(i) for i in range(3)] + [torch.tensor([4, 5, 2])]
    found = generate(model, data.tokenizer, sources, 12, Sampling(0.0), 0)
    assert found == [by_hand(model, source, 12) for source in sources]


@torch.no_grad()
def test_beams_find_a_text_that_is_no_less_likely(checkpoints, make):
    data = make(pretrained_tokenizer())
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoints / "marian").eval()
    sources = [data.examples("train").source(i) for i in range(16)]

    def mean_log_p(new: list[list[int]]) -> Tensor:
        each = []
        for source, ids in zip(sources, new, strict=True):
            read = torch.tensor([[1, *ids[:-1]]])
            log_p = model(input_ids=source[None], decoder_input_ids=read).logits.log_softmax(-1)
            each.append(log_p[0].gather(-1, torch.tensor(ids)[:, None]).mean())
        return torch.stack(each)

    one, six = (
        mean_log_p(generate(model, data.tokenizer, sources, 12, Sampling(0.0, num_beams=n), 0))
        for n in (1, 6)
    )
    assert six.mean() > one.mean()


def test_beam_search_refuses_a_sampling_temperature():
    with pytest.raises(ConfigError, match=r"set transfer\.temperature=0"):
        Sequence(None, None, 4, None, 1.0, 1.0, 0, 8, 0.0, num_beams=4)


def test_the_students_translations_are_what_is_graded(make):
    data = make()
    batch = next(iter(data.loader(data.examples("train"), 3)))
    sources = data.prompt_tokens(batch, length=2)
    assert [len(s) for s in sources] == batch["attention_mask"].sum(-1).tolist()
    new = [[5, 6, 0], [7], [8, 9]]
    own = data.completion_batch(sources, new)
    assert own["labels"].tolist() == [[5, 6, 0], [7, IGNORED, IGNORED], [8, 9, IGNORED]]
    assert torch.equal(own["input_ids"], batch["input_ids"])
    assert torch.equal(own["attention_mask"], batch["attention_mask"])


# Transfers and measures


def trainer(_):
    return L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)


def test_stored_predictions_are_cut_like_the_labels(make, tmp_path):
    data = make()
    model = model_of(data)
    teacher = Teacher([lambda: model], [1.0], "t", 0.0, data)
    transfer = Cached(20, "hidden", 1, 1, [1], 32)
    transfer.prepare(data, teacher, Workspace(Store(tmp_path), tmp_path, trainer))
    dataset = transfer.dataset(data)
    assert isinstance(dataset, CachedExamples)
    batch = next(iter(data.loader(dataset, 8)))
    (said,), _ = transfer.teacher_predictions([], batch)
    live = Predictor(model.eval(), data.num_classes)(batch)
    kept = batch["labels"] != IGNORED
    with torch.no_grad():
        torch.testing.assert_close(said.logits()[kept], live.logits()[kept])


def test_the_teachers_translations_take_the_place_of_the_targets(make, tmp_path):
    data = make()
    model = model_of(data)
    teacher = Teacher([lambda: model], [1.0], "t", 0.0, data)
    transfer = Sequence(10, None, 16, None, 0.0, 1.0, 0, 4, 0.0, num_beams=2)
    transfer.check(LABELS_ALONE, data, data)
    transfer.prepare(data, teacher, Workspace(Store(tmp_path), tmp_path, trainer))
    written, examples = transfer.dataset(data), data.examples("train")
    assert len(written) == 10
    sources = [examples.source(i) for i in range(10)]
    expected = generate(model, data.tokenizer, sources[:4], 24, Sampling(0.0, num_beams=2), 0)
    for i in range(10):
        assert torch.equal(written[i]["input_ids"], examples[i]["input_ids"])
        if i < 4:
            labels = written[i]["labels"]
            assert labels[labels != IGNORED].tolist() == expected[i]


class Numbered(list):
    """Examples whose source and target are their number."""

    def __init__(self, count):
        super().__init__(range(count))

    def source(self, index):
        return index

    target = source


@pytest.mark.parametrize(
    ("translations", "truth", "score", "expected"),
    [  # as sacrebleu 2.6 prints them
        (
            ["the cat"] + [""] * 9,
            ["the cat"] + ["a dog barks loudly in the yard"] * 9,
            "chrf",
            2.13,
        ),
        (["the dog ran home now"], ["the dog ran away now"], "bleu", 42.73),
        (["a b c d e"], ["a b c d e"], "bleu", 100.0),
        (["a b c d e"], ["a b c d e"], "chrf", 100.0),
        (["xyz"], ["abc def"], "chrf", 0.0),
    ],
)
def test_scores_are_sacrebleus(make, monkeypatch, translations, truth, score, expected):
    data = make()
    given = iter(translations)
    monkeypatch.setattr(data, "_translate", lambda _, sources: [next(given) for _ in sources])
    monkeypatch.setattr(data, "_decode", lambda target: truth[int(target)])
    monkeypatch.setattr(data, "examples", lambda _: Numbered(len(truth)))
    assert data.score_generation(None)[score] == pytest.approx(expected, abs=0.005)


def test_bits_are_of_the_targets_bytes(make):
    data = make()
    quality = data.quality_metric()
    targets = [pair.target for pair in data._splits["test"].items]
    count = sum(len(data.tokenizer(text)["input_ids"]) for text in targets)
    assert quality.bytes_per_token == sum(len(t.encode()) for t in targets) / count


# The command

OURS = [
    *("student=xs", "student.hidden_size=16", "student.max_steps=6"),
    *("teacher=xs", "teacher.max_steps=40"),
    *("data=translation", "data.vocab_size=300", "data.sequence_length=24"),
    *("trainer=cpu", "logger=none"),
]


@pytest.fixture
def run(in_process, pairs_file, tmp_path_factory):
    outputs = tmp_path_factory.getbasetemp() / "translation-runs"

    def run(*overrides, expect=0):
        folder = tmp_path_factory.mktemp("run")
        paths = [f"data.path={pairs_file}", f"paths.outputs={outputs}", f"hydra.run.dir={folder}"]
        done = in_process(*OURS, *paths, *overrides, tiny=False, expect=expect)
        return done if expect else json.loads((folder / "results.json").read_text())

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        ["transfer=online", "loss.hidden.weight=1", "loss.relations.weight=1"],
        ["transfer=cached"],
        ["transfer=sequence", "transfer.temperature=0", "transfer.num_beams=2", "loss.alpha=0"],
        ["transfer=on_policy"],
    ],
    ids=lambda how: how[0],
)
def test_every_transfer_ends_in_scores(run, how):
    results = run(*how)
    assert results["status"] == "finished"
    for role in ("teacher", "student"):
        assert 0 < results[role]["nll"] < 7
        assert {"bleu", "chrf", "bits_per_byte"} <= set(results[role])


@pytest.mark.slow
def test_a_pretrained_teacher_of_another_architecture_serves(run, checkpoints):
    name = f"teacher.name={checkpoints / 'bart'}"
    results = run("teacher=pretrained", name, "teacher.max_steps=0")
    assert results["student"]["teacher_kl"] > 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (["transfer=sequence", "transfer.num_beams=4"], "set transfer.temperature=0"),
        (["student.initialize=teacher_layers"], "set student.initialize=random"),
        (["data.source_column=english"], "no column english (data.source_column=english)"),
        (["data.sequence_length=2"], "data.sequence_length=2 is too short for all"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(run, how, message):
    done = run(*how, expect=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_the_language_that_mbarts_tokenizer_adds_behind_a_target_is_not_predicted(make):
    tokenizer = pretrained_tokenizer()
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {tokenizer.eos_token} {tokenizer.pad_token}",
        special_tokens=[(tokenizer.eos_token, end), (tokenizer.pad_token, pad)],
    )
    examples = make(tokenizer).examples("test")
    for i in range(len(examples)):
        assert examples.target(i).tolist().count(end) == 1
        assert examples.target(i)[-1] == end
        assert examples.source(i)[-2:].tolist() == [end, pad]


def test_a_decoder_begins_as_generation_does(make):
    """T5Gemma's config has no decoder_start_token_id; its decoder begins with bos_token_id."""
    data = make(pretrained_tokenizer())
    sizes = {
        "vocab_size": data.num_classes, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "pad_token_id": data.tokenizer.pad_token_id, "eos_token_id": data.tokenizer.eos_token_id,
        "bos_token_id": 5,
    }  # fmt: skip
    model = T5GemmaForConditionalGeneration(T5GemmaConfig(encoder=sizes, decoder=sizes)).eval()
    data.check_model(model, "mine")
    batch = data.collate([data.examples("test")[i] for i in range(4)])
    ours = Predictor(model, data.num_classes)(batch).logits()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    kept = batch["labels"] != IGNORED
    torch.testing.assert_close(ours[kept], model(**inputs).logits[kept])
    begun = model.generate(batch["input_ids"], max_new_tokens=1)[:, 0]
    assert begun.tolist() == [5] * len(begun)
