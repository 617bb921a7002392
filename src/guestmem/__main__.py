"""``python -m guestmem``, and what the ``guestmem`` command runs."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["run"]


def run() -> None:
    """Run the command line and leave with its exit status.

    Ctrl-C ends it with one line from here on: while the command line is imported, too. Afterwards, while Python takes
    itself down, it ends the process without a word.
    """
    heard = signal.getsignal(signal.SIGINT) == signal.default_int_handler  # else: ignored, as under nohup
    if heard:
        signal.signal(signal.SIGINT, _leave)
    from .cli import main

    try:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = main()
    except KeyboardInterrupt:  # just before or after the one that main() looks for
        _leave()
    if heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)


def _leave(*_signal: object) -> None:
    os.write(2, b"\nguestmem: interrupted\n" if os.isatty(2) else b"guestmem: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    run()
