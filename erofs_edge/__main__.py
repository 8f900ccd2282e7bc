# SPDX-License-Identifier: Apache-2.0
"""The program's entry point: the console script, and ``python -m erofs_edge``.

Ctrl-C during imports would raise KeyboardInterrupt in the middle of some module, and Python would print a traceback.
Nothing needs cleaning up by then, so until the command line takes over, SIGINT simply ends the process, as in a C
program. Nothing is imported above, so this holds from our first line on.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line. Does not return."""
    try:
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # if ignored (nohup, &), leave it so
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        import gc

        gc.set_threshold(1_000_000)  # modules stay loaded; collecting them took a twentieth of the start-up
        from erofs_edge.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:  # in the first lines above, or after the last line of a command
        import os

        os._exit(130)


if __name__ == "__main__":
    main()
