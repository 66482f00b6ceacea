"""Which settings change the key of a job."""

import copy
import functools
import os

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lightning_distill.cli import app
from lightning_distill.cli.app import key_of_job
from lightning_distill.config.catalog import CONF
from lightning_distill.storage.artifacts import key_of
from lightning_distill.sweeps.job_key import WITHOUT_EFFECT, job_key


@pytest.fixture(scope="module")
def composed():
    assert OmegaConf.has_resolver("job_folder"), app
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: compose("config", list(overrides))


@pytest.fixture(scope="module")
def key(composed):
    return lambda *overrides: key_of_job(composed(*overrides))


SAME = [
    ["trainer=ddp"],
    ["trainer=ddp", "trainer.devices=2", "data.batch_size=2"],  # of 4 in all, as without it
    ["stage=teacher"],
    ["teacher.device=cpu"],
    ["name=other"],
    ["logger=none"],
    ["paths.outputs=/elsewhere"],
    ["sweep.rerun=all"],
    ["checkpoint_every_n_steps=7"],
    ["loss.temperature=1"],  # 1.0 without it
    ["loss.hidden.distance=cosine"],  # at weight 0
    ["student.lora.rank=0", "student.lora.alpha=1"],
    ["teacher.lora.dropout=0.5"],  # without a rank
    ["student.epochs=null", "student.keep=last", "student.stop_after=null"],
]
OTHER = [
    ["seed=1"],
    ["student=xs"],
    ["student.lora.rank=2"],
    ["teacher=l"],
    ["student.max_steps=7"],
    ["student.epochs=1"],
    ["teacher.epochs=1"],
    ["student.keep=best"],
    ["student.stop_after=2"],
    ["+trainer.max_time=00:00:00:05"],
    ["loss.temperature=2"],
    ["loss.hidden.weight=1"],
    ["optimizer.lr=0.1"],
    ["data.batch_size=2"],
    ["trainer.devices=2"],
    ["data=text", "data.path=mine", "data.streaming=true"],
    ["transfer=cached"],
    ["trainer.gradient_clip_val=2"],
]
# Beside loss.alpha=0.
WITHOUT_TEACHER = [
    ["loss.temperature=2"],
    ["loss=reverse_kl"],
    ["transfer=cached"],
    ["transfer=on_policy"],
    ["loss.hard_weight=complement"],
    ["loss.alpha=0.0"],
]
STILL_OTHER = [
    ["loss.hard_target=teacher"],
    ["loss.label_smoothing=0.1"],
    ["loss.hidden.weight=1"],
    ["student.initialize=teacher_layers"],
    ["transfer=sequence"],
    ["transfer.num_blocks=3"],
    ["loss.alpha={start: 0, end: 1}"],
    ["loss.hard_weight=0.5"],
    ["teacher=l"],  # which the student is compared with
]


@pytest.mark.parametrize("overrides", SAME, ids=str)
def test_settings_without_an_effect_keep_the_key(key, overrides):
    assert key(*overrides) == key()


@pytest.mark.parametrize("overrides", OTHER, ids=str)
def test_settings_with_an_effect_change_the_key(key, overrides):
    assert key(*overrides) != key()


def test_settings_of_an_older_version_without_the_keys_of_length_keep_the_key(composed):
    new = OmegaConf.to_container(composed(), resolve=True)
    old = copy.deepcopy(new)
    for role, keys in {"student": ("epochs", "keep", "stop_after"), "teacher": ("epochs",)}.items():
        for name in keys:
            del old[role][name]
    assert job_key(old) == job_key(new)


def test_beside_epochs_the_steps_of_a_file_do_not_count(key):
    assert key("student.epochs=2") == key("student.max_steps=null", "student.epochs=2")


@pytest.mark.parametrize("overrides", WITHOUT_TEACHER, ids=str)
def test_a_baseline_ignores_the_settings_of_distillation(key, overrides):
    assert key("loss.alpha=0", *overrides) == key("loss.alpha=0")


@pytest.mark.parametrize("overrides", STILL_OTHER, ids=str)
def test_at_alpha_0_the_other_settings_still_change_the_key(key, overrides):
    assert key("loss.alpha=0", *overrides) != key("loss.alpha=0")


def test_a_changed_input_file_changes_the_key(key, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    named = ("data=text", f"data.path={tmp_path}")
    first = key(*named)
    assert key(*named) == first
    os.utime(file, ns=(1, 1))
    assert key(*named) != first
    (tmp_path / "b.txt").write_text("another")
    assert key("data=text", f"data.path={file}") != key(*named)


@pytest.fixture(scope="module")
def configurations(composed):
    """Composed settings, with the overrides that make them."""
    every = ([], ["transfer=cached", "trainer=ddp"], ["student.lora.rank=2"], STREAMED, INSIDE)
    found = []
    for overrides in every:
        container = OmegaConf.to_container(composed(*overrides, "trainer.devices=1"), resolve=True)
        found.append((overrides, {str(name): value for name, value in container.items()}))
    return found


STREAMED = ["data=text", "data.path=mine", "data.streaming=true"]
INSIDE = ["loss.hidden.weight=1", "loss.relations.weight=1"]
# Prefixes of settings without an effect, and the overrides that give some of them one.
IDLE = (
    *("trainer.accelerator", "trainer.strategy", "trainer.resume"),
    *("teacher.device", "data.num_workers"),
)
IDLE_BUT = {
    "data.streaming": STREAMED,  # which itself counts
    "data.held_out_documents": STREAMED,
    "data.tokenizer_mb": STREAMED,
    "loss.hidden.": INSIDE,
    "loss.relations.": INSIDE,
    "student.lora.": ["student.lora.rank=2"],
    "teacher.lora.": None,
}


def leaves(node, path=()):
    """The paths of all single values, and of lists."""
    for key, value in node.items():
        here = (*path, key)
        yield from leaves(value, here) if isinstance(value, dict) and value else [here]


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, 7] if isinstance(value, list) else f"{value or ''}7"


def shuffled(node, rng):
    """The same, with its keys in another order and 2 as 2.0."""
    if isinstance(node, dict):
        keys = list(node)
        rng.shuffle(keys)
        return {key: shuffled(node[key], rng) for key in keys}
    whole = isinstance(node, int) and not isinstance(node, bool)
    return float(node) if whole and rng.random() < 0.5 else node


def has_effect(path, overrides):
    name = ".".join(path)
    if path[0] in WITHOUT_EFFECT or name.startswith(IDLE):
        return False
    if name in ("data.streaming", "student.lora.rank", "teacher.lora.rank"):
        return True  # they decide that the others count
    if name.endswith(".weight") and path[0] == "loss":
        return True
    return all(overrides == needed for begin, needed in IDLE_BUT.items() if name.startswith(begin))


def test_exactly_the_settings_with_an_effect_change_the_key(configurations):
    for overrides, before in configurations:
        key = job_key(before)
        for path in leaves(before):
            after = copy.deepcopy(before)
            *groups, last = path
            node = functools.reduce(dict.__getitem__, groups, after)
            node[last] = other(node[last])
            changed = job_key(after) != key
            assert changed == has_effect(path, overrides), (path, overrides)


def test_moving_a_class_of_this_package_keeps_the_key(configurations):
    def key(target):
        settings = copy.deepcopy(configurations[0][1])
        settings["loss"]["_target_"] = target
        return job_key(settings)

    ours = "lightning_distill.losses.objective"
    assert key(f"{ours}.Mine") == key("lightning_distill.elsewhere.Mine")
    assert key(f"{ours}.Mine") != key(f"{ours}.Another")
    assert key("theirs.losses.Mine") != key("theirs.elsewhere.Mine")


def test_the_order_of_settings_and_2_0_for_2_keep_the_key(configurations):
    @given(st.sampled_from(configurations), st.randoms(use_true_random=False))
    @settings(max_examples=15, deadline=None)
    def check(configuration, rng):
        _, before = configuration
        key = job_key(before)
        # The batch is counted, and a count is no fraction.
        after = shuffled(before, rng)
        after["data"]["batch_size"] = before["data"]["batch_size"]
        after["trainer"]["num_nodes"] = before["trainer"]["num_nodes"]
        after["trainer"]["devices"] = before["trainer"]["devices"]
        assert job_key(after) == key

    check()


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_that_share_one_batch_keep_the_key(key, devices):
    shared = [f"trainer.devices={devices}", f"data.batch_size={8 // devices}"]
    assert key(*shared) == key("data.batch_size=8")


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), nested, min_size=1), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_an_artifacts_key_depends_on_every_value_and_no_order(made_from, rng):
    names = list(made_from)
    rng.shuffle(names)
    assert key_of({name: made_from[name] for name in names}) == key_of(made_from)
    name = rng.choice(names)
    assert key_of({**made_from, name: [made_from[name]]}) != key_of(made_from)
    assert key_of({other: made_from[other] for other in names if other != name}) != key_of(
        made_from
    )
