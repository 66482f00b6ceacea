import json
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.models import pretrained, sizes
from lightning_distill.models.inspection import count_parameters
from lightning_distill.models.spec import ModelSpec, PretrainedSource
from lightning_distill.models.tokenizers import load_tokenizers


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a text about soft targets"] * 3, 300)


@pytest.fixture
def saved(tmp_path, tokenizer):
    """A pretrained GPT-2 with padded embedding rows."""
    config = GPT2Config(vocab_size=len(tokenizer) + 20, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def source(name, role="teacher"):
    """A pretrained model, which is not trained further."""
    make = partial(pretrained.load, name, None, "float32", False)
    return ModelSpec(role, make, 0, PretrainedSource(name))


def empty_task(tokenizer, sequence_length=32):
    """A task without examples, with this tokenizer."""
    data = CausalLM(lambda: None, sequence_length, 4, 300, isolate_documents=False)
    data.tokenizer = tokenizer
    return data


def load(name, tokenizer):
    return pretrained.load(str(name), None, "float32", False, empty_task(tokenizer))


def size(role="student"):
    return ModelSpec(role, sizes.build, 1)


def test_the_embedding_enters_the_residual_stream_with_unit_variance(tokenizer):
    model = sizes.decoder(sizes.Size(64, 2, 2, 64), tokenizer)
    inputs = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(torch.arange(len(tokenizer))[None, :64])
    assert float(inputs[0].std()) == pytest.approx(1.0, rel=0.1)


def test_a_model_built_from_a_size_is_a_transformers_class_and_reloads(tmp_path, tokenizer):
    model = sizes.decoder(sizes.Size(32, 2, 2, 64), tokenizer).eval()
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(10)[None]
    assert torch.equal(model(ids).logits, reloaded(ids).logits)
    assert count_parameters(model) == count_parameters(reloaded)


def test_the_weights_depend_on_the_seed(tokenizer):
    def weights(seed):
        torch.manual_seed(seed)
        return sizes.decoder(sizes.Size(16, 1, 2, 64), tokenizer).model.embed_tokens.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_pretrained_model_is_loaded_as_it_was_saved(saved, tokenizer):
    model = source(str(saved)).build(empty_task(tokenizer))
    expected = GPT2LMHeadModel.from_pretrained(saved)
    assert type(model) is GPT2LMHeadModel
    assert torch.equal(model.transformer.wte.weight, expected.transformer.wte.weight)


def test_a_pretrained_model_brings_its_tokenizer(saved, tokenizer):
    loaded = load_tokenizers([source(str(saved))], size(), loss_shares=True)
    assert loaded.teacher is loaded.student
    assert loaded.student.get_vocab() == tokenizer.get_vocab()
    trained = load_tokenizers([size("teacher")], size(), loss_shares=True)
    assert (trained.teacher, trained.student) == (None, None)


@pytest.fixture
def foreign(tmp_path_factory):
    """A GPT-2 with a vocabulary of its own."""
    folder = tmp_path_factory.mktemp("foreign")
    train_tokenizer(["entirely other words"] * 3, 280).save_pretrained(folder)
    config = GPT2Config(vocab_size=280, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def test_different_vocabularies_are_refused_where_the_loss_needs_one(saved, foreign):
    with pytest.raises(ConfigError, match=r"different vocabularies.*Choose loss=universal"):
        load_tokenizers([source(str(saved))], source(foreign, "student"), loss_shares=True)
    loaded = load_tokenizers([source(str(saved))], source(foreign, "student"), loss_shares=False)
    assert len(loaded.teacher) != len(loaded.student)
    assert not loaded.shared


def test_several_teachers_must_share_a_vocabulary_with_any_loss(saved, foreign):
    with pytest.raises(ConfigError, match=r"teacher.members.*cannot be averaged"):
        load_tokenizers([source(str(saved)), source(foreign)], size(), loss_shares=False)


def test_tokenizers_with_one_vocabulary_must_encode_alike(saved, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    AutoTokenizer.from_pretrained(saved).save_pretrained(other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    del tokenizer["model"]["merges"][0]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    texts = ["a text about soft targets", "zzz"]
    same = load_tokenizers([source(str(saved))], source(str(saved), "student"), loss_shares=True)
    same.check_encoding(texts)
    loaded = load_tokenizers([source(str(saved))], source(str(other), "student"), loss_shares=True)
    assert loaded.shared
    with pytest.raises(ConfigError, match=r"encode 1 of 2 texts differently, such as 'a text"):
        loaded.check_encoding(texts)


def test_changed_weights_change_the_fingerprint(saved):
    before = pretrained.fingerprint(str(saved), None)
    assert before == pretrained.fingerprint(str(saved), None)
    model = GPT2LMHeadModel.from_pretrained(saved)
    with torch.no_grad():
        model.transformer.wte.weight[0, 0] += 1
    model.save_pretrained(saved)
    assert before != pretrained.fingerprint(str(saved), None)


def test_a_pickle_is_not_read(saved, tokenizer):
    model = GPT2LMHeadModel.from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    torch.save(model.state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(saved, tokenizer)


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "not a/ valid name!"])
def test_a_model_that_does_not_exist_is_named(name, tokenizer):
    with pytest.raises(ConfigError, match=f"name={name}"):
        load(name, tokenizer)


def test_a_pretrained_role_without_a_name_is_refused_with_the_missing_key():
    with pytest.raises(ConfigError, match=r"teacher=pretrained needs teacher.name="):
        load_tokenizers([source(None)], size(), loss_shares=True)


def test_a_model_with_fewer_rows_than_its_tokenizer_is_refused(saved):
    other = train_tokenizer([f"word{i * i}" for i in range(2000)], 1000)
    with pytest.raises(ConfigError, match="do not match"):
        source(str(saved)).build(empty_task(other))


def test_blocks_longer_than_the_models_positions_are_refused(saved, tokenizer):
    with pytest.raises(ConfigError, match="sequence_length=2000 is longer than the 1024 positions"):
        source(str(saved)).build(empty_task(tokenizer, 2000))
