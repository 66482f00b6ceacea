"""Masked language models: what is hidden, and the recipe of DistilBERT."""

import json

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

from lightning_distill.data.sources.text import Text
from lightning_distill.data.tasks.masked_lm import MaskedBlocks, MaskedLM
from lightning_distill.data.tokenizer import MASK, train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import Store

T = 20


@pytest.fixture
def tokenizer():
    return train_tokenizer(["a text about soft targets"] * 3, 300, [MASK])


@pytest.fixture
def framing(tokenizer):
    """One that puts [CLS] and [SEP] around a text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    ids = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ids
    )
    return tokenizer


@pytest.fixture
def tokens(tokenizer):
    """Of 2,000 blocks and a bit, every tenth of them the end of a text."""
    ids = torch.randint(5, len(tokenizer), (2000 * T + 7,), dtype=torch.int32)
    ids[::10] = tokenizer.eos_token_id
    return ids


def test_a_label_is_what_stood_there_and_nothing_else_is_changed(tokens, tokenizer):
    blocks = MaskedBlocks(tokens, T, 0.15, tokenizer)
    assert len(blocks) == 2000
    for number in (0, 1, 1999):
        block = blocks[number]
        whole = tokens[number * T : (number + 1) * T].long()
        hidden = block["labels"] != -100
        assert torch.equal(torch.where(hidden, block["labels"], block["input_ids"]), whole)
        assert not hidden[whole == tokenizer.eos_token_id].any()
        assert int(hidden.sum()) == round(0.15 * 18)  # of 20 tokens two are ends
        assert int(block["block"]) == number


def test_of_the_tokens_chosen_eight_in_ten_are_masked_and_one_in_ten_is_another(tokens, tokenizer):
    blocks = MaskedBlocks(tokens, T, 0.15, tokenizer)
    every = [blocks[number] for number in range(2000)]
    ids, labels = (torch.stack([x[name] for x in every]) for name in ("input_ids", "labels"))
    hidden = labels != -100
    shown, truth = ids[hidden], labels[hidden]
    masked = shown == tokenizer.mask_token_id
    same = shown == truth
    count = len(truth)
    assert float(masked.float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float(same.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert float((~masked & ~same).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert len(shown[~masked & ~same].unique()) > 200  # of 300
    places = hidden.float().mean(0)[torch.arange(T) % 10 != 0]
    assert places.sub(count / 2000 / 18).abs().max() < 0.04


def test_the_same_tokens_are_hidden_in_each_pass_and_others_in_another_block(tokens, tokenizer):
    tokens = tokens[: 2 * T].clone()
    tokens[T:] = tokens[:T]
    once, again = (MaskedBlocks(tokens, T, 0.15, tokenizer) for _ in "12")
    for name in ("input_ids", "labels"):
        assert torch.equal(once[1][name], again[1][name])
    assert not torch.equal(once[0]["labels"], once[1]["labels"])


def test_each_block_is_framed_as_a_text_and_its_frame_is_never_hidden(tokens, framing):
    blocks = MaskedBlocks(tokens, T, 0.5, framing)
    block = blocks[3]
    assert len(block["input_ids"]) == blocks.positions == T
    assert int(block["input_ids"][0]) == framing.cls_token_id
    assert int(block["input_ids"][-1]) == framing.sep_token_id
    assert (block["labels"][[0, -1]] == -100).all()
    own = torch.where(block["labels"] == -100, block["input_ids"], block["labels"])[1:-1]
    assert torch.equal(own, tokens[3 * 18 : 4 * 18].long())


def make(text_file, store, length=16, tokenizer=None, share=0.15):
    data = MaskedLM(Text, length, 4, 300, mask_share=share, path=str(text_file))
    data.prepare(store, tokenizer)
    return data


def test_our_tokenizer_has_a_mask_and_one_without_is_refused(text_file, tmp_path):
    store = Store(tmp_path)
    data = make(text_file, store)
    assert data.tokenizer.mask_token == MASK
    assert "hidden tokens, 1" in data.check_labels()
    with pytest.raises(ConfigError, match=r"has no mask token \(mask_token\)"):
        make(text_file, store, tokenizer=train_tokenizer(["a text"], 300))
    with pytest.raises(ConfigError, match=r"data.mask_share=1.5 must be a number from 0.01 to 0.9"):
        make(text_file, store, share=1.5)
    with pytest.raises(ConfigError, match="tokens to the validation split, fewer than one block"):
        make(text_file, store, length=1500)


def test_a_sample_shows_the_guesses_in_their_places(text_file, tmp_path):
    data = make(text_file, Store(tmp_path))
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.cls.predictions.bias[data.tokenizer.get_vocab()["x"]] = 100
    prompt, answer = data.sample_prompts()[0], data.sample_answer(model, 0, None, 0)
    assert MASK in prompt
    assert MASK not in answer
    assert answer.count("[x]") == int((data.examples("test")[0]["labels"] != -100).sum())


@pytest.fixture(scope="module")
def run(in_process, text_file, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")

    def call(*overrides, folder=None, expect=0):
        sizes = ("student.hidden_size=16", "teacher.hidden_size=16", "teacher.num_hidden_layers=3")
        named = [o.split("=")[0] for o in overrides if o.endswith("=pretrained")]
        own = [o for o in sizes if o.split(".")[0] not in named]
        folder = folder or tmp_path_factory.mktemp("run")
        done = in_process(
            "data=masked_text", f"data.path={text_file}", "data.vocab_size=300",
            "data.sequence_length=32", "student=xs", "teacher=xs", *own, "student.max_steps=10",
            *([] if "teacher" in named else ["teacher.max_steps=40"]), "trainer=cpu",
            "logger=none", f"paths.outputs={outputs}", f"hydra.run.dir={folder}",
            "optimizer.lr=1e-3", *overrides, tiny=False, expect=expect,
        )  # fmt: skip
        return json.loads((folder / "results.json").read_text()) if not expect else done.stderr

    return call


RECIPE = (
    "student.initialize=teacher_layers", "student.layers=2", "loss.temperature=2",
    "loss.hidden.weight=1",
    "loss.hidden.distance=cosine", "loss.hidden.layers=last",
)  # fmt: skip


def test_the_recipe_of_distilbert_leads_nearer_to_the_teacher(run, tmp_path):
    found = run(*RECIPE, folder=tmp_path)
    alone = run("loss.alpha=0")["student"]
    assert found["student"]["nll"] < alone["nll"]
    assert found["student"]["teacher_kl"] < 0.5 * alone["teacher_kl"]
    assert "bits_per_byte" not in found["student"]
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert model.config.num_hidden_layers == 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.mask_token == MASK
    ids = tokenizer(f"a teacher {MASK}", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, ids.shape[1], 300)


def test_a_cache_of_all_tokens_teaches_what_the_teacher_would(run):
    stored = ["transfer=cached", "transfer.stored=topk", "transfer.k=300", "transfer.bits=16"]
    online, cached = run(), run(*stored)
    assert cached["student"]["nll"] == pytest.approx(online["student"]["nll"], abs=1e-3)


def test_a_model_that_was_never_taught_to_guess_is_no_teacher(run, tmp_path, tokenizer):
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    said = run("teacher=pretrained", f"teacher.name={tmp_path}", expect=2)
    assert "has no trained masked-language-modeling head" in said
