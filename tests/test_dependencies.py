"""What is installed is known by its content: `requirements.lock`, of `make lock`."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

HERE = Path(__file__).parent.parent
COMPROMISED = ("2.6.2", "2.6.3")  # of lightning
LOCKED = re.compile(r"^(\S+)==(\S+)(?: ; ([^\\]+?))? \\$((?:\n    --hash=\S+(?: \\)?)+)", re.M)


@pytest.fixture(scope="module")
def locked():
    """Of each package its version and hashes."""
    found = LOCKED.findall((HERE / "requirements.lock").read_text())
    return {name.lower(): (version, hashes) for name, version, _, hashes in found}


def pinned(python):
    """What constraints.txt says for one version of Python."""
    for line in (HERE / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"python_version": python}):
                yield re.sub(r"[-_.]+", "-", wanted.name).lower(), str(wanted.specifier)[2:]


def test_every_version_that_is_pinned_is_locked_by_the_hashes_of_its_files(locked):
    assert {name: version for name, (version, _) in locked.items()} == dict(pinned("3.11"))
    for name, (_, hashes) in locked.items():
        found = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", hashes)
        assert len(found) == hashes.count("--hash=") >= 1, name


def test_torch_is_locked_as_the_index_has_it_and_as_built_for_the_cpu_alone(locked):
    (cpu,) = re.findall(r"CPU_TORCH := (\w+)", (HERE / "Makefile").read_text())
    assert f"sha256:{cpu}" in locked["torch"][1]
    assert locked["torch"][1].count("--hash=") > 10


@pytest.mark.parametrize("version", COMPROMISED)
def test_the_compromised_releases_of_lightning_are_excluded_and_absent(locked, version):
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    (wanted,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "lightning")
    assert not wanted.specifier.contains(version)
    for name in ("lightning", "pytorch-lightning"):
        assert locked[name][0] != version
        assert version not in (
            v for python in ("3.10", "3.11") for n, v in pinned(python) if n == name
        )
