"""The command line: `lightning-distill [overrides]`, a Hydra application.

Nothing here imports torch, so that `--help`, completion and a mistyped name answer at once.
"""

import logging
import os
import sys
import traceback
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lightning_distill.errors import CONF, explain, nearest
from lightning_distill.settings import check

log = logging.getLogger(__name__)

STAGES = {
    "distill": "pipeline.distill",
    "teacher": "pipeline.teach",
    "transfer": "pipeline.hand_over",
    "evaluate": "pipeline.evaluate_again",
    "report": "sweep.summarise_again",
}
LONGEST_NAME = 120  # characters of a folder's name; file systems take 255 bytes


def folder_name(overrides: str) -> str:
    """A job's overrides as the name of its folder: `student=xs,loss.alpha=1`.

    Slashes would make sub-folders; what is too long is cut and told apart by a hash.
    """
    name = overrides.replace("experiment/", "").replace("/", ".")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{sha256(name.encode()).hexdigest()[:8]}"


# Another process of a sweep unpickles `job` by its name, which imports this module there too.
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


class Refused(BaseException):
    """Takes an explained error past Hydra, which would print all overrides in front of it."""


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def job(cfg: DictConfig) -> float | None:
    """One job, alone or of a sweep. Returns the student's nll, for sweepers that minimise it."""
    hydra_cfg = HydraConfig.get()
    alone = hydra_cfg.mode != RunMode.MULTIRUN
    folder = Path(hydra_cfg.runtime.output_dir)
    overrides = list(hydra_cfg.overrides.task)
    try:
        if cfg.stage not in STAGES:
            raise nearest("stage", cfg.stage, STAGES)
        check(cfg)
        from lightning_distill.results import Job

        module, function = STAGES[cfg.stage].split(".")
        stage = getattr(import_module(f"lightning_distill.{module}"), function)
        group = cfg.name if alone else Path(hydra_cfg.sweep.dir).name
        name = cfg.name if alone else folder.name
        results = stage(cfg, Job.of(cfg, folder, name, group, overrides))
    except Exception as error:
        reason = explain(error)
        if alone and reason:
            raise Refused(reason) from error
        if alone:
            raise
        # The other jobs go on; the end of the sweep says what failed, and exits accordingly.
        from lightning_distill.sweep import record_failure

        log.error("%s failed: %s", folder.name, reason or traceback.format_exc())
        record_failure(folder, overrides, reason or repr(error), mendable=reason is not None)
        return float("nan")
    student = (results or {}).get("student")
    return student["nll"] if student else None


def main() -> None:
    """Exit code 0; 2 for what the user can mend, in a line or two; 1 for anything else."""
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on, instead of exiting with 1
    try:
        job()
    except KeyboardInterrupt:
        sys.exit(130)
    except (Exception, Refused) as error:
        message = str(error) if isinstance(error, Refused) else explain(error)
        if full or message is None:
            raise
        print(f"lightning-distill: {message}", file=sys.stderr)
        sys.exit(2)
