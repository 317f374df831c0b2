"""What each process of `machine` needs; the server that forks them prepares it once.

Nothing here starts a thread or opens a file that a forked process would share.
"""

import encodings.idna
import encodings.utf_8_sig
from importlib.metadata import entry_points

import filelock
import pandas
import pyarrow.dataset
from rich import _emoji_codes

from st_memberships_orchestration.servicetitan.client import trusted_certificates

LATE = (encodings, filelock, pandas, pyarrow, _emoji_codes)
"""Imported by others when they first need them."""

(command,) = entry_points(group="console_scripts", name="st-memberships")
main = command.load()
trusted_certificates()
