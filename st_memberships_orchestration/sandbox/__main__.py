"""``python -m st_memberships_orchestration.sandbox``."""

from st_memberships_orchestration.sandbox.command import sandbox

if __name__ == "__main__":
    sandbox()
