"""A key that nothing reads is refused, and the nearest one named."""

import pytest
from hydra import compose, initialize_config_dir

from lightning_distill.cli import app
from lightning_distill.config import schema
from lightning_distill.config.catalog import CONF
from lightning_distill.errors import ConfigError


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+loss.temprature=4", "no setting loss.temprature. Did you mean loss.temperature?"),
        ("++student.max_step=4", "Did you mean student.max_steps?"),
        ("+foo=1", "There is no setting foo."),
        ("+teacher.lora.rnk=1", "Did you mean teacher.lora.rank?"),
        ("+experimnt=demo", "Did you mean experiment?"),
    ],
)
def test_an_added_key_that_nothing_reads_is_refused(override, message):
    with pytest.raises(ConfigError, match=r"There is no setting") as error:
        composed(override)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "+trainer.callbacks=[]",
        "+trainer.max_time=null",
        "+optimizer.eps=1",
        "+teacher.optimizer.eps=1",
        "+schedule.last_epoch=0",
        "+logger.csv.flush_logs_every_n_steps=1",
        "+hydra.job.env_set.OMP_NUM_THREADS=1",
        "+experiment/job=baseline",
        "+loss.beta=0.5",  # known, and refused by the losses that do not take it
        "++loss.alpha=0",
        "+loss.hidden.layers.1=2",
    ],
)
def test_keys_that_something_reads_may_be_added(override):
    composed("loss.hidden.layers={}", override)


def test_a_users_own_function_may_have_arguments_of_its_own(monkeypatch):
    monkeypatch.setenv("LIGHTNING_DISTILL_ALLOW", "my_module")
    composed("loss.divergence.path=my_module.divergence", "+loss.sharpness=2")
    composed("data._target_=my_module.Data", "+data.folder=here")
    composed("+loss.hidden.mine=1", "loss.hidden._target_=my_module.Term")
    with pytest.raises(ConfigError, match=r"no setting loss\.sharpness"):
        composed("+loss.sharpness=2")


def test_a_renamed_key_is_refused_and_the_new_one_named(monkeypatch):
    monkeypatch.setitem(schema.RENAMED, "loss.hardness", "loss.hard_weight")
    for override in ("+loss.hardness=1", "loss.hardness=1"):
        with pytest.raises(Exception, match=r"loss.hardness") as error:
            composed(override)
        explained = app.explain(error.value)
        assert explained == "loss.hardness is now loss.hard_weight."
