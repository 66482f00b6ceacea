"""As much of W&B's server as takes uploaded runs, workspaces and reports, on this machine."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """`history` and `runs`: by the id of a run; `views`: what was saved, in order.

    fault: None, or what becomes of every request from now on: `hang`, `close`.
    """

    daemon_threads = True
    fault = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.history, self.runs, self.views = {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        """A client that hangs up is no error."""

    def fail(self, fault):
        self.fault = fault
        if fault == "close":
            self.shutdown()
            self.server_close()

    def answer(self, query, asked):
        if "upsertBucket" in query:
            told = self.runs.setdefault(asked["name"], {})
            told |= {key: value for key, value in asked.items() if value is not None}
            return {"upsertBucket": {"bucket": self.bucket(asked["name"]), "inserted": True}}
        if "RunResumeStatus" in query:
            if asked["name"] not in self.runs:
                return {"model": None}
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
            return {"model": project | {"bucket": self.bucket(asked["name"])}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/up"} for name in asked["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "createArtifact" in query:
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}
            return {"createArtifact": {"artifact": artifact}}
        if "ArtifactType" in query:
            return {"project": {"artifact": None}}
        if "upsertView" in query:
            self.views.append(asked)
            made = {"id": "v", "name": asked["name"], "displayName": asked["displayName"]}
            rest = {"description": "", "spec": asked["spec"], "project": {"id": "p", "name": "p"}}
            times = {"createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00"}
            return {"upsertView": {"view": made | rest | times, "inserted": True}}
        if "viewer" in query:
            who = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": who | {"teams": {"edges": []}}}
        if "models(" in query:
            return {"models": {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        if "createProject" in query or "upsertModel" in query:
            return {"upsertModel": {"model": {"id": "p", "name": "p"}, "project": None}}
        return {"serverInfo": {"features": []}}

    def bucket(self, name):
        lines = [line for line in self.history.get(name, []) if line]
        return {
            "id": "b",
            "name": name,
            "displayName": name,
            "config": "{}",
            "tags": [],
            "summaryMetrics": "{}",
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(lines[-1:]),
            "eventsTail": "[]",
            "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}},
        }

    def stream(self, path, sent):
        new = (sent.get("files") or {}).get("wandb-history.jsonl")
        if new:
            lines = self.history.setdefault(path.split("/")[4], [])
            del lines[new["offset"] :]
            lines += new["content"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        sent, answer = self.body(), {}
        if self.path == "/graphql":
            asked = json.loads(sent)
            answer = {"data": self.server.answer(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path, json.loads(sent))
        self.reply(answer)

    def do_PUT(self):
        self.body()
        self.reply({})

    def body(self):
        if self.server.fault == "hang":
            threading.Event().wait()
        if self.server.fault == "close":
            raise ConnectionAbortedError
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(sent) if self.headers.get("Content-Encoding") == "gzip" else sent

    def reply(self, answer):
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Quiet."""
