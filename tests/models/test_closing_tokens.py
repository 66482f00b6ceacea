"""A base student under an instruct teacher that closes its turns with another token."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

CHATML = """\
{%- for m in messages %}{{- "<|im_start|>" + m.role + "\n" + m.content + "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{% endif %}"""
END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ANSWER = "Yes!"
VOCABULARY = 300  # before tokens are added
ADDED = VOCABULARY + 2


def conversation(number):
    said = {"user": f"Is it {number}?", "assistant": ANSWER}
    return [{"role": role, "content": content} for role, content in said.items()]


def write_tokenizer(folder, added, eos, template=None):
    """Byte-level BPE whose end-of-text token has id 0, with added tokens behind the others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [m["content"] for number in range(500) for m in conversation(number)]
    tokenizer.train_from_iterator([*texts, "user assistant"], trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    tokenizer.add_special_tokens(added)
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=END)
    saved.chat_template = template
    saved.save_pretrained(folder)


def write_model(folder, rows, tied=True, width=32):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


# The student's tokenizer and rows: the same vocabulary; a part of the teacher's, with rows for the
# rest; without them.
STUDENTS = {
    "same": ([IM_START, IM_END], ADDED),
    "padded": ([], ADDED + 10),
    "extended": ([], VOCABULARY),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Conversations, a teacher that was trained on nothing, and the students."""
    folder = tmp_path_factory.mktemp("closing")
    rows = [{"messages": conversation(n), "text": f"{n} {ANSWER}"} for n in range(300)]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_model(folder / "teacher", ADDED + 20)
    write_tokenizer(folder / "teacher", [IM_START, IM_END], IM_END, CHATML)
    for name, (added, size) in STUDENTS.items():
        write_model(folder / name, size, tied=name != "extended")
        write_tokenizer(folder / name, added, END, "{{ messages }}" if name == "same" else None)
    return folder


@pytest.fixture
def distill(in_process, place, tmp_path):
    def run(*overrides, expect=0):
        return in_process(
            *("data=chat", f"data.path={place}/chats.jsonl", "data.sequence_length=64"),
            *("teacher=pretrained", f"teacher.name={place}/teacher", "trainer=cpu", "logger=none"),
            *("optimizer.lr=2e-2", "loss.alpha=0"),
            *("student.max_steps=80", f"hydra.run.dir={tmp_path}/run"),
            *(f"paths.outputs={place}/outputs", *overrides),
            tiny=False,
            expect=expect,
        )

    return run


def pretrained(folder):
    return "student=pretrained", f"student.name={folder}"


def answer(folder):
    """What transformers alone generates, with no argument."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = conversation(999)[:1]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    return tokenizer.decode(model.generate(**prompt)[0, prompt["input_ids"].shape[1] :])


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_closes_its_turns_as_its_teacher_does(distill, place, tmp_path, name):
    done = distill(*pretrained(place / name))
    student = tmp_path / "run" / "student"
    assert answer(student) == ANSWER + IM_END
    generation = json.loads((student / "generation_config.json").read_text())
    end = ADDED - 1
    assert generation["eos_token_id"] == [end, 0]  # its own last
    assert (generation["pad_token_id"], generation["bos_token_id"]) == (0, 0)
    assert json.loads((student / "config.json").read_text())["eos_token_id"] == end
    assert (student / "chat_template.jinja").read_text() == CHATML
    assert rows_of(student) == max(STUDENTS[name][1], ADDED)
    grows = "grows from 300 to 302 rows, for <|im_start|>, <|im_end|>"
    assert (grows in done.stdout) == (name == "extended")


def rows_of(folder):
    return len(AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight)


@pytest.mark.slow
@pytest.mark.parametrize("transfer", ["online", "cached", "on_policy", "sequence"])
def test_every_transfer_teaches_it(distill, place, tmp_path, taught, transfer):
    own = pretrained(place / "extended")
    distill(*own, *taught, "loss.alpha=1", "loss.hard_weight=0", f"transfer={transfer}")
    assert answer(tmp_path / "run" / "student").endswith(IM_END)


@pytest.fixture(scope="module")
def taught(in_process, place):
    """A teacher that answers; a student that is a part of it starts with what it learned."""
    folder = place / "taught"
    in_process(
        *("data=chat", f"data.path={place}/chats.jsonl", "data.sequence_length=64"),
        *("trainer=cpu", "logger=none", "optimizer.lr=2e-2", "loss.alpha=0"),
        *("student.max_steps=80", f"hydra.run.dir={folder}", f"paths.outputs={place}/outputs"),
        *pretrained(place / "teacher"),
        tiny=False,
    )
    return "teacher=pretrained", f"teacher.name={folder}/student"


SIZE = ("student.hidden_size=32", "student.num_hidden_layers=2", "student.num_attention_heads=2")
LORA = ("student.lora.rank=4", "optimizer.lr=3e-2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (None, ["student=xs", *SIZE]),
        (None, ["student=xs", "student.initialize=teacher_layers", *SIZE]),
        ("padded", LORA),
        ("extended", LORA),
    ],
    ids=["a size", "layers of its teacher", "adapters", "adapters and new rows"],
)
def test_every_student_ends_there(distill, place, tmp_path, taught, name, settings):
    distill(*taught, *settings, *(pretrained(place / name) if name else ()))
    student = tmp_path / "run" / "student"
    assert answer(student) == ANSWER + IM_END
    generation = json.loads((student / "generation_config.json").read_text())
    assert generation["eos_token_id"][0] == ADDED - 1
    assert json.loads((student / "config.json").read_text())["eos_token_id"] == ADDED - 1


@pytest.mark.slow
def test_running_text_ends_with_the_teachers_token(distill, place, tmp_path):
    distill("data=text", *pretrained(place / "extended"), "student.max_steps=100")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "student")
    ids = model.generate(**tokenizer("77", return_tensors="pt"))[0]
    assert tokenizer.decode(ids) == f"77 {ANSWER}{IM_END}"


@pytest.mark.slow
def test_the_doctor_names_what_is_learned(distill, place):
    def line(*overrides):
        done = distill("stage=doctor", *overrides, expect=2)  # an untrained teacher is no better
        (found,) = (one for one in done.stdout.splitlines() if one.split()[1:2] == ["tokenizers"])
        return " ".join(found.split()[2:])

    learned = (
        "one vocabulary of 302 tokens, the teacher's: the student learns its chat template, and to "
        "end with <|im_end|>; its own tokenizer has {} chat template, ends a text with "
        "<|endoftext|>"
    )
    assert line(*pretrained(place / "same")) == learned.format("another")
    lacks = ", lacks <|im_start|>, <|im_end|>"
    assert line(*pretrained(place / "extended")) == learned.format("no") + lacks
    text = "one vocabulary of 302 tokens, the teacher's: the student learns to end with <|im_end|>"
    assert line("data=text", "student=xs") == text


def test_tokens_of_the_students_own_are_no_other_vocabulary(distill, place, tmp_path):
    write_model(tmp_path / "more", ADDED + 5)
    write_tokenizer(tmp_path / "more", [IM_START, IM_END, "<|own|>"], END)
    distill(*pretrained(tmp_path / "more"))
    assert answer(tmp_path / "run" / "student") == ANSWER + IM_END


@pytest.mark.parametrize(
    "added", [["<|own|>", IM_END], [IM_END, IM_START]], ids=["other tokens", "other ids"]
)
def test_an_id_that_is_another_token_is_another_vocabulary(distill, place, tmp_path, added):
    write_model(tmp_path / "other", ADDED)
    write_tokenizer(tmp_path / "other", added, END)
    done = distill(*pretrained(tmp_path / "other"), expect=2)
    assert "have different vocabularies: the same id is not the same text" in done.stderr


def test_a_file_for_llama_cpp_has_the_closing_token(distill, place, tmp_path, in_process):
    """Also where the teacher's tokenizer ends a text with another."""
    gguf = pytest.importorskip("gguf")
    write_model(tmp_path / "teacher", ADDED)
    write_tokenizer(tmp_path / "teacher", [IM_START, IM_END], END, CHATML)
    teacher = f"teacher.name={tmp_path}/teacher"
    distill(teacher, *pretrained(place / "padded"), "student.max_steps=1")
    in_process(
        *("stage=export", f"export.run={tmp_path}/run", "export.formats=[huggingface,gguf]"),
        *(f"hydra.run.dir={tmp_path}/export", f"paths.outputs={place}/outputs", "logger=none"),
        tiny=False,
    )
    (file,) = tmp_path.rglob("*.gguf")
    assert gguf.GGUFReader(file).fields["tokenizer.ggml.eos_token_id"].contents() == ADDED - 1
    saved = [*(tmp_path / "run").rglob("generation_config.json")]
    saved += [*(tmp_path / "export").rglob("generation_config.json")]
    assert len(saved) > 1
    assert all(json.loads(one.read_text())["eos_token_id"] == [ADDED - 1, 0] for one in saved)
