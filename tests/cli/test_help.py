"""`--help GROUP` and `--help KEY`: the declaration of the keys, in 80 columns, without torch."""

import subprocess
import sys

import pytest

from lightning_distill.cli.help import describe, first_comment, help_topics
from lightning_distill.config.catalog import groups
from lightning_distill.config.schema import SCHEMA
from lightning_distill.errors import ConfigError


def test_the_page_of_a_group_has_its_options_and_keys():
    page = describe("loss")
    assert "loss=OPTION" in page
    assert "  jensen_shannon\n      Between forward and reverse KL, and bounded" in page
    assert "  loss.label_smoothing\n" in page
    assert "number from 0 to below 1; default 0.0" in page
    assert "number from 0 to 1; default 0.5 with loss=jensen_shannon" in page


def test_the_page_of_a_key_is_its_entry():
    assert describe("student.max_steps").splitlines() == [
        "  student.max_steps",
        "      optimizer steps; 0 for the student as it starts; null with epochs",
        "      integer from 0, or null; default 1000; others for pretrained models, parts",
        "      and adapters, see --cfg job",
    ]


def test_the_page_of_the_stage_lists_the_stages():
    assert "  export\n      write a student for transformers" in describe("stage")


@pytest.mark.parametrize("topic", [*groups(), *SCHEMA])
def test_a_page_is_at_most_80_columns_wide(topic):
    lines = describe(topic).splitlines()
    assert lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("group", groups())
def test_every_option_says_what_it_is(group):
    hydra = group in ("hydra/help",)
    assert hydra or all(first_comment(file) for file in groups()[group])


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("los", "loss"),
        ("student.max_step", "student.max_steps"),
        ("temperature", "loss.temperature or transfer.temperature"),
    ],
)
def test_another_word_is_refused_with_the_nearest_name(word, nearest):
    with pytest.raises(ConfigError, match=f"Did you mean {nearest}"):
        describe(word)


def test_overrides_and_flags_are_not_topics():
    assert help_topics(["--help"]) == []
    assert help_topics(["--help", "loss=forward_kl"]) == []
    assert help_topics(["loss", "--help"]) == ["loss"]
    assert help_topics(["loss"]) == []


def test_the_command_prints_a_page_without_torch():
    run = "try: app.main()\nfinally: print('torch' in sys.modules)"
    probe = f"import sys\nimport lightning_distill.cli.app as app\n{run}"
    done = subprocess.run(
        [sys.executable, "-c", probe, "--help", "trainer"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "trainer.precision" in done.stdout


def test_the_command_exits_with_2_for_another_word():
    done = subprocess.run(
        [sys.executable, "-m", "lightning_distill", "--help", "los"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "lightning-distill: --help los: there is no such group or key. Did you mean loss?"
    )
