"""The GGUF file as gguf, transformers and llama.cpp (if installed) read it, and llama.cpp's
arithmetic on it, written out."""

import numpy as np
import pytest
import torch
from gguf_models import SIZE, TEXT, export_gguf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.export import gguf as gguf_export
from lightning_distill.export import gguf_tokenizer

gguf = pytest.importorskip("gguf")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZE, tie_word_embeddings=False, rms_norm_eps=1e-4),
    "llama, biases, tied": LlamaConfig(
        **SIZE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama, scaled positions": LlamaConfig(**SIZE, rope_parameters=LLAMA3),
    "granite": GraniteConfig(
        **SIZE,
        tie_word_embeddings=True,
        embedding_multiplier=12.0,
        residual_multiplier=0.7,
        attention_multiplier=0.2,
        logits_scaling=3.0,
    ),
    "qwen2": Qwen2Config(**SIZE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZE, head_dim=16, tie_word_embeddings=False),
    "gpt2": GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, bos_token_id=0),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["it's a small text of small words, 12 of them\n"] * 50, 300)


@pytest.fixture
def export(tmp_path, tokenizer):
    """Saves a model as a run's student, exports it, and returns both model and file."""

    def write(config, tokenizer=tokenizer, dtype=torch.float32):
        return export_gguf(config, tokenizer, tmp_path, dtype)

    return write


def read(file):
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def llama_cpp_logits(file, ids):
    """The logits [T, V] of llama.cpp's `llama` and `granite` graphs, from the file alone.

    The rotary embedding rotates channel 2i of a head together with 2i + 1.
    """
    fields, tensors = read(file)
    name = fields["general.architecture"]
    w = {key: torch.from_numpy(np.array(tensor.data)) for key, tensor in tensors.items()}
    get = {key.removeprefix(f"{name}."): value for key, value in fields.items()}
    heads, shared = get["attention.head_count"], get["attention.head_count_kv"]
    width, T = get["attention.key_length"], len(ids)
    scale = get.get("attention.scale") or width**-0.5
    factors = w.get("rope_freqs.weight", torch.ones(width // 2))
    frequencies = get["rope.freq_base"] ** (-torch.arange(0, width, 2) / width) / factors
    angles = torch.arange(T)[:, None] * frequencies  # [T, d / 2]

    def norm(x, key):
        rms = (x.square().mean(-1, keepdim=True) + get["attention.layer_norm_rms_epsilon"]).sqrt()
        return x / rms * w[f"{key}.weight"]

    def linear(x, key):
        return x @ w[f"{key}.weight"].T + w.get(f"{key}.bias", torch.zeros(()))

    def rotate(x):  # [H, T, d]
        even, odd = x[..., ::2], x[..., 1::2]
        rotated = (
            even * angles.cos() - odd * angles.sin(),
            even * angles.sin() + odd * angles.cos(),
        )
        return torch.stack(rotated, -1).flatten(-2)

    x = w["token_embd.weight"][ids] * get.get("embedding_scale", 1.0)
    residual = get.get("residual_scale", 1.0)
    for layer in range(get["block_count"]):
        b = f"blk.{layer}"
        h = norm(x, f"{b}.attn_norm")
        q, k, v = (linear(h, f"{b}.attn_{one}").view(T, -1, width).transpose(0, 1) for one in "qkv")
        k, v = (one.repeat_interleave(heads // shared, 0) for one in (rotate(k), v))
        scores = rotate(q) @ k.mT * scale
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        attended = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + residual * linear(attended, f"{b}.attn_output")
        h = norm(x, f"{b}.ffn_norm")
        gated = torch.nn.functional.silu(linear(h, f"{b}.ffn_gate")) * linear(h, f"{b}.ffn_up")
        x = x + residual * linear(gated, f"{b}.ffn_down")
    output = w.get("output.weight", w["token_embd.weight"])
    return norm(x, "output_norm") @ output.T / get.get("logit_scale", 1.0)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2"])
def test_transformers_loads_the_same_model_from_the_file(export, name):
    model, file = export(CONFIGS[name])
    options = {"head_dim": 16} if name == "qwen3" else {}  # transformers ignores the file's
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, **options
    ).eval()
    ids = torch.randint(0, 320, (2, 20))
    assert torch.allclose(logits(loaded, ids), logits(model, ids), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith(("llama", "gran"))])
def test_llama_cpps_arithmetic_on_the_file_gives_the_models_logits(export, name):
    model, file = export(CONFIGS[name])
    ids = torch.randint(0, 320, (40,))
    expected = logits(model, ids[None])[0]
    assert torch.allclose(llama_cpp_logits(file, ids), expected, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_file_has_every_weight_once_and_exactly(export, name):
    """Except for the order of its elements, which may be llama.cpp's."""
    model, file = export(CONFIGS[name])
    _, tensors = read(file)
    stored = sorted(tuple(np.sort(np.ravel(one.data)).tolist()) for one in tensors.values())
    weights = sorted(tuple(w.detach().flatten().sort()[0].tolist()) for w in model.parameters())
    factors = 1 if name == "llama, scaled positions" else 0
    assert len(stored) == len(weights) + factors
    assert set(weights) <= set(stored)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrices_keep_16_bits_and_vectors_have_32(export, dtype):
    model, file = export(CONFIGS["qwen3"], dtype=dtype)
    precision = gguf_export.PRECISIONS[dtype]
    assert file.name == f"model-{precision}.gguf"
    _, tensors = read(file)
    norm, up = tensors["output_norm.weight"], tensors["blk.0.ffn_up.weight"]
    assert norm.tensor_type.name == "F32"
    assert up.tensor_type.name == precision
    values = torch.from_numpy(np.array(gguf.dequantize(up.data, up.tensor_type)))
    assert torch.equal(values.to(dtype), model.model.layers[0].mlp.up_proj.weight)


def test_the_file_has_the_tokenizer(export, tokenizer):
    _, file = export(CONFIGS["granite"])
    fields, _ = read(file)
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(tokens) == 320  # rows of the embedding
    types = fields["tokenizer.ggml.token_type"]
    control, normal, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    assert types[tokenizer.eos_token_id] == control
    assert set(types[1 : len(tokenizer)]) == {normal}
    assert set(types[len(tokenizer) :]) <= {unused}
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.bos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert not fields["tokenizer.ggml.add_bos_token"]


PRE_TOKENIZERS = {
    name: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for pattern, name in gguf_tokenizer.PATTERNS.items()
}
PRE_TOKENIZERS["gpt-2"] = pre_tokenizers.ByteLevel(add_prefix_space=False)
PRE_TOKENIZERS["smollm"] = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


def bpe(pre_tokenizer, **settings):
    """A byte-level tokenizer with a beginning-of-text token and a few merges."""
    state = {
        **{symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
        **{word: 256 + i for i, word in enumerate(["he", "ll", "hell", "Ġs", "12", "123"])},
    }
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "s"), ("1", "2"), ("12", "3")]
    tokenizer = Tokenizer(models.BPE(state, merges, **settings))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(["<mine>"])
    first = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=first)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_the_pre_tokenizer_has_llama_cpps_name(export, name):
    tokenizer = bpe(PRE_TOKENIZERS[name], ignore_merges=name == "llama-bpe")
    fields, _ = read(export(CONFIGS["llama"], tokenizer)[1])
    assert fields["tokenizer.ggml.pre"] == name
    assert fields["tokenizer.ggml.add_bos_token"]
    types = fields["tokenizer.ggml.token_type"]
    assert types[tokenizer.convert_tokens_to_ids("<mine>")] == gguf.TokenType.USER_DEFINED


def unigram():
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="a")


def normalized():
    tokenizer = bpe(PRE_TOKENIZERS["gpt-2"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unigram, "not a byte-level BPE"),
        (normalized, "normalizer Lowercase"),
        (lambda: bpe(PRE_TOKENIZERS["llama-bpe"]), "ignore_merges"),
        (
            lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "pre-tokenizer is not",
        ),
        (
            lambda: bpe(
                pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), PRE_TOKENIZERS["gpt-2"]])
            ),
            "pre-tokenizer is not",
        ),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_change_is_refused(export, make, message):
    with pytest.raises(ConfigError, match=message) as refused:
        export(CONFIGS["llama"], make())
    assert "export.converter" in str(refused.value)


UNSUPPORTED = [
    (MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=1), "GraniteForCausalLM, Llama"),
    (LlamaConfig(**SIZE, hidden_act="gelu"), "the activation gelu is not silu"),
    (
        LlamaConfig(**SIZE, rope_parameters={**LLAMA3, "rope_type": "yarn"}),
        "of type yarn are not supported",
    ),
    (
        Qwen3Config(**SIZE, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "sliding-window attention",
    ),
    (
        GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, activation_function="relu"),
        "the activation relu",
    ),
    (
        GPT2Config(
            vocab_size=320, n_embd=32, n_layer=1, n_head=2, scale_attn_by_inverse_layer_idx=True
        ),
        "scales attention differently",
    ),
]


@pytest.mark.parametrize(("config", "message"), UNSUPPORTED, ids=[m for _, m in UNSUPPORTED])
def test_a_model_that_llama_cpp_would_compute_differently_is_refused(export, config, message):
    with pytest.raises(ConfigError, match=message) as refused:
        export(config)
    assert len(str(refused.value).splitlines()) == 1


def test_the_named_converter_is_used(tmp_path, tokenizer):
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("import sys, pathlib\npathlib.Path(sys.argv[3]).write_text(str(sys.argv))")
    file = tmp_path / "model.gguf"
    gguf_export.convert(script, tmp_path / "student", file, "BF16")
    command = [str(script), str(tmp_path / "student"), "--outfile", str(file), "--outtype", "bf16"]
    assert file.read_text() == str(command)


def test_an_error_of_the_converter_is_shown(tmp_path):
    script = tmp_path / "convert.py"
    script.write_text("raise NotImplementedError('no such thing')")
    with pytest.raises(ConfigError, match="wrote no file: NotImplementedError: no such thing"):
        gguf_export.convert(script, tmp_path, tmp_path / "model.gguf", "F32")


@pytest.fixture
def llama_cpp():
    return pytest.importorskip("llama_cpp")


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_gives_the_same_logits(llama_cpp, export, name):
    model, file = export(CONFIGS[name])
    f32 = 0  # precision of the KV cache
    llama = llama_cpp.Llama(
        str(file), n_ctx=64, logits_all=True, type_k=f32, type_v=f32, n_threads=1, verbose=False
    )
    ids = torch.randint(0, 320, (40,))
    llama.eval(ids.tolist())
    actual = torch.from_numpy(llama.scores[:40].copy())
    expected = logits(model, ids[None])[0]
    exact = 1e-3 if name == "gpt2" else 1e-4  # its GELU is a table of 16-bit values
    assert torch.allclose(actual, expected, atol=exact * expected.abs().max())


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_llama_cpp_gives_the_same_tokens(llama_cpp, export, name):
    tokenizer = bpe(PRE_TOKENIZERS[name], ignore_merges=name == "llama-bpe")
    _, file = export(CONFIGS["llama"], tokenizer)
    llama = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    text = f"{TEXT}<mine></s>"
    ids = llama.tokenize(text.encode(), add_bos=True, special=True)
    assert ids == tokenizer(text)["input_ids"]
