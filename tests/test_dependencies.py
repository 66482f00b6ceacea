"""What an installation gets: pinned versions, by hash, for every Python version that is claimed."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent.parent
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
COMPROMISED = ("2.6.2", "2.6.3")  # of lightning
LOCKED = re.compile(r"^(\S+)==(\S+)(?: ; ([^\\]+?))? \\$((?:\n    --hash=\S+(?: \\)?)+)", re.M)
SOURCE_ONLY = ["antlr4-python3-runtime", "rouge-score", "sqlitedict", "word2number"]
SOURCE_ONLY_SINCE_313 = ["sqlalchemy"]
# What torch of the index wants besides, and torch built for the CPU does not.
CUDA = re.compile(r"(nvidia|cuda)-.*|triton")


@pytest.fixture(scope="module")
def locked():
    """Of each package its version and hashes."""
    found = LOCKED.findall((HERE / "requirements.lock").read_text())
    return {canonicalize_name(name): (version, hashes) for name, version, _, hashes in found}


def pinned(python):
    """The version of each package that constraints.txt names, for one version of Python."""
    environment = {**default_environment(), "python_version": python}
    lines = (HERE / "constraints.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(one.name): str(one.specifier)[2:]
        for one in wanted
        if one.marker is None or one.marker.evaluate(environment)
    }


ALL_PINNED = {name: version for python in PYTHONS for name, version in pinned(python).items()}


def test_every_version_that_is_pinned_is_locked_by_the_hashes_of_its_files(locked):
    assert {name: version for name, (version, _) in locked.items()} == ALL_PINNED
    for name, (_, hashes) in locked.items():
        found = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", hashes)
        assert len(found) == hashes.count("--hash=") >= 1, name


def test_torch_is_locked_as_the_index_has_it_and_as_built_for_the_cpu_alone(locked):
    (cpu,) = re.findall(r"CPU_TORCH := (\w+)", (HERE / "Makefile").read_text())
    assert f"sha256:{cpu}" in locked["torch"][1]
    assert locked["torch"][1].count("--hash=") > 10


@pytest.mark.parametrize("version", COMPROMISED)
def test_the_compromised_releases_of_lightning_are_excluded_and_absent(locked, version):
    (wanted,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "lightning")
    assert not wanted.specifier.contains(version)
    for name in ("lightning", "pytorch-lightning"):
        assert locked[name][0] != version
        assert ALL_PINNED[name] != version


def test_the_claimed_python_versions_are_the_classifiers():
    claimed = SpecifierSet(PROJECT["requires-python"])
    assert [p for p in (f"3.{minor}" for minor in range(30)) if claimed.contains(p)] == PYTHONS
    assert PROJECT["classifiers"] == [f"Programming Language :: Python :: {p}" for p in PYTHONS]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_pin_that_is_installed_admits_the_claimed_python_versions(python):
    versions = pinned(python)
    required = {}
    for one in importlib.metadata.distributions():
        name, version = canonicalize_name(one.metadata["Name"]), one.version.split("+")[0]
        if versions.get(name) == version:
            required[f"{name}=={version}"] = one.metadata["Requires-Python"]
    assert len(required) > 50
    refusing = {k: v for k, v in required.items() if v and not SpecifierSet(v).contains(python)}
    assert not refusing


@pytest.mark.long  # asks the package index, for metadata alone: it downloads no wheel
@pytest.mark.parametrize("extra", [[], ["--extra", "dev"]], ids=["package", "dev"])
@pytest.mark.parametrize("python", PYTHONS)
def test_an_installation_gets_pinned_versions_that_have_wheels_for_each_python(python, extra):
    """The packages named above are pure Python, and built from source."""
    pytest.importorskip("uv")
    source = SOURCE_ONLY + SOURCE_ONLY_SINCE_313 * (python in ("3.13", "3.14"))
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *extra]
    command += ["--constraints=constraints.txt", "--quiet", "--no-header", "--no-annotate"]
    command += [f"--python-version={python}", "--python-platform=x86_64-manylinux_2_28"]
    command += ["--only-binary=:all:", *(f"--no-binary={name}" for name in source)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    resolved = dict(line.split("==") for line in done.stdout.splitlines())
    loose = dict(resolved.items() - pinned(python).items())
    assert [name for name in loose if not CUDA.fullmatch(name)] == []
    assert len(resolved) > 50
