"""A terminal in which the documentation's commands run: real bash, and on its PATH the program.

`lightning-distill` on that PATH hands its arguments, folder, environment and streams to a copy of
a process that has imported everything already, which begins at once. Commands that train are
shortened: settings that make little of them are put behind the reader's own.
"""

import json
import os
import socketserver
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import huggingface_hub
from forked import CONTEXT, run_command
from pages import ROOT
from shortened import shorten

# What asks the service below; -IS: nothing is imported that it does not need.
PROGRAM = f"""#!{sys.executable} -IS
import json, os, socket, sys

request = dict(argv=sys.argv[1:], folder=os.getcwd(), env=dict(os.environ), pid=os.getpid())
with socket.socket(socket.AF_UNIX) as service:
    service.connect({{address!r}})
    service.sendall(json.dumps(request).encode() + b"\\n")
    sys.exit(int(service.makefile().readline() or 1))
"""
# pip says what it would install, from the clone, and does not.
PIP = f"""#!/bin/bash
cd {ROOT}
exec {sys.executable} -m pip "$@" --dry-run --quiet
"""
PYTHON = f"""#!/bin/bash
[ "$1 $2" = "-m pip" ] && exec "$(dirname "$0")/pip" "${{@:3}}"
exec {sys.executable} "$@"
"""


class Service(socketserver.ThreadingUnixStreamServer):
    """Runs the commands that bash starts."""

    daemon_threads = True

    def __init__(self, gguf: Path) -> None:
        self.gguf = gguf
        folder = Path(tempfile.mkdtemp())  # the address of a socket has to be short
        super().__init__(str(folder / "s"), Handler)
        self.bin = folder / "bin"
        self.bin.mkdir()
        program = PROGRAM.format(address=self.server_address)
        for name, text in {"lightning-distill": program, "pip": PIP, "python": PYTHON}.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        (self.bin / "python3").symlink_to("python")
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        asked = json.loads(self.rfile.readline())
        argv = shorten(asked["argv"], self.server.gguf)
        streams = [f"/proc/{asked['pid']}/fd/{number}" for number in range(3)]
        run = CONTEXT.Process(
            target=run_command,
            args=(argv, asked["folder"], streams[1:], asked["env"], partial(prepare, streams[0])),
        )
        run.start()
        run.join()
        self.wfile.write(f"{run.exitcode}\n".encode())


def prepare(stream: str) -> None:
    """Before the program begins: its input; and no hub, as it asked before it was imported."""
    os.dup2(os.open(stream, os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    huggingface_hub.constants.HF_HUB_OFFLINE = True


def run_in_bash(lines: list[str], folder: Path, bin: Path) -> subprocess.CompletedProcess:
    """The last of the lines, after the others; a line is typed where one is asked for."""
    env = {
        **os.environ,
        "PATH": f"{bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "NO_PROXY": "127.0.0.1",
    }
    env.pop("WANDB_SERVICE", None)
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(lines)],
        cwd=folder,
        env=env,
        input="Hi\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
