"""How W&B is reached: server, API key, and `wandb agent`, which its environment variables name."""

import netrc
import os
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

from lightning_distill.errors import ConfigError

RESPONSE_TIMEOUT = 20  # seconds


def server_url() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def has_key() -> bool:
    """Whether there is an API key for the server, in WANDB_API_KEY or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(server_url()).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def check_server() -> None:
    """Raises ConfigError if the server does not respond."""
    url = server_url()
    try:
        urlopen(url, timeout=RESPONSE_TIMEOUT)
    except HTTPError:
        return  # the server responds, with an error for this address
    except (OSError, ValueError) as error:  # ValueError: not a URL
        reason = getattr(error, "reason", error)
        raise ConfigError(f"W&B's server {url} does not answer: {reason}.") from error


def agent_sweep_id() -> str | None:
    """The id of the W&B sweep, if `wandb agent` started this process."""
    return os.environ.get("WANDB_SWEEP_ID")
