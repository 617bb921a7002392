"""``python -m guestmem``, and what the ``guestmem`` command runs."""

from __future__ import annotations

import sys

from .cli import main

__all__ = ["run"]


def run() -> None:
    """Run the command line and leave with its exit status."""
    sys.exit(main())


if __name__ == "__main__":
    run()
