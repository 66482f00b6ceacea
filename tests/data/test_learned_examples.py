"""Training examples as the doctor shows them."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_distill.constants import IGNORED
from lightning_distill.data.sources.conversations import Conversations
from lightning_distill.data.sources.labelled_rows import LabelledRows
from lightning_distill.data.sources.pairs import Pairs
from lightning_distill.data.sources.text import Text
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tasks.chat import Chat
from lightning_distill.data.tasks.classification import Classification
from lightning_distill.data.tasks.masked_lm import MaskedLM
from lightning_distill.data.tasks.translation import Translation
from lightning_distill.data.tokenizer import marked_text, train_tokenizer
from lightning_distill.storage.artifacts import Store

TOKENIZER = train_tokenizer(["soft targets of a teacher"] * 3, 300)
TASKS = {
    "text": lambda path: CausalLM(Text, 16, 4, 300, isolate_documents=False, path=path),
    "masked": lambda path: MaskedLM(Text, 16, 4, 300, mask_share=0.3, path=path),
    "chat": lambda path: Chat(
        *(Conversations, 40, 4, 300),
        **{"chat_template": None, "column": "messages", "skip_bad_rows": False, "path": path},
    ),
    "labels": lambda path: Classification(
        *(LabelledRows, 64, 4, 300),
        **{"column": "text", "label_column": "label", "skip_bad_rows": False, "path": path},
    ),
    "pairs": lambda path: Translation(
        Pairs, 64, 4, 300, source_column="text", target_column="target", path=path
    ),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    rows = []
    for i in range(40):
        asked = {"role": "user", "content": f"What is {i}?"}
        chat = [asked, {"role": "assistant", "content": f"It is {i * i}."}]
        text, target = f"a soft target, number {i}", f"ein weiches Ziel, Nummer {i}"
        rows.append({"text": text, "target": target, "label": f"L{i % 2}", "messages": chat})
    file = tmp_path_factory.mktemp("rows") / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.mark.parametrize("task", TASKS)
def test_outside_of_the_brackets_is_what_carries_loss(file, tmp_path, task):
    data = TASKS[task](file)
    data.prepare(Store(tmp_path), None)
    for index in range(3):
        shown = re.sub("⟦.*?⟧", "", data.learned_example(index))
        example = data.examples("train")[index]
        if task == "labels":
            assert shown == " " + data.labels[int(example["labels"])]
            continue
        learned = example["labels"][example["labels"] != IGNORED]
        assert shown.strip() == data.tokenizer.decode(learned).strip()


@given(st.lists(st.tuples(st.integers(257, 280), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None)
def test_runs_are_told_apart_and_all_is_shown_up_to_what_is_learned_last(tokens):
    ids, learned = (torch.tensor(values) for values in zip(*tokens, strict=True))
    text = marked_text(TOKENIZER, ids, learned, limit=4000)
    stop = int(learned.nonzero().max()) + 1 if learned.any() else len(ids)
    assert re.sub("[⟦⟧]", "", text) == TOKENIZER.decode(ids[:stop])
    assert re.sub("⟦.*?⟧", "", text, flags=re.S) == TOKENIZER.decode(ids[learned])


def test_a_long_example_is_cut():
    ids = torch.full((5000,), 70)
    assert len(marked_text(TOKENIZER, ids, ids > 0)) == 401
    assert len(marked_text(TOKENIZER, ids, torch.arange(5000) == 4999)) < 110
