"""`trainer.strategy.reshard_after_forward` is what PyTorch's `fully_shard` is given."""

from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from lightning_distill.config.catalog import CONF
from lightning_distill.models import sharding


def strategy(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=["trainer=fsdp", *overrides])
    return instantiate(cfg.trainer.strategy)


@pytest.mark.parametrize(
    ("overrides", "frees"),
    [([], True), (["trainer.strategy.reshard_after_forward=false"], False)],
)
def test_layers_are_resharded_after_the_forward_pass_as_the_config_says(
    monkeypatch, overrides, frees
):
    calls = {}
    layer, model = nn.Linear(1, 1), nn.Linear(1, 1)
    monkeypatch.setattr(
        sharding,
        "fully_shard",
        lambda module, mesh, reshard_after_forward: calls.update({module: reshard_after_forward}),
    )
    monkeypatch.setattr(sharding, "find_layers", lambda model: ("layers", [layer]))
    monkeypatch.setattr(sharding, "is_quantized", lambda model: False)
    monkeypatch.setattr(sharding, "register_fsdp_forward_method", lambda model, name: None)
    module = SimpleNamespace(
        device_mesh={"data_parallel": "mesh"},
        trainer=SimpleNamespace(strategy=strategy(*overrides)),
    )
    sharding.shard(module, [SimpleNamespace(model=model, head=None)])
    assert calls == {layer: frees, model: False}
