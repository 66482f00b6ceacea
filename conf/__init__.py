"""The config files as a package, for `hydra.initialize_config_module("lightning_distill.conf")`.

Importing it registers the resolvers that the files use.
"""

from lightning_distill.cli import app as app
