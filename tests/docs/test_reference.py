"""The reference names everything that there is: keys, options, stages, metrics, files, names."""

import csv
import json
import re

import pytest
import torch
from omegaconf import OmegaConf
from pages import ROOT
from torch import nn

import lightning_distill as ld
from lightning_distill.cli.help import first_comment
from lightning_distill.config.catalog import groups, keys_of
from lightning_distill.losses import divergences
from lightning_distill.metrics.declarations import GROUPS
from lightning_distill.models.predictions import Head, Predictions
from lightning_distill.stages import STAGES
from lightning_distill.transfer.cache.hidden_codec import HiddenStateCodec
from lightning_distill.transfer.cache.sparse_codec import SparseCodec
from scripts import docs_tables
from scripts.docs_docstrings import with_lists


def page(name):
    text = (ROOT / "docs" / "reference" / f"{name}.md").read_text()
    return docs_tables.on_page_markdown(text)


def rows(text):
    """The cells of each row of a page's tables."""
    lines = re.findall(r"^\| (.+) \|$", text, re.M)
    return [re.split(r" ?(?<!\\)\| ", line) for line in lines if not line.startswith("---")]


def section(text, title):
    return re.split(r"^## ", text.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def test_each_key_of_the_default_config_is_on_the_page():
    config = OmegaConf.to_container(ld.compose([]), resolve=False)
    leaves = {key for key, value in keys_of(config) if not isinstance(value, dict) or not value}
    listed = {cells[0].split("`")[1] for cells in rows(page("config")) if "{ #" in cells[0]}
    assert len(leaves) > 100
    assert leaves - listed == set()


@pytest.mark.parametrize("group", sorted(set(groups()) - set(docs_tables.INTERNAL)))
def test_each_option_is_on_the_page_with_the_first_comment_of_its_file(group):
    listed = dict(rows(section(page("options"), group))[1:])
    listed = {name.split("`")[1]: meaning for name, meaning in listed.items()}
    assert listed == {file.stem: docs_tables.text(first_comment(file)) for file in groups()[group]}


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_has_an_example(name):
    text = section(page("stages"), name)
    (example,) = re.findall(r"```bash\n(.+)\n```", text)
    assert f"stage={name}" in example or name == "distill"


def test_each_metric_is_on_the_page():
    declared = [cells for cells in rows(page("metrics")) if "{ #" in cells[0]]
    listed = {cells[0].split("`")[1]: cells[2] for cells in declared}
    for metrics in GROUPS.values():
        assert {one.key: one.direction for one in metrics}.items() <= listed.items()


def test_each_name_of_the_package_is_on_the_page():
    documented = set(re.findall(r"^::: (\S+)$", page("api"), re.M))
    objects = [getattr(ld, name) for name in ld.__all__ if name != "losses"]
    objects += [divergences.find_divergence(name) for name in divergences.names()]
    assert {f"{one.__module__}.{one.__qualname__}" for one in objects} <= documented


def test_what_a_docstring_says_of_arguments_is_a_list():
    text = "One line.\n\na, b: first\n    and more.\nc: second: {d: e}\nReturns: nothing.\nEnd."
    assert with_lists(text) == (
        "One line.\n\n\n- `a`, `b`: first\n    and more.\n- `c`: second: {d: e}\n\n"
        "Returns: nothing.\nEnd."
    )


# What the page of files says, against files

V, D, T = 70_000, 6, 3


def documented_tensors():
    """Of each kind of cache its tensors: dtypes and shape."""
    made, kinds = {}, ""
    for cells in rows(section(page("files"), "Cache shards"))[1:]:
        kinds = cells[0] or kinds
        for kind in re.findall(r"`(\w+)`", kinds) or ["all"]:
            made.setdefault(kind, {})[cells[1].strip("`")] = (cells[2], cells[3].strip("`"))
    return made


@pytest.mark.parametrize("kind", ["topk", "sampled", "hybrid"])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_tensors_of_a_sparse_cache_are_as_documented(kind, bits):
    k, draws = {"topk": (5, 0), "sampled": (0, 7), "hybrid": (5, 7)}[kind]
    codec = SparseCodec(kind, k, draws, (1.0, 2.0), bits, V)
    fields = codec.encode([Predictions(torch.randn(T, V), None, V)], torch.rand(T))
    axes = {"T": T, "K": k + draws, "I": 3, "S": 2, "bits / 8": bits // 8}
    check_tensors(fields, documented_tensors()[kind], axes)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_the_tensors_of_a_cache_of_hidden_states_are_as_documented(bits):
    head = Head(nn.Linear(D, 9), 1.0, None)
    codec = HiddenStateCodec([head], bits, 9)
    fields = codec.encode([Predictions(torch.randn(T, D), head, 9)], torch.rand(T))
    expected = {name.replace("_i", "_0"): x for name, x in documented_tensors()["hidden"].items()}
    if bits == 32:
        del expected["scale_0"]
    check_tensors(fields, expected, {"T": T, "D": D})


def check_tensors(fields, expected, axes):
    assert fields.keys() == expected.keys()
    for name, (dtypes, shape) in expected.items():
        sizes = [axes.get(axis, axis) for axis in shape.strip("[]").split(", ")]
        sizes = [int(size) for size in sizes if size != "E"]
        assert list(fields[name].shape) == sizes, name
        assert str(fields[name].dtype).removeprefix("torch.") in dtypes, name


@pytest.fixture(scope="module")
def run(in_process, tmp_path_factory):
    """The folder of a run that logs and scores what only some runs do."""
    outputs = tmp_path_factory.mktemp("outputs")
    more = ("evaluate.speed=true", "loss.hidden.weight=1")
    in_process("logger=csv", f"paths.outputs={outputs}", *more)
    (results,) = outputs.rglob("results.json")
    return results.parent


@pytest.mark.slow
def test_each_key_of_results_and_each_column_of_the_curves_is_documented(run):
    results = json.loads((run / "results.json").read_text())
    files = {cells[0].strip("`") for cells in rows(section(page("files"), "results.json"))}
    scores = {key for cells in rows(page("metrics")) for key in re.findall(r"`(.+?)`", cells[0])}
    assert results.keys() <= files
    for role in ("teacher", "student", "cost"):
        assert set(results[role]) <= files | scores, role
    with (run / "metrics.csv").open() as lines:
        assert set(next(csv.reader(lines))) <= scores


@pytest.mark.slow
def test_each_file_of_a_run_is_documented(run):
    text = section(page("files"), "Folder of a run")
    names = {path.relative_to(run).parts for path in run.rglob("*") if path.is_file()}
    for parts in names:
        assert "/".join(parts) in text or f"`{parts[0]}/`" in text or parts[-1] in text, parts
    outputs = run.parents[2]
    kinds = {folder.name for folder in (outputs / "artifacts").iterdir()}
    assert all(f"`{kind}`" in section(page("files"), "Artifacts") for kind in kinds)
