# SPDX-License-Identifier: Apache-2.0
"""A U-Boot console on a serial line: `line.py` defines what a conversation may ask of its port, `console.py` runs
commands, `ymodem.py` transfers data fast, `uboot.py` uses storage, `port.py` has the ports themselves."""
