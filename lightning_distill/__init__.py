"""Experiments in distilling language models."""

__version__ = "0.1.0"


class ConfigError(ValueError):
    """Something the user can mend: the message names the key, what was found and what to do.

    It ends the program with exit code 2 and no traceback.
    """
