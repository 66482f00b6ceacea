"""A server of an OpenAI-compatible completions API, which runs a model on this machine."""

import json
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class Server(ThreadingHTTPServer):
    """Answers /v1/completions as vLLM does, except where `fault` replaces an answer.

    fault(number of the request, its body): None, or (status, headers, content). Content None
    closes the connection without an answer; a function changes the true answer.
    """

    daemon_threads = True

    def __init__(self, model, tokenizer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer = model, tokenizer
        self.forbidden = []  # ids that the model never predicts
        self.spell = "token_id:{}".format
        self.reset()

    def handle_error(self, request, client_address):
        """Ignores clients that did not wait for the answer."""

    def reset(self):
        self.requests, self.keys, self.fault, self.key = [], [], None, None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def prompts(self):
        return Counter(tuple(body["prompt"]) for body in self.requests)

    @torch.no_grad()
    def complete(self, body):
        ids, k = body["prompt"], body["logprobs"]
        logits = self.model(torch.tensor([ids])).logits[0]
        logits[:, self.forbidden] = -torch.inf
        log_p = logits.log_softmax(-1)
        sampled = int(log_p[-1].exp().multinomial(1))
        text, places = [*ids, sampled], [None]
        for t, actual in enumerate(text[1:]):
            values, largest = log_p[t].topk(k)
            # The actual token comes first, whether it is among the largest or not.
            place = {actual: max(float(log_p[t, actual]), -9999.0)}
            place |= dict(zip(largest.tolist(), values.tolist(), strict=True))
            places.append({self.spell(token): value for token, value in place.items()})
        tokens = [self.spell(token) for token in text]
        return {"choices": [{"text": "", "logprobs": {"tokens": tokens, "top_logprobs": places}}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.requests.append(body)
        server.keys.append(self.headers.get("Authorization"))
        found = server.fault(len(server.requests), body) if server.fault else None
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
