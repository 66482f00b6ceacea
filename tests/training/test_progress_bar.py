"""A progress bar says what is done, how much, and the time left."""

import re

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_distill.training.progress_bar import RoleProgressBar


class Logged(BoringModel):
    def training_step(self, batch, index):
        step = super().training_step(batch, index)
        self.log("loss", step["loss"], prog_bar=True)
        return step

    def validation_step(self, batch, index):
        step = super().validation_step(batch, index)
        self.log("validation/nll", step["x"], prog_bar=True)
        return step


@pytest.fixture
def trainer(tmp_path):
    return L.Trainer(
        max_epochs=1, accelerator="cpu", enable_checkpointing=False, num_sanity_val_steps=0,
        callbacks=[RoleProgressBar("student")], default_root_dir=tmp_path, logger=False,
        enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip


def test_a_bar_names_the_model_and_the_time_left(trainer, capsys):
    trainer.fit(Logged())
    trainer.test(Logged(), verbose=False)
    trainer.predict(Logged())
    printed = re.split(r"[\r\n]+", capsys.readouterr().out)
    bars = [re.sub(r"\s+", " ", line) for line in printed if " left" in line]
    ends = [bar for bar in bars if "64/64" in bar]
    for name in ("training", "validating", "evaluating", "writing"):
        assert any(bar.lstrip().startswith(name) for bar in bars), name
    last = next(bar for bar in reversed(ends) if bar.startswith("training student 100 %"))
    assert re.search(r"64/64 · 00:00 left, loss=\S+, nll=\S+$", last.strip())
    assert not any("DataLoader" in bar or "v_num" in bar for bar in ends)
