# SPDX-License-Identifier: Apache-2.0
"""A U-Boot console on a serial line: `line.py` what an exchange asks of its port, `console.py` commands, `ymodem.py`
the fast transfer, `uboot.py` storage, `port.py` the ports themselves."""
