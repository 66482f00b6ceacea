"""The JSON that the dashboard would send, against what real runs have logged."""

import itertools
import json
import re
from functools import partial

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_distill.sweeps.comparison import compare_jobs
from lightning_distill.tracking import wandb_dashboard

package = pytest.mark.usefixtures("wandb_workspaces")
GROUP = """loss.alpha,student=xs<"it's">\\new, ünï"""


@pytest.fixture
def wandb_workspaces():
    return pytest.importorskip("wandb_workspaces")


@pytest.fixture(scope="module")
def sweep(command, tmp_path_factory):
    """Two students and a baseline of a real sweep, and the table of them."""
    outputs = tmp_path_factory.mktemp("outputs")
    command(
        "-m",
        "loss.alpha=0,1",
        "optimizer.lr=1e-3,3e-3",
        "sweep.name=small",
        "logger=wandb",
        f"paths.outputs={outputs}",
    )
    folder = outputs / "sweeps" / "small"
    node = OmegaConf.create({"_target_": "wandb.init", "project": "p", "entity": None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        wandb_dashboard.log_results(
            partial(instantiate, node, _partial_=True), folder, "small", compare_jobs(folder)
        )
    return folder


def sent(page):
    """What `save` would send of a workspace or a report."""
    return json.loads(page._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def panels(spec):
    if "blocks" in spec:
        grids = [b["metadata"] for b in spec["blocks"] if b["type"] == "panel-grid"]
        return [grid["panelBankSectionConfig"]["panels"] for grid in grids]
    return [s["panels"] for s in spec["section"]["panelBankConfig"]["sections"]]


def both(rows, group="small"):
    made = (
        wandb_dashboard.workspace("me", "p", group, rows),
        wandb_dashboard.report("me", "p", group, rows),
    )
    return [sent(page) for page in made]


def named(panel):
    """The (place, name) of all that a panel asks W&B for."""
    config, kind = panel["config"], panel["viewType"]
    if kind == "Run History Line Plot":
        yield "history", config["xAxis"]
        yield from (("history", metric) for metric in config["metrics"])
        yield "config", config["groupBy"].replace(".value", "", 1)
    elif kind == "Parameter Importance":
        yield "history", config["targetKey"]
    elif kind == "Vega2":
        (query,) = config["userQuery"]["queryFields"]
        (table,) = [f for f in query["fields"] if f["name"] == "summaryTable"]
        yield "table", table["args"][0]["value"]
        yield from (("column", column) for column in config["fieldSettings"].values())
    elif kind == "Weave":
        yield "table", config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]
    else:
        axes = [config.get(f"{axis}Axis") for axis in "xyz"]
        axes += [column["accessor"] for column in config.get("columns", [])]
        for axis in filter(None, axes):
            place, _, name = axis.partition(":")
            yield place, name.replace(".value", "", 1)


def leaf(node, path):
    for key in path.split("."):
        node = node[key]
    return node


@pytest.mark.slow
@package
def test_panels_refer_to_what_real_runs_log(sweep, tracked):
    runs = tracked(sweep)
    students = [one for one in runs if one.run.job_type == "student"]
    (table,) = [one for one in runs if one.run.job_type == "results"]
    assert len(students) == 4
    (file,) = sweep.rglob("results_*.table.json")
    columns = json.loads(file.read_text())["columns"]
    distilled = [one for one in students if "baseline" not in one.run.tags]
    count = 0
    for spec in both(compare_jobs(sweep)):
        for panel in itertools.chain(*panels(spec)):
            for place, name in named(panel):
                count += 1
                if place == "history":
                    assert all(name in one.history for one in distilled), name
                elif place == "table":
                    logged = table if name == "results" else distilled[0]
                    assert logged.summary[f"{name}/_type"] == "table-file"
                elif place == "column":
                    assert name in columns
                else:
                    for one in students:
                        assert leaf(getattr(one, place), name) is not None
    assert count >= 60


@pytest.mark.slow
@package
def test_the_table_has_every_job_and_its_gap_closed(sweep):
    (file,) = sweep.rglob("results_*.table.json")
    table = json.loads(file.read_text())
    lines = {line["job"]: line for line in (dict(zip(table["columns"], d)) for d in table["data"])}  # noqa: B905
    rows = {row.name: row for row in compare_jobs(sweep)}
    assert set(lines) == set(rows)
    for name, row in rows.items():
        assert lines[name]["gap_closed"] == pytest.approx(row.gap_closed)
        assert lines[name]["perplexity"] == pytest.approx(row.results["student"]["perplexity"])
        assert lines[name]["baseline"] == row.is_baseline


@pytest.mark.slow
@package
def test_axes_are_the_swept_settings(sweep):
    assert wandb_dashboard._swept_keys(compare_jobs(sweep)) == ["loss.alpha", "optimizer.lr"]


@package
def test_runs_are_filtered_by_the_exact_group():
    workspace, report = both([], GROUP)
    runsets = [*workspace["section"]["runSets"]]
    runsets += [r for b in report["blocks"] for r in b.get("metadata", {}).get("runSets", [])]
    assert len(runsets) == 1 + len(panels(report))
    for runset in runsets:
        (chosen,) = runset["filters"]["filters"]
        assert chosen["key"] == {"section": "run", "name": "group"}
        assert (chosen["op"], chosen["value"]) == ("=", GROUP)


@package
def test_panels_do_not_overlap():
    for section in itertools.chain(*map(panels, both([]))):
        taken = set()
        for panel in section:
            at = panel["layout"]
            cells = set(
                itertools.product(
                    range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
                )
            )
            assert not cells & taken
            assert max(x for x, _ in cells) < 24
            taken |= cells


@package
def test_curves_are_means_over_seeds():
    for spec in both([]):
        lines = [p for s in panels(spec) for p in s if p["viewType"] == "Run History Line Plot"]
        assert len(lines) == len(wandb_dashboard.CURVES)
        for line in lines:
            config = line["config"]
            assert (config["groupBy"], config["groupAgg"]) == ("job.value.name", "mean")
            assert config["aggregate"] is True


@package
def test_without_jobs_there_are_no_comparison_panels():
    for spec in both([]):
        asked = {name for s in panels(spec) for p in s for name in named(p)}
        assert ("table", "results") not in asked
        assert ("table", "samples") in asked


@pytest.mark.slow
@package
def test_the_command_saves_the_table_a_workspace_and_a_report(sweep, command, wandb_server):
    server, key = wandb_server
    settings = ("stage=dashboard", "logger=wandb", f"paths.outputs={sweep.parents[1]}")
    done = command(*settings, "dashboard.sweep=small", **key)
    assert [view["type"] for view in server.views] == ["project-view", "runs"]
    assert {view["displayName"] for view in server.views} == {"small"}
    for view in server.views:
        assert (view["entityName"], view["projectName"]) == ("me", "lightning_distill")
        kinds = [
            panel["viewType"] for section in panels(json.loads(view["spec"])) for panel in section
        ]
        assert {"Scatter Plot", "Vega2", "Parameter Importance"} < set(kinds)
    ((run_id, run),) = server.runs.items()
    assert (run["groupName"], run["jobType"]) == ("small", "results")
    assert run_id == (sweep / "wandb" / "results_id").read_text()
    ((row,),) = server.history.values()
    assert json.loads(row)["results"]["nrows"] == 4
    assert f"{server.url}/me/lightning_distill" in done.stdout + done.stderr


@package
def test_an_unreachable_server_is_reported_in_one_line(in_process, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    settings = ("stage=dashboard", "logger=wandb", f"paths.outputs={tmp_path}")
    done = in_process(*settings, "dashboard.sweep=a-group", expect=2)
    assert "lightning-distill: W&B's server http://127.0.0.1:9 does not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def refused(in_process, *overrides):
    done = in_process("stage=dashboard", "logger=wandb", *overrides, expect=2)
    assert done.stderr.startswith("lightning-distill: ")
    (line,) = done.stderr.splitlines()
    return line


@package
def test_missing_settings_are_reported_in_one_line(in_process, tmp_path):
    outputs = f"paths.outputs={tmp_path}"
    assert "dashboard.sweep=<" in refused(in_process, outputs)
    there = "dashboard.sweep=a-group"
    assert "W&B key" in refused(in_process, outputs, there)
    (tmp_path / "empty").mkdir()
    assert "no jobs" in refused(in_process, outputs, f"dashboard.sweep={tmp_path / 'empty'}")
    assert "not a folder" in refused(in_process, outputs, f"dashboard.sweep={tmp_path / 'none'}")
    assert "logger=wandb" in refused(in_process, outputs, there, "logger=csv")


def test_a_missing_package_is_reported_with_its_install_command(in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_dashboard, "find_spec", lambda name: None)
    line = refused(in_process, f"paths.outputs={tmp_path}", "dashboard.sweep=a-group")
    assert re.search(r"pip install 'lightning_distill\[dashboard\]'", line)
