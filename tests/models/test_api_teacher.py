"""A teacher behind a server: a real one, on this machine, with a real model of a few weights."""

import json
import threading
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import perf_counter, time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.models.api_teacher import APITeacher, Largest
from lightning_distill.transfer.cache.sparse_codec import from_bytes

K = 8
T = 32
KEY = 'sk-"planted"-7361'


class Server(ThreadingHTTPServer):
    """Answers /v1/completions as vLLM does, except where `fault` says something else.

    fault(number of the request, its body): None, or (status, headers, content); content None
    closes the connection without an answer, and a function takes the true answer to another.
    """

    daemon_threads = True

    def __init__(self, model, tokenizer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer = model, tokenizer
        self.forbidden = []  # ids that the model never predicts
        self.write = "token_id:{}".format
        self.reset()

    def handle_error(self, request, client_address):
        """Somebody who did not wait for the answer."""

    def reset(self):
        self.asked, self.keys, self.fault, self.key = [], [], None, None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def prompts(self):
        return Counter(tuple(body["prompt"]) for body in self.asked)

    @torch.no_grad()
    def complete(self, body):
        ids, k = body["prompt"], body["logprobs"]
        logits = self.model(torch.tensor([ids])).logits[0]
        logits[:, self.forbidden] = -torch.inf
        log_p = logits.log_softmax(-1)
        drawn = int(log_p[-1].exp().multinomial(1))
        text, places = [*ids, drawn], [None]
        for t, actual in enumerate(text[1:]):
            values, largest = log_p[t].topk(k)
            # The actual token comes first, whether it is among the largest or not.
            place = {actual: max(float(log_p[t, actual]), -9999.0)}
            place |= dict(zip(largest.tolist(), values.tolist(), strict=True))
            places.append({self.write(token): value for token, value in place.items()})
        tokens = [self.write(token) for token in text]
        return {"choices": [{"text": "", "logprobs": {"tokens": tokens, "top_logprobs": places}}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append(body)
        server.keys.append(self.headers.get("Authorization"))
        found = server.fault(len(server.asked), body) if server.fault else None
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            found = 401, {}, b'{"error": {"message": "no"}}'
        status, headers, content = found or (200, {}, lambda answer: answer)
        if content is None:
            self.close_connection = True
            return
        if callable(content):
            content = json.dumps(content(server.complete(body))).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_file):
    """A Llama whose predictions are far from even, and its tokenizer."""
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
    running.forbidden, running.write = [], "token_id:{}".format
    return running


@pytest.fixture
def ask(server):
    """Asks for a batch [B, T] what its teacher says: ids and log-probabilities [B, T, k]."""

    def asked(ids, position_ids=None, **settings):
        served = APITeacher(
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
        return served({"input_ids": ids, "position_ids": position_ids})

    return asked


@pytest.fixture
def ids():
    return torch.randint(0, 300, (3, 7))


def true(server, ids):
    with torch.no_grad():
        logits = server.model(ids).logits
    logits[..., server.forbidden] = -torch.inf
    return logits.log_softmax(-1).topk(K)


def test_the_answer_is_the_models_largest_at_every_place(ask, server, ids):
    found, expected = ask(ids), true(server, ids)
    assert torch.equal(found.ids, expected.indices)
    torch.testing.assert_close(found.log_p, expected.values)


def test_the_tokens_left_out_share_what_is_left():
    log_p = torch.tensor([[[0.5, 0.3]]]).log()
    found = Largest(torch.tensor([[[3, 0]]]), log_p, 6).at(slice(0, 1)).logits().exp()
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.05, 0.05, 0.5, 0.05, 0.05]]))


def test_no_token_left_out_is_more_probable_than_a_listed_one():
    log_p = torch.tensor([[0.0, -25.0]])
    logits = Largest(torch.tensor([[3, 0]]), log_p, 6).logits()
    assert (logits[0, [1, 2, 4, 5]] <= -25).all()
    assert logits[0, [3, 0]].tolist() == [0, -25]


def test_each_document_is_a_prompt_of_its_own(ask, server, ids):
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])
    found = ask(ids, positions)
    assert sorted(map(len, server.prompts)) == [1, 1, 1, 2, 2, 3, 4, 7]
    for row, start, stop in [(0, 0, 3), (0, 3, 5), (0, 5, 7), (1, 1, 2), (1, 3, 7), (2, 0, 7)]:
        own = true(server, ids[row : row + 1, start:stop])
        assert torch.equal(found.ids[row, start:stop], own.indices[0])


@pytest.mark.parametrize("form", ["token", "text"])
def test_tokens_written_out_are_found_in_the_vocabulary(ask, server, ids, form):
    tokenizer = server.tokenizer
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    if form == "token":
        server.write = tokenizer.convert_ids_to_tokens
    else:
        server.forbidden = [i for i, text in enumerate(texts) if not text.isascii()]
        server.write = texts.__getitem__
    ids = ids.where(torch.isin(ids, torch.tensor(server.forbidden)).logical_not(), 70)
    assert torch.equal(ask(ids).ids, true(server, ids).indices)


def test_a_part_of_a_character_is_no_token(ask, server, ids):
    server.write = lambda i: server.tokenizer.decode([i])
    with pytest.raises(ConfigError, match="write tokens as ids"):
        ask(ids)


def test_a_token_beyond_the_tokenizer_is_refused(ask, server, ids):
    server.fault = lambda *_: (200, {}, with_first(lambda place: {**place, "token_id:5000": 0.0}))
    with pytest.raises(ConfigError, match="token_id:5000"):
        ask(ids)


@pytest.mark.parametrize(
    "first",
    [(500, {}, b"oops"), (408, {}, b""), (200, {"Content-Length": "9999"}, b"{"), (0, {}, None)],
    ids=["500", "408", "half", "closed"],
)
def test_what_fails_twice_is_asked_again(ask, server, ids, first):
    server.fault = lambda number, _: first if number <= 2 else None
    found = ask(ids, timeout=0.5)
    assert len(server.asked) == len(ids) + 2
    assert torch.equal(found.ids, true(server, ids).indices)


@pytest.mark.parametrize("date", [False, True])
def test_a_server_that_names_a_time_is_given_it(ask, server, ids, date):
    def fault(number, _):
        after = formatdate(time() + 2, usegmt=True) if date else "1"
        return (429, {"Retry-After": after}, b"slow down") if number == 1 else None

    server.fault = fault
    start = perf_counter()
    ask(ids)
    assert perf_counter() - start >= 1


def test_no_key_of_a_netrc_is_sent(ask, server, ids, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    ask(ids)
    assert set(server.keys) == {None}


def test_a_key_does_not_follow_to_another_host(ask, server, ids, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.fault = lambda *_: (307, {"Location": f"http://127.0.0.2:{server.server_port}/v1"}, b"")
    with pytest.raises(ConfigError, match=r"redirects to http://127\.0\.0\.2"):
        ask(ids, connections=1)
    assert len(server.asked) == 1


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "naïve"])
def test_what_no_header_can_hold_is_refused_unseen(ask, ids, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="environment variable OPENAI_API_KEY") as refused:
        ask(ids)
    assert key not in str(refused.value)


def with_first(change):
    """An answer whose first place is another."""

    def changed(answer):
        places = answer["choices"][0]["logprobs"]["top_logprobs"]
        places[1] = change(places[1])
        return answer

    return changed


def with_tokens(answer):
    tokens = answer["choices"][0]["logprobs"]["tokens"]
    tokens[0], tokens[1] = tokens[1], "token_id:299"
    return answer


def one_place_short(answer):
    del answer["choices"][0]["logprobs"]["top_logprobs"][-1]
    return answer


NONSENSE = {
    "html": (b"<html>hello</html>", "answered with <html>hello</html>: there is no choices"),
    "no choices": (b'{"object": "list"}', "there is no choices"),
    "no logprobs": (b'{"choices": [{"text": "a", "logprobs": null}]}', "support echo and logprobs"),
    "other tokens": (with_tokens, "its tokens are not those of the prompt"),
    "a place short": (one_place_short, f"top_logprobs for {T - 1} of {T} places"),
    "too few": (with_first(lambda p: dict([*p.items()][:3])), "fewer than transfer.k=8"),
    "nan": (with_first(lambda p: dict.fromkeys(p, float("nan"))), "is no number of at most 0"),
    "positive": (with_first(lambda p: dict.fromkeys(p, 0.5)), "is no number of at most 0"),
    "too many": (with_first(lambda p: dict.fromkeys(p, -0.1)), "sum to 7.239"),
    "words": (with_first(lambda p: dict.fromkeys(p, "likely")), "not numbers by token"),
}


@pytest.fixture
def main(in_process):
    """Runs the command. Returns what it said on stderr."""
    return lambda *overrides, expect=0: in_process(*overrides, expect=expect).stderr


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Shared by all commands, which differ in the caches that they make."""
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


def test_a_plan_asks_the_server_for_one_batch(server, in_process, settings):
    said = in_process(*settings, "stage=plan").stdout
    assert "to make, 40 blocks" in said
    assert len(server.asked) == 4  # data.batch_size


def finished(outputs):
    return set(outputs.glob("artifacts/predictions/*/manifest.json"))


@pytest.fixture
def refused(main, settings, outputs):
    """Has the text labelled, which fails; nothing is left that could be taken for a cache."""

    def run(*overrides):
        before = finished(outputs)
        said = main(*settings, "stage=transfer", *overrides, expect=2)
        assert len(said.strip().splitlines()) == 1
        assert finished(outputs) == before
        return said

    return run


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_refused_and_nothing_kept(server, refused, kind):
    content, message = NONSENSE[kind]
    server.fault = lambda *_: (200, {}, content)
    said = refused()
    assert message in said
    assert f"teacher.url={server.url} answered with " in said


def test_a_refused_key_is_not_tried_again(server, refused, monkeypatch):
    server.key = KEY
    said = refused("teacher.connections=1")
    assert "asks for a key; put it into the environment variable OPENAI_API_KEY" in said
    monkeypatch.setenv("OTHER", "wrong")
    said = refused("teacher.connections=1", "teacher.key_variable=OTHER")
    assert "refused the key; put it into the environment variable OTHER" in said
    assert server.keys == [None, "Bearer wrong"]


def test_a_server_that_repeats_the_key_is_shown_without_it(server, refused, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    plain = f"{'x' * 80} bad key {KEY}"
    quoted = json.dumps({"error": {"message": plain}})
    for status, body in ((403, quoted), (400, plain), (503, quoted)):
        server.fault = lambda *_, s=status, b=body: (s, {}, b.encode())
        said = refused()
        assert "bad key ***" in said
        assert "planted" not in said
    server.fault = lambda *_: (200, {}, f"{'x' * 90} {KEY}".encode())
    said = refused()
    assert "sk-" not in said


def test_the_servers_reason_is_shown(server, refused):
    message = "This model's maximum context length is 16 tokens. " + "And so on. " * 99
    server.fault = lambda *_: (400, {}, json.dumps({"error": {"message": message}}).encode())
    said = refused()
    assert "answered 400 Bad Request: This model's maximum context length is 16 tokens." in said
    assert len(said) < 400


def test_a_server_that_hangs_is_not_waited_for(server, refused):
    gone = threading.Event()
    server.fault = lambda *_: gone.wait(20) and None
    said = refused("teacher.timeout=1", "teacher.retries=1")
    gone.set()
    assert "no answer within teacher.timeout=1 seconds, after 2 tries" in said
    assert "What is labelled so far is kept" in said


def test_a_server_that_is_not_there_is_named(refused):
    said = refused("teacher.url=http://127.0.0.1:9/v1", "teacher.retries=2")
    assert (
        "teacher.url=http://127.0.0.1:9/v1: no answer (Connection refused), after 3 tries" in said
    )


def test_without_the_teachers_term_the_server_is_not_asked(server, main, settings, outputs):
    main(*settings, "loss.alpha=0", f"hydra.run.dir={outputs}/plain")
    assert json.loads((outputs / "plain" / "results.json").read_text())["teacher"] is None
    assert server.asked == []


def cache(outputs):
    """Fields [blocks, T, ...] of the one cache below outputs, and its manifest."""
    (file,) = finished(outputs)
    shards = [load_file(shard) for shard in sorted(file.parent.glob("shard-*"))]
    fields = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    return fields, json.loads(file.read_text())


def assert_same(found, expected):
    """The same tokens, and log-probabilities to within two steps of their 16 bits.

    Tokens that are as probable as the last of the list to within that may be other ones.
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
def distil(command, folder, running, text_file, tmp_path_factory):
    """Runs the command with a teacher behind a server, or the same one here: the outputs, results
    and what was said."""
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
        running.forbidden, running.write, running.key = [], "token_id:{}".format, KEY
        path = tmp_path_factory.mktemp(name)
        env = {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"} if name == "served" else {}
        where = [f"paths.outputs={path}", f"hydra.run.dir={path}/run"]
        done = command(*common, *teachers[name], *where, *overrides, tiny=False, **env)
        return path, json.loads((path / "run" / "results.json").read_text()), done

    return run


@pytest.fixture(scope="module")
def both(distil, running):
    """The same student of the same teacher, behind a server and here."""
    found = {"served": distil("served")}
    running.asked_for_all = running.prompts
    return found | {"here": distil("here")}


def test_a_served_teacher_makes_the_cache_that_it_makes_here(both):
    (served, content), (here, _) = (cache(both[name][0]) for name in ("served", "here"))
    assert_same(served, here)
    assert content["content"]["kl"] is None


def test_its_student_is_the_student_of_the_teacher_here(both):
    served, here = both["served"][1], both["here"][1]
    assert served["student"]["nll"] == pytest.approx(here["student"]["nll"], abs=1e-4)
    assert served["teacher"] is None
    assert here["teacher"]["nll"] > 0
    assert served["cost"]["transfer_seconds"] > 0


@pytest.mark.long
def test_it_labels_for_students_in_shards(both, distil, running):
    """Each of two devices asks for its own part of the blocks."""
    two = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2"]
    (alone, known, _), (shared, found, _) = both["served"], distil("served", *two)
    assert found["student"] == pytest.approx(known["student"], rel=1e-5)
    assert found["teacher"] is None
    (fields, _), (expected, _) = cache(shared), cache(alone)
    assert fields.keys() == expected.keys()
    assert all(torch.equal(fields[name], expected[name]) for name in fields)
    assert running.prompts == running.asked_for_all


def test_every_block_is_asked_for_once_and_no_held_out_one(both, running):
    fields, _ = cache(both["served"][0])
    assert sum(running.asked_for_all.values()) == len(fields["ids"])
    assert max(running.asked_for_all.values()) == 1


def test_the_key_is_written_nowhere(both):
    path, _, done = both["served"]
    assert "planted" not in done.stdout + done.stderr
    files = [file for file in path.rglob("*") if file.is_file()]
    assert any("wandb" in file.parts for file in files)
    assert not [file for file in files if b"planted" in file.read_bytes()]


def test_a_run_goes_on_with_the_shards_that_a_dead_server_left(
    both, server, main, settings, tmp_path
):
    whole = ["stage=transfer", "transfer.num_blocks=null", f"paths.outputs={tmp_path}"]
    settings = [s for s in settings if not s.startswith(("paths", "transfer.num"))]
    server.fault = lambda number, _: (0, {}, None) if number > 260 else None
    said = main(*settings, *whole, expect=2)
    assert "the same command goes on from there" in said
    assert not finished(tmp_path)
    (shard,) = tmp_path.glob("artifacts/predictions/*.partial/shard-*.safetensors")
    kept = len(load_file(shard)["ids"])
    server.reset()
    main(*settings, *whole)
    expected, _ = cache(both["served"][0])
    assert len(server.asked) == len(expected["ids"]) - kept
    found, _ = cache(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_isolated_documents_are_labelled_as_the_teacher_here_labels_them(
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
