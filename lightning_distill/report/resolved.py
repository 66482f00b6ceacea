"""The settings of jobs with their interpolations resolved, as the page shows them."""

from contextlib import suppress
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_distill.sweeps.records import JobRecord


def resolved(job: JobRecord) -> dict[str, Any]:
    """The job's config; a node that cannot be resolved here is as it was saved."""
    config = OmegaConf.create(job.config)
    settings = dict(job.config)
    for key in settings:
        node = config[key] if not OmegaConf.is_missing(config, key) else None
        if OmegaConf.is_config(node):
            with suppress(OmegaConfBaseException, ValueError):
                settings[key] = OmegaConf.to_container(node, resolve=True)
    return settings
