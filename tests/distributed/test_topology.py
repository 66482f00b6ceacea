"""The devices that `trainer` asks for, on machines with and without GPUs."""

import pytest

from lightning_distill.distributed.topology import Hardware


def hardware(device=None, **trainer):
    node = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, **trainer}
    return Hardware.from_settings({"trainer": node, "teacher": {"device": device}})


@pytest.mark.parametrize(
    ("trainer", "gpus", "expected"),
    [
        ({"devices": 0}, "", "trainer.devices=0 must be a number"),
        ({"devices": "many"}, "", "trainer.devices=many must be a number"),
        ({"accelerator": "gpu"}, "", "there is no GPU; set trainer=cpu"),
        ({"accelerator": "gpu", "devices": 3}, "0,1", "there are 2 GPUs; set trainer.devices=2"),
        ({"accelerator": "auto", "devices": [0, 2]}, "0,1", "set trainer.devices=2 or fewer"),
        (
            {"strategy": {"_target_": "lightning_distill.distributed.fsdp.FSDP2Strategy"}},
            "",
            "trainer=fsdp splits models among several devices, and has one",
        ),
        ({"accelerator": "gpu", "precision": "bf16-mixed"}, "0", "does not compute in bf16"),
        ({"device": "cuda:1"}, "0", "teacher.device=cuda:1 does not exist"),
        ({"device": "abacus"}, "0", "teacher.device=abacus does not exist"),
    ],
)
def test_missing_hardware_is_named(trainer, gpus, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert expected in hardware(**trainer).problem()


@pytest.mark.parametrize(
    ("trainer", "gpus", "count"),
    [
        ({}, "", 1),
        ({"devices": 2, "num_nodes": 3}, "", 6),
        ({"devices": "auto"}, "0,1", 1),  # a processor
        ({"devices": "auto", "accelerator": "auto"}, "0,1", 2),
        ({"devices": -1, "accelerator": "gpu"}, "0,1", 2),
        ({"devices": [1, 3], "accelerator": "gpu"}, "0,1,2,3", 2),
    ],
)
def test_there_is_a_process_for_each_device(trainer, gpus, count, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert hardware(**trainer).num_devices == count
