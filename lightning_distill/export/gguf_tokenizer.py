"""A byte-level BPE tokenizer in llama.cpp's format.

A GGUF file stores the pre-tokenizer as a name; its rules are in llama.cpp's source
(src/llama-vocab.cpp). Other pre-tokenizers are refused, because with a wrong name llama.cpp
produces different tokens without an error.
"""

import json
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_distill.models.inspection import stops_of

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{REST}": "llama-bpe",
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{REST}": "qwen2",
}
SUPPORTED = "GPT-2's, SmolLM's, Llama 3's and Qwen's"


def problems(tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    """The reasons why the tokenizer cannot be written."""
    if tokenizer is None or not tokenizer.is_fast:
        yield "the tokenizer has no tokenizer.json"
        return
    state = _state(tokenizer)
    if state["model"]["type"] != "BPE" or state["model"].get("byte_fallback"):
        yield "the tokenizer is not a byte-level BPE"
        return
    name = pre_tokenizer_name(state)
    if name is None:
        yield f"the tokenizer's pre-tokenizer is not supported; these are: {SUPPORTED}"
    elif bool(state["model"].get("ignore_merges")) != (name == "llama-bpe"):
        yield "the tokenizer's ignore_merges differs from llama.cpp's for its pre-tokenizer"
    normalizer = (state["normalizer"] or {}).get("type")
    if normalizer and not (normalizer == "NFC" and name == "qwen2"):
        yield f"the tokenizer's normalizer {normalizer} is not supported"


def pre_tokenizer_name(state: dict[str, Any]) -> str | None:
    """llama.cpp's name of the pre-tokenizer; None if it has none."""
    steps = state["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    *earlier, byte_level = steps
    use_regex = byte_level.get("use_regex", True)
    if not earlier:
        return "gpt-2" if use_regex else None
    if len(earlier) > 1:
        return None
    (step,) = earlier
    if step["type"] == "Digits" and step["individual_digits"] and use_regex:
        return "smollm"
    if step["type"] == "Split" and not use_regex:
        isolated = step["behavior"] == "Isolated" and not step["invert"]
        return PATTERNS.get(step["pattern"].get("Regex", "")) if isolated else None
    return None


def add_tokenizer(writer: Any, tokenizer: Any, model: Any, num_rows: int) -> None:
    """num_rows: of the embedding; llama.cpp needs a token for each."""
    state = _state(tokenizer)
    tokens = {id: token for token, id in tokenizer.get_vocab().items()}
    merges = state["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(state))
    writer.add_token_list([tokens.get(id, f"[PAD{id}]") for id in range(num_rows)])
    writer.add_token_types(_token_types(state, tokens, num_rows))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    _add_special_tokens(writer, tokenizer, model, num_rows)
    if (template := tokenizer.chat_template) is not None:
        if not isinstance(template, str):
            template = [{"name": name, "template": text} for name, text in template.items()]
        writer.add_chat_template(template)


def _token_types(state: dict[str, Any], tokens: dict[int, str], num_rows: int) -> list[Any]:
    from gguf import TokenType

    added_tokens = {token["id"]: token for token in state["added_tokens"]}

    def token_type(id: int) -> TokenType:
        if id not in tokens:
            return TokenType.UNUSED
        if id not in added_tokens:
            return TokenType.NORMAL
        return TokenType.CONTROL if added_tokens[id]["special"] else TokenType.USER_DEFINED

    return [token_type(id) for id in range(num_rows)]


def _add_special_tokens(writer: Any, tokenizer: Any, model: Any, num_rows: int) -> None:
    """The end token is the one that the student learned, which may not be the tokenizer's."""
    eos = next((id for id in stops_of(model, tokenizer) if id < num_rows), None)
    bos = tokenizer.bos_token_id
    # Without an id in the file, llama.cpp would take an arbitrary token as the first one.
    first = next((id for id in (bos, model.config.bos_token_id, eos) if id is not None), None)
    if first is not None:
        writer.add_bos_token_id(first)
    if eos is not None:
        writer.add_eos_token_id(eos)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    ids = tokenizer("x")["input_ids"]
    writer.add_add_bos_token(len(ids) > 1 and ids[0] == bos)
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == eos)


def _state(tokenizer: Any) -> dict[str, Any]:
    """The contents of tokenizer.json."""
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return state
