"""A teacher behind a server, which runs on this machine with a tiny model."""

import json
import threading
from email.utils import formatdate
from time import perf_counter, time

import pytest
import torch
from completions_server import Server
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.models.api_teacher import APITeacher, TopK
from lightning_distill.transfer.cache.sparse_codec import from_bytes

K = 8
T = 32
KEY = 'sk-"planted"-7361'


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_file):
    """A Llama whose predictions are far from uniform, and its tokenizer."""
    torch.manual_seed(0)
    texts = [json.loads(line)["text"] for line in text_file.open()]
    tokenizer = train_tokenizer(texts, 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 20
        model.model.embed_tokens.weight *= 50
    path = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def running(folder):
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    server = Server(model, AutoTokenizer.from_pretrained(folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running.reset()
    running.forbidden, running.spell = [], "token_id:{}".format
    return running


@pytest.fixture
def predict(server):
    """Returns a function from a batch [B, T] to the teacher's predictions [B, T, k]."""

    def predict(ids, position_ids=None, **settings):
        teacher = APITeacher(
            **{
                "url": server.url,
                "name": "tiny",
                "tokenizer": server.tokenizer,
                "timeout": 20,
                "retries": 3,
                "connections": 4,
                "key_variable": "OPENAI_API_KEY",
                "k": K,
                "backoff": 0.01,
                **settings,
            }
        )
        if position_ids is None:
            position_ids = torch.arange(ids.shape[1]).expand_as(ids)
        return teacher({"input_ids": ids, "position_ids": position_ids})

    return predict


@pytest.fixture
def ids():
    return torch.randint(0, 300, (3, 7))


def expected_top_k(server, ids):
    with torch.no_grad():
        logits = server.model(ids).logits
    logits[..., server.forbidden] = -torch.inf
    return logits.log_softmax(-1).topk(K)


def test_the_predictions_are_the_models_top_k_at_every_position(predict, server, ids):
    found, expected = predict(ids), expected_top_k(server, ids)
    assert torch.equal(found.ids, expected.indices)
    torch.testing.assert_close(found.log_p, expected.values)


def test_unlisted_tokens_share_the_rest_of_the_probability_evenly():
    log_p = torch.tensor([[[0.5, 0.3]]]).log()
    found = TopK(torch.tensor([[[3, 0]]]), log_p, 6).at(slice(0, 1)).logits().exp()
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.05, 0.05, 0.5, 0.05, 0.05]]))


def test_no_unlisted_token_is_more_probable_than_a_listed_one():
    log_p = torch.tensor([[0.0, -25.0]])
    logits = TopK(torch.tensor([[3, 0]]), log_p, 6).logits()
    assert (logits[0, [1, 2, 4, 5]] <= -25).all()
    assert logits[0, [3, 0]].tolist() == [0, -25]


def test_each_document_is_a_separate_prompt(predict, server, ids):
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])
    found = predict(ids, positions)
    assert sorted(map(len, server.prompts)) == [1, 1, 1, 2, 2, 3, 4, 7]
    for row, start, stop in [(0, 0, 3), (0, 3, 5), (0, 5, 7), (1, 1, 2), (1, 3, 7), (2, 0, 7)]:
        own = expected_top_k(server, ids[row : row + 1, start:stop])
        assert torch.equal(found.ids[row, start:stop], own.indices[0])


@pytest.mark.parametrize("form", ["token", "text"])
def test_tokens_spelled_as_text_are_looked_up_in_the_vocabulary(predict, server, ids, form):
    tokenizer = server.tokenizer
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    if form == "token":
        server.spell = tokenizer.convert_ids_to_tokens
    else:
        server.forbidden = [i for i, text in enumerate(texts) if not text.isascii()]
        server.spell = texts.__getitem__
    ids = ids.where(torch.isin(ids, torch.tensor(server.forbidden)).logical_not(), 70)
    assert torch.equal(predict(ids).ids, expected_top_k(server, ids).indices)


def test_a_token_that_is_part_of_a_character_is_refused_as_text(predict, server, ids):
    server.spell = lambda i: server.tokenizer.decode([i])
    with pytest.raises(ConfigError, match="write tokens as ids"):
        predict(ids)


def test_an_id_outside_the_vocabulary_is_refused(predict, server, ids):
    server.fault = lambda *_: (200, {}, with_first(lambda place: {**place, "token_id:5000": 0.0}))
    with pytest.raises(ConfigError, match="token_id:5000"):
        predict(ids)


@pytest.mark.parametrize(
    "first",
    [(500, {}, b"oops"), (408, {}, b""), (200, {"Content-Length": "9999"}, b"{"), (0, {}, None)],
    ids=["500", "408", "half", "closed"],
)
def test_failed_requests_are_retried(predict, server, ids, first):
    server.fault = lambda number, _: first if number <= 2 else None
    found = predict(ids, timeout=2)
    assert len(server.requests) == len(ids) + 2
    assert torch.equal(found.ids, expected_top_k(server, ids).indices)


@pytest.mark.parametrize("date", [False, True])
def test_a_retry_waits_as_long_as_retry_after_says(predict, server, ids, date):
    def fault(number, _):
        after = formatdate(time() + 2, usegmt=True) if date else "1"
        return (429, {"Retry-After": after}, b"slow down") if number == 1 else None

    server.fault = fault
    start = perf_counter()
    predict(ids)
    assert perf_counter() - start >= 1


def test_credentials_of_a_netrc_are_not_sent(predict, server, ids, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    predict(ids)
    assert set(server.keys) == {None}


def test_the_key_is_not_sent_to_the_target_of_a_redirect(predict, server, ids, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.fault = lambda *_: (307, {"Location": f"http://127.0.0.2:{server.server_port}/v1"}, b"")
    with pytest.raises(ConfigError, match=r"redirects to http://127\.0\.0\.2"):
        predict(ids, connections=1)
    assert len(server.requests) == 1


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "naïve"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(predict, ids, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="environment variable OPENAI_API_KEY") as refused:
        predict(ids)
    assert key not in str(refused.value)


def with_first(change):
    """Changes the first position of an answer."""

    def changed(answer):
        positions = answer["choices"][0]["logprobs"]["top_logprobs"]
        positions[1] = change(positions[1])
        return answer

    return changed


def with_tokens(answer):
    tokens = answer["choices"][0]["logprobs"]["tokens"]
    tokens[0], tokens[1] = tokens[1], "token_id:299"
    return answer


def one_position_short(answer):
    del answer["choices"][0]["logprobs"]["top_logprobs"][-1]
    return answer


UNUSABLE = {
    "html": (b"<html>hello</html>", "answered with <html>hello</html>: there is no choices"),
    "no choices": (b'{"object": "list"}', "there is no choices"),
    "no logprobs": (b'{"choices": [{"text": "a", "logprobs": null}]}', "support echo and logprobs"),
    "other tokens": (with_tokens, "its tokens are not those of the prompt"),
    "a position short": (one_position_short, f"top_logprobs for {T - 1} of {T} positions"),
    "too few": (with_first(lambda p: dict([*p.items()][:3])), "fewer than transfer.k=8"),
    "nan": (with_first(lambda p: dict.fromkeys(p, float("nan"))), "is above 0, or is NaN or Inf"),
    "positive": (with_first(lambda p: dict.fromkeys(p, 0.5)), "is above 0, or is NaN or Inf"),
    "too many": (with_first(lambda p: dict.fromkeys(p, -0.1)), "sum to 7.239"),
    "words": (with_first(lambda p: dict.fromkeys(p, "likely")), "not numbers by token"),
}


@pytest.fixture
def main(in_process):
    """Runs the command. Returns its stderr."""
    return lambda *overrides, expect=0: in_process(*overrides, expect=expect).stderr


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Shared by all commands; they make different caches."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def settings(server, folder, outputs):
    return [
        f"data.sequence_length={T}",
        "transfer=cached",
        "transfer.stored=topk",
        f"transfer.k={K}",
        "transfer.num_blocks=40",
        "teacher=served",
        f"teacher.url={server.url}",
        "teacher.name=tiny",
        f"teacher.tokenizer={folder}",
        "teacher.max_steps=0",
        "teacher.retries=1",
        f"paths.outputs={outputs}",
    ]


def test_a_plan_sends_one_batch_to_the_server(server, in_process, settings):
    output = in_process(*settings, "stage=plan").stdout
    assert "to make, 40 blocks" in output
    assert len(server.requests) == 4  # data.batch_size


def finished(outputs):
    return set(outputs.glob("artifacts/predictions/*/manifest.json"))


@pytest.fixture
def refused(main, settings, outputs):
    """Runs `stage=transfer`, which must fail and leave no cache."""

    def run(*overrides):
        before = finished(outputs)
        output = main(*settings, "stage=transfer", *overrides, expect=2)
        assert len(output.strip().splitlines()) == 1
        assert finished(outputs) == before
        return output

    return run


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_answer_is_refused_and_no_cache_is_kept(server, refused, kind):
    content, message = UNUSABLE[kind]
    server.fault = lambda *_: (200, {}, content)
    output = refused()
    assert message in output
    assert f"teacher.url={server.url} answered with " in output


def test_a_refused_key_is_not_retried(server, refused, monkeypatch):
    server.key = KEY
    output = refused("teacher.connections=1")
    assert "asks for a key; put it into the environment variable OPENAI_API_KEY" in output
    monkeypatch.setenv("OTHER", "wrong")
    output = refused("teacher.connections=1", "teacher.key_variable=OTHER")
    assert "refused the key; put it into the environment variable OTHER" in output
    assert server.keys == [None, "Bearer wrong"]


def test_the_key_is_redacted_from_the_servers_answers(server, refused, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    plain = f"{'x' * 80} bad key {KEY}"
    quoted = json.dumps({"error": {"message": plain}})
    for status, body in ((403, quoted), (400, plain), (503, quoted)):
        server.fault = lambda *_, s=status, b=body: (s, {}, b.encode())
        output = refused()
        assert "bad key ***" in output
        assert "planted" not in output
    server.fault = lambda *_: (200, {}, f"{'x' * 90} {KEY}".encode())
    output = refused()
    assert "sk-" not in output


def test_the_error_shows_the_servers_reason(server, refused):
    message = "This model's maximum context length is 16 tokens. " + "And so on. " * 99
    server.fault = lambda *_: (400, {}, json.dumps({"error": {"message": message}}).encode())
    output = refused()
    assert "answered 400 Bad Request: This model's maximum context length is 16 tokens." in output
    assert len(output) < 400


def test_a_server_that_hangs_times_out(server, refused):
    end = threading.Event()
    server.fault = lambda *_: end.wait(20) and None
    output = refused("teacher.timeout=1", "teacher.retries=1")
    end.set()
    assert "no answer within teacher.timeout=1 seconds, after 2 tries" in output
    assert "The predictions so far are kept" in output


def test_an_unreachable_server_is_named(refused):
    output = refused("teacher.url=http://127.0.0.1:9/v1", "teacher.retries=2")
    assert (
        "teacher.url=http://127.0.0.1:9/v1: no answer (Connection refused), after 3 tries" in output
    )


def test_a_temperature_at_which_top_k_is_biased_is_warned_about(server, in_process, settings):
    def output(*overrides):
        failing = ["stage=transfer", "teacher.retries=0", "teacher.url=http://127.0.0.1:9/v1"]
        return in_process(*settings, *failing, *overrides, expect=2).stdout

    assert "loss.temperature=2: an API teacher returns its top k" in output("loss.temperature=2")
    assert "an API teacher returns its top k" not in output()


def test_with_alpha_zero_no_request_is_sent(server, main, settings, outputs):
    main(*settings, "loss.alpha=0", f"hydra.run.dir={outputs}/plain")
    assert json.loads((outputs / "plain" / "results.json").read_text())["teacher"] is None
    assert server.requests == []


def cache(outputs):
    """The fields [blocks, T, ...] of the only cache below outputs, and its manifest."""
    (file,) = finished(outputs)
    shards = [load_file(shard) for shard in sorted(file.parent.glob("shard-*"))]
    fields = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    return fields, json.loads(file.read_text())


def assert_same(found, expected):
    """Asserts equal tokens, and log-probabilities within two steps of their 16-bit codes.

    Tokens may differ where they are as probable as the last of the list, within the same two steps.
    """
    dense = []
    for fields in (found, expected):
        codes = from_bytes(fields["log_p"])
        rows = torch.full((*codes.shape[:-1], 300), 2**16)
        dense.append((rows.scatter(-1, from_bytes(fields["ids"]), codes), codes.amax(-1)))
    (ours, our_last), (theirs, their_last) = dense
    last = torch.minimum(our_last, their_last)[..., None]
    both = (ours < 2**16) & (theirs < 2**16)
    assert ((ours - theirs).abs()[both] <= 2).all()
    one = (ours < 2**16) ^ (theirs < 2**16)
    assert ((torch.minimum(ours, theirs) - last)[one] >= -2).all()
    assert one.any(-1).float().mean() < 0.02
    assert torch.equal(found["checksum"], expected["checksum"])


@pytest.fixture(scope="module")
def distill(command, folder, running, text_file, tmp_path_factory):
    """Runs the command with a teacher behind a server, or the same one loaded here. Returns the
    outputs, the results and the finished process."""
    common = [
        "student=xs",
        "student.hidden_size=16",
        "student.max_steps=12",
        "data=text",
        f"data.path={text_file}",
        f"data.sequence_length={T}",
        "trainer=cpu",
        "transfer=cached",
        "transfer.stored=topk",
        f"transfer.k={K}",
    ]
    teachers = {
        "served": [
            "teacher=served",
            f"teacher.url={running.url}",
            "teacher.name=tiny",
            f"teacher.tokenizer={folder}",
            "logger=wandb",
        ],
        "here": ["teacher=pretrained", f"teacher.name={folder}", "logger=none"],
    }

    def run(name, *overrides):
        running.reset()
        running.forbidden, running.spell, running.key = [], "token_id:{}".format, KEY
        path = tmp_path_factory.mktemp(name)
        env = {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"} if name == "served" else {}
        where = [f"paths.outputs={path}", f"hydra.run.dir={path}/run"]
        done = command(*common, *teachers[name], *where, *overrides, tiny=False, **env)
        return path, json.loads((path / "run" / "results.json").read_text()), done

    return run


@pytest.fixture(scope="module")
def both(distill, running):
    """The same student and teacher, the latter behind a server and loaded here."""
    found = {"served": distill("served")}
    running.all_prompts = running.prompts
    return found | {"here": distill("here")}


def test_a_teacher_behind_a_server_makes_the_same_cache_as_one_loaded_here(both):
    (served, content), (here, _) = (cache(both[name][0]) for name in ("served", "here"))
    assert_same(served, here)
    assert content["content"]["kl"] is None


def test_a_teacher_behind_a_server_makes_the_same_student_as_one_loaded_here(both):
    served, here = both["served"][1], both["here"][1]
    assert served["student"]["nll"] == pytest.approx(here["student"]["nll"], abs=1e-4)
    assert served["teacher"] is None
    assert here["teacher"]["nll"] > 0
    assert served["cost"]["transfer_seconds"] > 0


@pytest.mark.long
def test_devices_of_an_fsdp_run_share_the_requests(both, distill, running):
    """Each of two devices sends its own part of the blocks."""
    two = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2"]
    (alone, known, _), (shared, found, _) = both["served"], distill("served", *two)
    assert found["student"] == pytest.approx(known["student"], rel=1e-5)
    assert found["teacher"] is None
    (fields, _), (expected, _) = cache(shared), cache(alone)
    assert fields.keys() == expected.keys()
    assert all(torch.equal(fields[name], expected[name]) for name in fields)
    assert running.prompts == running.all_prompts


def test_every_training_block_is_sent_once_and_no_held_out_one(both, running):
    fields, _ = cache(both["served"][0])
    assert sum(running.all_prompts.values()) == len(fields["ids"])
    assert max(running.all_prompts.values()) == 1


def test_the_key_is_in_no_file_and_no_output(both):
    path, _, done = both["served"]
    assert "planted" not in done.stdout + done.stderr
    files = [file for file in path.rglob("*") if file.is_file()]
    assert any("wandb" in file.parts for file in files)
    assert not [file for file in files if b"planted" in file.read_bytes()]


def test_a_run_resumes_from_the_shards_that_a_dead_server_left(
    both, server, main, settings, tmp_path
):
    whole = ["stage=transfer", "transfer.num_blocks=null", f"paths.outputs={tmp_path}"]
    settings = [s for s in settings if not s.startswith(("paths", "transfer.num"))]
    server.fault = lambda number, _: (0, {}, None) if number > 260 else None
    output = main(*settings, *whole, expect=2)
    assert "re-running the command resumes from them" in output
    assert not finished(tmp_path)
    (shard,) = tmp_path.glob("artifacts/predictions/*.partial/shard-*.safetensors")
    kept = len(load_file(shard)["ids"])
    server.reset()
    main(*settings, *whole)
    expected, _ = cache(both["served"][0])
    assert len(server.requests) == len(expected["ids"]) - kept
    found, _ = cache(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_isolated_documents_get_the_same_predictions_as_from_a_teacher_loaded_here(
    server, main, settings, folder, tmp_path
):
    found = []
    settings = [s for s in settings if not s.startswith("paths")]
    isolated = ["stage=transfer", "data.isolate_documents=true"]
    here = [s for s in settings if not s.startswith(("teacher", "+teacher"))]
    here += ["teacher=pretrained", f"teacher.name={folder}", "teacher.max_steps=0"]
    for name, teacher in (("served", settings), ("here", here)):
        main(*teacher, *isolated, f"paths.outputs={tmp_path / name}")
        found.append(cache(tmp_path / name)[0])
    assert max(map(len, server.prompts)) == T
    assert min(map(len, server.prompts)) < T
    assert_same(*found)
