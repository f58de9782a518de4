"""The contracts under their first address; new code imports the same objects from `sslkit.api`."""

from .api import *  # noqa: F403
