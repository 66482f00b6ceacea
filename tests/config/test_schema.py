"""Each config key is declared once, and the declaration is what validation and --help read."""

import pytest
from omegaconf import OmegaConf

from lightning_distill.config.catalog import committed
from lightning_distill.config.schema import RENAMED, SCHEMA, Key

KEYS = {key for key in committed() if key.split(".")[0] != "hydra"}


def test_every_committed_key_is_declared():
    assert KEYS - set(SCHEMA) == set()


def test_every_declared_key_is_committed():
    hydra = {"hydra.sweeper.n_trials"}  # in the option sweeper=optuna
    assert set(SCHEMA) - set(committed()) - hydra == set()


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_committed_value_fits_its_declaration(key):
    for choice, value in committed()[key]:
        interpolated = isinstance(value, str) and ("${" in value or value == "???")
        if not interpolated:
            assert list(SCHEMA[key].problems(key, OmegaConf.create([value])[0])) == [], choice


def test_every_declaration_says_what_the_key_means_in_one_line():
    assert all(one.meaning and "\n" not in one.meaning for one in SCHEMA.values())


def test_no_renamed_key_is_still_there():
    assert not set(RENAMED) & set(SCHEMA)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        (Key("integer", "", minimum=1), 0, "x=0 must be a whole number of at least 1"),
        (Key("integer", "", minimum=1), True, "x=True must be a whole number of at least 1"),
        (Key("integer", "", minimum=1), None, "x=None must be a whole number of at least 1"),
        (Key("integer", "", minimum=0), 2**32, "x=4294967296 must be a whole number of at most"),
        (Key("number", "", above=0), 0.0, "x=0.0 must be a number above 0"),
        (Key("number", "", minimum=0, below=1), 1, "x=1 must be a number from 0 to below 1"),
        (Key("number", "", minimum=0, maximum=1), 2, "x=2 must be a number from 0 to 1"),
        (Key("number", ""), float("nan"), "x=nan must be a number"),
        (Key("text", ""), "", "x= is empty"),
        (Key("text", ""), 3, "x=3 must be text, in quotes where it is a number"),
        (Key("text", "", choices=("int8", "int4")), "int3", "Did you mean int"),
        (Key("integer", "", choices=(8, 16)), 12, "x=12 must be 8 or 16"),
        (Key("switch", ""), 1, "x=1 must be true or false"),
        (Key("list", ""), "a", "x=a must be a list, as in x=[a]"),
        (Key("value", ""), [1], "x=[1] must be a single value"),
        (Key("node", ""), 3, "x=3 must be left to its own keys"),
    ],
)
def test_a_value_out_of_its_declaration_is_one_problem(key, value, problem):
    (found,) = key.problems("x", value)
    assert found.startswith(problem) or problem in found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (Key("integer", "", minimum=1), 1),
        (Key("integer", "", minimum=1, nullable=True), None),
        (Key("number", "", maximum=1), 1),
        (Key("text", "", choices=("a", "b"), nullable=True), None),
        (Key("list", ""), [1, 2]),
        (Key("value", ""), None),
        (Key("any", ""), {"a": 1}),
    ],
)
def test_a_value_that_fits_has_no_problem(key, value):
    assert list(key.problems("x", value)) == []
