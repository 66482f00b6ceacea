"""The folder that the commands of commands.yaml are typed in: files of every kind of wrong, and a
few that are right, with a finished run and a cache in `outputs`."""

import json
import random
import shutil
from pathlib import Path

from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

NOISE = random.Random(1).randbytes(5000)
WORDS = ["a", "teacher", "student", "learns", "soft", "targets", "from", "temperature", "model"]
TEXTS = [" ".join(random.Random(n).choices(WORDS, k=10 + n % 50)) for n in range(180)]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(heads: str, *rows: str) -> str:
    return "\n".join([heads, *rows]) + "\n"


def chat(*messages: object, count: int = 40) -> str:
    return lines(*[{"messages": list(messages)}] * count)


def said(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


FILES: dict[str, str | bytes] = {
    "file": "x",
    "text.jsonl": lines(*({"text": text} for text in TEXTS)),
    "short.txt": "too short",
    "empty.txt": "",
    "empty.csv": "",
    "empty.parquet": "",
    "blank.txt": " \n\n \n",
    **{f"noise.{suffix}": NOISE for suffix in ("txt", "jsonl", "parquet", "csv", "jinja")},
    "latin.txt": ("ä ö ü é " * 900).encode("latin-1"),
    "utf16.txt": ("hello world " * 900).encode("utf-16"),
    "cut.jsonl": lines(*({"text": text} for text in TEXTS))[:-30],
    "array.jsonl": json.dumps([{"text": text} for text in TEXTS], indent=1),
    "no_rows.jsonl": '"text"\n3\n',
    "numbers.jsonl": lines(*({"text": n} for n in range(99))),
    "nulls.jsonl": lines(*({"text": None} for _ in range(99))),
    "empties.jsonl": lines(*({"text": ""} for _ in range(99))),
    "body.jsonl": lines(*({"body": text} for text in TEXTS)),
    "same.jsonl": lines(*({"text": TEXTS[0]} for _ in range(99))),
    "deep.jsonl": "[" * 100_000 + "\n",
    "digits.jsonl": '{"text": ' + "9" * 5000 + "}\n",
    "labels.csv": table("text,label", *(f"{t},{'ab'[n % 2]}" for n, t in enumerate(TEXTS))),
    "one_label.csv": table("text,label", *(f"{text},a" for text in TEXTS)),
    "each_its_own.csv": table("text,label", *(f"{text},{n}" for n, text in enumerate(TEXTS))),
    "body.csv": table("body,kind", *(f"{text},a" for text in TEXTS)),
    "three.csv": table("text,label", *(f"{text},a,x" for text in TEXTS)),
    "one_long.csv": table("text,label", f'"{"x" * 200_000}",a'),
    "list_label.jsonl": lines(*({"text": text, "label": [1]} for text in TEXTS)),
    "one_sided.tsv": table("source\ttarget", *(f"{text}\t" for text in TEXTS)),
    "pairs.tsv": table("source\ttarget", *(f"{t}\t{t[::-1]}" for t in TEXTS)),
    "chat.jsonl": lines(
        *({"messages": [said("user", t), said("assistant", t[::-1])]} for t in TEXTS[:60])
    ),
    "chat_text.jsonl": lines(*[{"messages": "hi"}] * 40),
    "chat_silent.jsonl": chat(said("user", "x")),
    "chat_picture.jsonl": chat(said("user", [{"type": "image"}]), said("assistant", "x")),
    "broken.jinja": "{% for %}",
    "raises.jinja": "{{ raise_exception('no') }}",
    "images/a/noise.png": NOISE,
    "images/b/empty.png": b"",
}
FOLDERS = ("folder.txt", "empty")


def build(root: Path) -> None:
    """All files that nothing has to be trained for."""
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        (root / name).write_bytes(data)
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "nowhere.jsonl").symlink_to("gone.jsonl")


def build_models(root: Path, tokenizer: Path) -> None:
    """Folders of models, each whole but for one thing. tokenizer: of 300 tokens."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1))
    for name in ("whole", "no_weights", "cut_weights", "noise_weights", "pickle", "no_json"):
        model.save_pretrained(root / "models" / name)
    small = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1))
    small.save_pretrained(root / "models" / "few_rows")
    model.save_pretrained(root / "models" / "no_tokenizer")
    model.save_pretrained(root / "models" / "cut_tokenizer")
    model.save_pretrained(root / "models" / "unknown_type")
    for folder in (root / "models").iterdir():
        if folder.name != "no_tokenizer":
            for file in tokenizer.glob("tokenizer*.json"):
                shutil.copy(file, folder)
    weights = {
        name: root / "models" / name / "model.safetensors"
        for name in ("no_weights", "cut_weights", "noise_weights", "pickle")
    }
    whole = weights["cut_weights"].read_bytes()
    weights["no_weights"].unlink()
    weights["cut_weights"].write_bytes(whole[: len(whole) // 2])
    weights["noise_weights"].write_bytes(NOISE)
    weights["pickle"].rename(weights["pickle"].with_name("pytorch_model.bin"))
    (root / "models" / "no_json" / "config.json").write_text("{nothing")
    (root / "models" / "unknown_type" / "config.json").write_text('{"model_type": "zebra"}')
    shutil.copytree(root / "models" / "whole", root / "models" / "other_tokens")
    other = root / "models" / "other_tokens" / "tokenizer.json"
    other.write_text(other.read_text().replace('"<|endoftext|>"', '"<|end|>"'))
    _add_special_tokens(root / "models")
    cut = root / "models" / "cut_tokenizer" / "tokenizer.json"
    cut.write_text(cut.read_text()[:500])


def _add_special_tokens(models: Path) -> None:
    """Copies of the whole model with a token that begins a text, and with one more token."""
    tokenizer = AutoTokenizer.from_pretrained(models / "whole")
    for name in ("begins_texts", "more_tokens"):
        shutil.copytree(models / "whole", models / name)
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(models / "more_tokens")
    rows = GPT2Config(vocab_size=301, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(rows).save_pretrained(models / "more_tokens")
    file = models / "begins_texts" / "tokenizer.json"
    state = json.loads(file.read_text())
    first = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    text = [
        {"SpecialToken": {"id": first["id"], "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": text,
        "pair": [*text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {first["id"]: first},
    }
    file.write_text(json.dumps(state))
    config = models / "begins_texts" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token": first["id"]}))


def spoil_runs(root: Path, run: Path) -> None:
    """Copies of a finished run, each whole but for one thing."""
    runs = {
        name: root / "runs" / name
        for name in (
            "running",
            "failed",
            "no_student",
            "no_config",
            "noise_config",
            "list_results",
            "empty_results",
            "cut_results",
            "cut_weights",
            "no_tokenizer",
            "no_settings",
        )
    }
    for folder in runs.values():
        shutil.copytree(run, folder)
    for status in ("running", "failed"):
        results = json.loads((run / "results.json").read_text()) | {"status": status}
        (runs[status] / "results.json").write_text(json.dumps(results))
    shutil.rmtree(runs["no_student"] / "student")
    (runs["no_config"] / ".hydra" / "config.yaml").unlink()
    (runs["noise_config"] / ".hydra" / "config.yaml").write_bytes(NOISE)
    (runs["no_settings"] / ".hydra" / "config.yaml").write_text("seed: 0\n")
    (runs["list_results"] / "results.json").write_text("[]")
    (runs["empty_results"] / "results.json").write_text("{}")
    (runs["cut_results"] / "results.json").write_text('{"status": "fini')
    weights = runs["cut_weights"] / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (runs["no_tokenizer"] / "student" / "tokenizer.json").unlink()
    offline = root / "runs" / "offline" / "offline-run-1-a" / "run-a.wandb"
    offline.parent.mkdir(parents=True)
    offline.write_bytes(NOISE)
