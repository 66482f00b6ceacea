"""Pretrained models of every architecture: the same numbers as in transformers, or refused."""

import re

import pytest
from compared import compare, make_tasks, make_tokenizer
from tiny_models import MAPPINGS, architectures, reason_not_built

# In `make test`: one for each way to make logits, positions, masks and states.
QUICK = {
    "causal": "bart bert big_bird bloom cohere deepseek_v3 falcon_h1 gemma2 gemma3n_text gpt2 "
    "gpt_neo gpt_oss granite jamba llama llama4 mamba minicpm3 mixtral modernbert-decoder opt "
    "phi3 qwen2 qwen3 qwen3_5 qwen3_moe recurrent_gemma rembert roberta rwkv xlm xlnet",
    "masked": "bart bert deberta-v2 ibert modernbert neomme perceiver rembert roberta xlm",
    "classification": "bart bert canine convbert deberta-v2 distilbert fnet llama modernbert "
    "roberta t5 t5gemma xlnet",
    "translation": "bart encoder-decoder fsmt m2m_100 marian mbart prophetnet qwen2_audio t5 "
    "t5gemma",
}
REFUSED = {
    "causal": "cpmant emu3 mllama prophetnet xlnet xlstm",
    "masked": "bart mbart mvp perceiver",
    "classification": "canine convbert fnet funnel nystromformer t5gemma t5gemma2 xlnet yoso",
    "translation": "audioflamingo3 glmasr granite_speech granite_speech_plus "
    "moss_transcribe_diarize musicflamingo prophetnet qwen2_audio qwen3_asr voxtral "
    "voxtral_realtime",
}
REASON = re.compile(
    "depends on the (tokens that follow|padding of a batch)|cannot generate text|"
    "is (an|not an) encoder-decoder|Unrecognized configuration|one for each token"
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("tasks"), make_tokenizer())


def cases():
    for task in MAPPINGS:
        for name in architectures(task):
            if not reason_not_built(task, name):
                marks = () if name in QUICK[task].split() else pytest.mark.long
                yield pytest.param(task, name, marks=marks, id=f"{task}-{name}")


@pytest.mark.parametrize(("task", "name"), cases())
def test_a_model_gives_the_numbers_of_transformers_or_is_refused(task, name, tasks, tmp_path):
    found = compare(name, task, tasks[task], tmp_path)
    if name in REFUSED[task].split():
        assert REASON.search(found.refused), found
        assert "\n" not in found.refused
        return
    assert not found.refused
    assert found.largest <= 1e-5, found
    assert found.generation is not False
