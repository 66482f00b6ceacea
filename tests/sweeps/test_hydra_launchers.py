"""The same sweep in processes, on a cluster, and in an order that Optuna chooses."""

import csv
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import yaml
from filelock import SoftFileLease

from lightning_distill.config.catalog import CONF
from lightning_distill.sweeps.job import read_results

SLURM = """#!{python}
import os, subprocess, sys
script = open(sys.argv[1]).read()
open({record!r}, "w").write(script)
last = script.partition("--array=0-")[2].partition("%")[0]
print("Submitted batch job 77")
for task in range(int(last) + 1):
    job = {{"SLURM_JOB_ID": str(78 + task), "SLURM_ARRAY_JOB_ID": "77", "SLURM_NTASKS": "1"}}
    job |= {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"}}
    job |= {{"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}}
    subprocess.Popen(["bash", sys.argv[1]], env=os.environ | job, stdout=-3, stderr=-3)
"""
FOUR = ["seed=0,1", "loss.alpha=0,1"]


def needs(plugin):
    there = find_spec("hydra_plugins") and find_spec(f"hydra_plugins.hydra_{plugin}")
    return pytest.mark.skipif(not there, reason=f"Hydra's {plugin} is not installed")


def table(outputs):
    """results.csv without what no two runs share, and how many jobs trained a teacher."""
    with (outputs / "sweeps" / "four" / "results.csv").open() as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    trained = sum(float(row["cost.teacher_seconds"]) > 0 for row in rows.values())
    for row in rows.values():
        for key in [key for key in row if key.startswith("cost.")]:
            del row[key]
        del row["started"]
        row["overrides"] = row["overrides"].replace(str(outputs), "")
    return rows, trained


@pytest.fixture
def sweep(command, tmp_path):
    """A sweep whose outputs are in a folder of its own."""

    def run(*overrides, **kwargs):
        where = [f"paths.outputs={tmp_path}", "sweep.name=four", "logger=none"]
        return command("-m", *where, *overrides, **kwargs)

    return run


@pytest.fixture(scope="module")
def one_by_one(command, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    command("-m", f"paths.outputs={outputs}", "sweep.name=four", "logger=none", *FOUR)
    return table(outputs)


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["joblib", "hydra.launcher.n_jobs=2"], marks=needs("joblib_launcher")),
        pytest.param(["submitit_local"], marks=needs("submitit_launcher")),
        pytest.param(["ray"], marks=needs("ray_launcher")),
    ],
    ids=lambda launcher: launcher[0],
)
def test_every_launcher_gives_the_same_results_with_one_teacher(
    sweep, one_by_one, launcher, tmp_path
):
    # Ray keeps a secret of its clusters in the user's folder.
    sweep(*FOUR, f"hydra/launcher={launcher[0]}", *launcher[1:], HOME=str(tmp_path / "home"))
    rows, trained = table(tmp_path)
    assert len(rows) == 4
    assert rows == one_by_one[0]
    assert trained == one_by_one[1] == 1
    assert len(list((tmp_path / "artifacts" / "teacher").glob("*/manifest.json"))) == 1


@pytest.mark.long
@needs("submitit_launcher")
def test_slurm_gets_an_array_job_with_the_requested_resources(sweep, one_by_one, tmp_path):
    """Slurm's commands are stand-ins here, which start every task of the array at once."""
    commands, record = tmp_path / "bin", tmp_path / "sbatch.sh"
    commands.mkdir()
    srun = '#!/bin/sh\nwhile [ "$1" != -u ]; do python="$1"; shift; done\nexec "$python" "$@"\n'
    for name, text in {
        "sbatch": SLURM.format(python=sys.executable, record=str(record)),
        "srun": srun,
        "sacct": "#!/bin/sh\necho 'JobID|State|NodeList'\n",
    }.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    sweep(*FOUR, "hydra/launcher=slurm", "hydra.launcher.partition=a100", PATH=path)
    assert table(tmp_path)[0] == one_by_one[0]
    script = record.read_text()
    said = {line.removeprefix("#SBATCH --") for line in script.splitlines()}
    assert {"partition=a100", "array=0-3%4", "time=240", "mem=32GB", "gpus-per-node=1"} <= said
    assert {"cpus-per-task=4", "ntasks-per-node=1", "nodes=1", "signal=USR2@120"} <= said
    assert "/python -u -m submitit.core._submit " in script.splitlines()[-1]


@needs("submitit_launcher")
def test_a_machine_without_slurm_refuses_it(in_process, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = ["hydra.mode=MULTIRUN", "hydra/launcher=slurm", "loss.alpha=0,1"]
    done = in_process(*settings, f"paths.outputs={tmp_path}", expect=2)
    assert "hydra/launcher=slurm: Could not detect" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def process_of(outputs, override):
    """Of the job with this override, once it has a checkpoint."""
    for _ in range(3000):
        for checkpoint in outputs.glob("sweeps/four/*/checkpoints/*.ckpt"):
            found = read_results(checkpoint.parents[1])
            lock = outputs / "artifacts" / "job" / f"{found['key']}.lock"
            owner = SoftFileLease(lock, lease_duration=60).owner
            if override in found["overrides"] and found["status"] == "running" and owner:
                return owner.pid
        time.sleep(0.05)
    raise AssertionError("no such job has begun")


TWO = ["seed=0,1", "loss.alpha=0", "student.max_steps=200", "checkpoint_every_n_steps=20"]


def killed(sweep, outputs, *launcher):
    """What a sweep of two says of whose first job's process is killed, and how both ended."""
    with ThreadPoolExecutor() as pool:
        running = pool.submit(sweep, *TWO, *launcher, expect=1)
        os.kill(process_of(outputs, "seed=0"), signal.SIGKILL)
        said = running.result().stdout
    assert (outputs / "sweeps" / "four" / "report.html").exists()
    found = [read_results(f.parent) for f in outputs.glob("sweeps/four/*/results.json")]
    return said, sorted(results["status"] for results in found)


@pytest.mark.long
@needs("joblib_launcher")
def test_a_killed_process_is_reported_and_the_command_resumes(sweep, tmp_path):
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    said, _ = killed(sweep, tmp_path, *launcher)
    assert "The sweep broke off: A worker process" in said
    assert "killed before its end" in said
    sweep(*TWO, *launcher)
    assert [row["status"] for row in table(tmp_path)[0].values()] == ["finished"] * 2
    logs = [log.read_text() for log in tmp_path.glob("sweeps/four/*/job.log")]
    assert any("resuming from" in log for log in logs)


@pytest.mark.long
@needs("submitit_launcher")
def test_with_submitit_a_killed_process_leaves_the_others_running(sweep, tmp_path):
    said, statuses = killed(sweep, tmp_path, "hydra/launcher=submitit_local")
    assert "The sweep broke off: " in said
    assert said.count("killed before its end") == 1
    assert statuses == ["finished", "running"]


@pytest.mark.long
@needs("optuna_sweeper")
def test_optuna_finds_the_pareto_front_and_the_same_command_trains_nothing(command, tmp_path):
    def study():
        return command(
            "-m",
            "hydra/sweeper=optuna",
            "sweep.objectives=[student.perplexity,student.parameters]",
            "hydra.sweeper.n_trials=6",
            "student.num_hidden_layers=range(1,3)",
            "optimizer.lr=interval(0.001,0.01)",
            f"paths.outputs={tmp_path}",
            "sweep.name=study",
            "logger=none",
        )

    def found():
        files = (tmp_path / "sweeps" / "study").glob("*/results.json")
        return {str(file.parent): read_results(file.parent) for file in files}

    def front():
        file = tmp_path / "sweeps" / "study" / "optimization_results.yaml"
        return [tuple(one["values"]) for one in yaml.safe_load(file.read_text())["solutions"]]

    study()
    first, first_front = found(), front()
    assert len(first) == 6
    points = [(r["student"]["perplexity"], r["student"]["parameters"]) for r in first.values()]
    best = [p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)]
    assert sorted(first_front) == sorted(best)

    again = study()
    assert again.stdout.count("finished before, skipped") == 6
    assert found() == first
    assert front() == first_front


@pytest.mark.long
@needs("optuna_sweeper")
@pytest.mark.parametrize("names", ["[student.nll]", "[student.nll,student.parameters]"])
def test_a_failed_job_does_not_end_the_study(in_process, names, tmp_path):
    done = in_process(
        "hydra.mode=MULTIRUN",
        "hydra/sweeper=optuna",
        f"sweep.objectives={names}",
        "hydra.sweeper.n_trials=3",
        "student.num_attention_heads=choice(2,3)",  # 3 do not divide the width
        "loss.alpha=0",
        f"paths.outputs={tmp_path}",
        "sweep.name=study",
        expect=1,
    )
    assert "Best value" in done.stdout or "Pareto solutions: 1" in done.stdout
    found = [read_results(f.parent) for f in tmp_path.glob("sweeps/study/*/results.json")]
    assert sorted(results["status"] for results in found) == ["failed", "finished"]


@pytest.mark.parametrize(
    "file",
    [*CONF.glob("hydra/launcher/*.yaml"), *CONF.glob("hydra/sweeper/*.yaml")],
    ids=lambda file: file.stem,
)
def test_a_missing_plugin_is_named_with_its_extra(in_process, file, tmp_path):
    inherits = "hydra_plugins.hydra_joblib_launcher"  # gpus.yaml
    plugin = yaml.safe_load(file.read_text()).get("_target_", inherits).split(".")[1]
    if find_spec("hydra_plugins") and find_spec(f"hydra_plugins.{plugin}"):
        pytest.skip("installed")
    chosen = f"hydra/{file.parent.name}={file.stem}"
    settings = ["hydra.mode=MULTIRUN", chosen, "loss.alpha=0,1", f"paths.outputs={tmp_path}"]
    done = in_process(*settings, expect=2)
    extra = plugin.split("_")[1]
    assert f"{chosen} needs the extra: pip install 'lightning_distill[{extra}]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@needs("ray_launcher")
def test_a_ray_cluster_needs_absolute_paths(in_process):
    settings = ["hydra.mode=MULTIRUN", "hydra/launcher=ray", "hydra.launcher.ray.init.address=auto"]
    done = in_process(*settings, "loss.alpha=0,1", "paths.outputs=outputs", expect=2)
    assert "paths.outputs=outputs must be an absolute path" in done.stderr


@pytest.mark.long
@needs("joblib_launcher")
def test_no_gpu_is_idle_while_there_are_jobs(sweep, tmp_path):
    """The GPUs are names here; the jobs run on the processor."""
    sweep(*FOUR, "hydra/launcher=gpus", CUDA_VISIBLE_DEVICES="0,1", TMPDIR=str(tmp_path))
    logs = [log.read_text() for log in tmp_path.glob("sweeps/four/*/job.log")]
    ran_on = [log.partition("runs on GPU ")[2][0] for log in logs]
    assert len(ran_on) == 4
    assert set(ran_on) == {"0", "1"}


@needs("joblib_launcher")
def test_the_gpus_launcher_without_a_gpu_is_refused(in_process, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = [
        "hydra.mode=MULTIRUN",
        "hydra/launcher=gpus",
        "loss.alpha=0,1",
        f"paths.outputs={tmp_path}",
    ]
    done = in_process(*settings, expect=2)
    assert "hydra/launcher=gpus finds no GPU" in done.stderr
    assert not (tmp_path / "sweeps").exists()
