"""The settings of jobs with their interpolations resolved, as the page shows them."""

from contextlib import suppress
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_distill.sweeps.job_key import WITHOUT_EFFECT
from lightning_distill.sweeps.records import JobRecord, flatten


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


def flat_settings(settings: dict[str, Any]) -> dict[str, str]:
    """By dotted keys, as text, without those that have no effect on the results."""
    flat = flatten({k: v for k, v in settings.items() if k not in WITHOUT_EFFECT})
    return {key: "null" if value is None else str(value) for key, value in flat.items()}
