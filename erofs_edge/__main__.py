# SPDX-License-Identifier: Apache-2.0
"""Where the program starts: the console script's entry, and ``python -m erofs_edge``.

Ctrl-C while modules are imported is a KeyboardInterrupt in the middle of somebody's import, which Python shows as a
traceback. Nothing of ours has to be cleaned up by then: until the command line takes over, SIGINT simply ends the
process, as it ends a program in C. Nothing is imported above, so that this holds from our first line on.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line, which ends the process."""
    try:
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored (nohup, &) stays ignored
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        import gc

        gc.set_threshold(1_000_000)  # what is loaded stays: looking for garbage among it took a twentieth of the start
        from erofs_edge.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:  # in the first lines above, or between the last lines of a verb and the end
        import os

        os._exit(130)


if __name__ == "__main__":
    main()
