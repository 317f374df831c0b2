"""What each process of `machine` needs; the server that forks them imports it once."""

from importlib.metadata import entry_points

import pandas  # noqa: F401  # Arrow asks for it

for command in entry_points(group="console_scripts", name="st-memberships"):
    command.load()
