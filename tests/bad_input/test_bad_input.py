"""Every command line of commands.yaml ends with code 2, says what to mend, and writes nothing."""

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import world
import yaml
from conftest import without_first_composition

from lightning_distill.cli import app
from lightning_distill.storage.artifacts import find_damage, hash_of

COMMANDS = yaml.safe_load((Path(__file__).parent / "commands.yaml").read_text(encoding="utf-8"))
CASES = [(group, case) for group, cases in COMMANDS.items() for case in cases]
TRAINED = (
    "data=text data.path=text.jsonl data.vocab_size=300 data.sequence_length=32 student=xs "
    "student.hidden_size=16 student.max_steps=2 teacher=xs teacher.hidden_size=32 "
    "teacher.max_steps=2 trainer=cpu logger=none transfer=cached transfer.num_blocks=8"
)
# What a command may leave besides nothing, by the word that its case has for it.
LEFT = {
    "nothing": r"(?!)",
    # Of one that comes upon the mistake when its job has begun, that it has.
    "begun": r"outputs/runs/[^/]+/[^/]+/(\.hydra/\w+\.yaml|job\.log|results\.json)",
    # Of a sweep, whose jobs fail one by one: each one's notes, and that it failed.
    "failed jobs": r"outputs/(sweeps|plan)/.*|outputs/artifacts/job/\w+\.json",
    # What Hydra writes before it knows that there are no jobs.
    "multirun.yaml": r"outputs/sweeps/[^/]+/multirun\.yaml",
}
# A tokenizer and tokens are whole, and what the mended command uses; so may be a teacher, and
# what it was judged by.
MADE = re.compile(r"(outputs/artifacts/(?:tokenizer|tokens|teacher|teacher_check)/[0-9a-f]{16})/.*")


def typed(command, monkeypatch, capsys):
    """The command's exit code, and what it says on stderr."""
    arguments = shlex.split(command)
    tracked = any(argument.startswith("logger") for argument in arguments)
    flags = [argument for argument in arguments if argument.startswith("-")]
    arguments += [] if tracked or flags == arguments else ["logger=none"]
    monkeypatch.setattr(sys, "argv", ["lightning-distill", *arguments])
    without_first_composition(monkeypatch, arguments)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the same wherever it is tested
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    before = list(logging.getLogger().handlers)
    code = 0
    try:
        app.main()
    except SystemExit as stop:
        code = stop.code
    finally:
        logging.getLogger().handlers[:] = before  # Hydra's hold this test's output
    return code, capsys.readouterr().err


@pytest.fixture(scope="module")
def typing_place(tmp_path_factory):
    """The folder that commands are typed in, with a finished run of two steps and its cache."""
    root = tmp_path_factory.mktemp("world")
    world.build(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        done = [*shlex.split(TRAINED), "hydra.run.dir=outputs/runs/done"]
        patch.setattr(sys, "argv", ["lightning-distill", *done])
        before = list(logging.getLogger().handlers)
        app.main()
        logging.getLogger().handlers[:] = before
    (tokenizer,) = (root / "outputs/artifacts/tokenizer").iterdir()
    world.build_models(root, tokenizer)
    world.spoil_runs(root, root / "outputs/runs/done")
    (cache,) = (root / "outputs/artifacts/predictions").iterdir()
    cache.rename(root / "cache")
    shutil.copytree(root / "cache", root / "cut_cache")
    shard = next((root / "cut_cache").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    return root


def files(root):
    return {
        str(file.relative_to(root)): (file.stat().st_size, hash_of(file))
        for file in root.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("group", "case"), CASES, ids=[f"{group}: {case['run']}"[:90] for group, case in CASES]
)
def test_a_mistake_is_refused_in_a_line_and_leaves_nothing(
    typing_place, group, case, monkeypatch, capsys
):
    if "needs" in case:
        pytest.importorskip(case["needs"])
    monkeypatch.chdir(typing_place)
    before = files(typing_place)
    code, said = typed(case["run"], monkeypatch, capsys)
    assert code == 2, said
    says = case["says"] if isinstance(case["says"], list) else [case["says"]]
    for part in says:
        assert part in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2
    after = files(typing_place)
    assert {name: after.get(name) for name in before} == before
    allowed = LEFT[case.get("leaves", "nothing")]
    made = {match[1] for name in after if name not in before and (match := MADE.fullmatch(name))}
    assert not any(find_damage(typing_place / folder) for folder in made)
    odd = [n for n in after if n not in before and not re.fullmatch(allowed, n)]
    assert [n for n in odd if not MADE.fullmatch(n)] == []
    assert "leaves" in case or not (typing_place / "outputs/runs/distill").exists()
    for notes in ("runs/distill", "sweeps", "plan"):  # which the next case need not compare
        shutil.rmtree(typing_place / "outputs" / notes, ignore_errors=True)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("student=smal", "student=smal does not exist. Did you mean s"),
        ("paths.outputs=file", "paths.outputs=file must be a folder, and file is a file"),
    ],
)
def test_the_real_command_exits_with_2_and_a_line(typing_place, command, says):
    done = subprocess.run(
        [sys.executable, "-m", "lightning_distill", *shlex.split(command)],
        cwd=typing_place,
        env={**os.environ, "HYDRA_FULL_ERROR": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
