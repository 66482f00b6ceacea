"""A byte-level BPE tokenizer as llama.cpp reads it.

llama.cpp knows how text is split before the merges by a name alone, and has the rules in its code
(src/llama-vocab.cpp). Tokenizers with other rules are refused: a wrong name gives other tokens,
and no error.
"""

import json
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{REST}": "llama-bpe",
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{REST}": "qwen2",
}
KNOWN = "GPT-2's, SmolLM's, Llama 3's and Qwen's"


def problems(tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    """Why it cannot be written; nothing where it can."""
    if tokenizer is None or not tokenizer.is_fast:
        yield "the tokenizer has no tokenizer.json"
        return
    state = _state(tokenizer)
    if state["model"]["type"] != "BPE" or state["model"].get("byte_fallback"):
        yield "the tokenizer is no byte-level BPE"
        return
    name = splitting(state)
    if name is None:
        yield f"the tokenizer splits text otherwise than the ways that can be written ({KNOWN})"
    elif bool(state["model"].get("ignore_merges")) != (name == "llama-bpe"):
        yield "the tokenizer's ignore_merges is not what llama.cpp does for its way to split text"
    normalizer = (state["normalizer"] or {}).get("type")
    if normalizer and not (normalizer == "NFC" and name == "qwen2"):
        yield f"the tokenizer's normalizer {normalizer} cannot be written"


def splitting(state: dict[str, Any]) -> str | None:
    """llama.cpp's name of how text is split before the merges."""
    steps = state["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    *before, last = steps
    if not before:
        return "gpt-2" if last.get("use_regex", True) else None
    if len(before) > 1:
        return None
    (step,) = before
    if step["type"] == "Digits" and step["individual_digits"] and last.get("use_regex", True):
        return "smollm"
    if step["type"] == "Split" and not last.get("use_regex", True):
        whole = step["behavior"] == "Isolated" and not step["invert"]
        return PATTERNS.get(step["pattern"].get("Regex", "")) if whole else None
    return None


def add(writer: Any, tokenizer: Any, config: Any, rows: int) -> None:
    """rows: of the embedding, for each of which llama.cpp wants a token."""
    import gguf

    state = _state(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting(state))
    tokens = {id: token for token, id in tokenizer.get_vocab().items()}
    added = {one["id"]: one["special"] for one in state["added_tokens"]}
    types = [
        gguf.TokenType.UNUSED
        if id not in tokens
        else gguf.TokenType.NORMAL
        if id not in added
        else gguf.TokenType.CONTROL
        if added[id]
        else gguf.TokenType.USER_DEFINED
        for id in range(rows)
    ]
    writer.add_token_list([tokens.get(id, f"[PAD{id}]") for id in range(rows)])
    writer.add_token_types(types)
    merges = state["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    eos = tokenizer.eos_token_id
    bos = tokenizer.bos_token_id
    # Both have another token's id in llama.cpp where the file names none.
    begins = next((id for id in (bos, config.bos_token_id, eos) if id is not None), None)
    if begins is not None:
        writer.add_bos_token_id(begins)
    if eos is not None:
        writer.add_eos_token_id(eos)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    whole = tokenizer("x")["input_ids"]
    writer.add_add_bos_token(len(whole) > 1 and whole[0] == bos)
    writer.add_add_eos_token(len(whole) > 1 and whole[-1] == eos)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(_templates(tokenizer.chat_template))


def _templates(found: Any) -> Any:
    if isinstance(found, str):
        return found
    return [{"name": name, "template": text} for name, text in found.items()]


def _state(tokenizer: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return state
