"""What people type to start this program, for all texts that tell them to."""

import shlex
import shutil
import sys
from pathlib import Path

NAME = "st-memberships"


def program() -> str:
    """What a user types in this folder to start the command line, so that a command can be pasted.

    As it was typed; for Dagster's processes, by where it is installed.
    """
    typed, installed = Path(sys.argv[0]), Path(sys.executable).with_name(NAME)
    started = typed if typed.name == NAME else installed
    on_path = shutil.which(NAME)
    if not started.exists() or (on_path and started.resolve() == Path(on_path).resolve()):
        return NAME
    if not started.is_absolute():
        return shlex.quote(sys.argv[0])
    here = Path.cwd()
    return shlex.quote(str(started.relative_to(here) if started.is_relative_to(here) else started))
