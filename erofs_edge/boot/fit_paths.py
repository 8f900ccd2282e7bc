# SPDX-License-Identifier: Apache-2.0
"""Where the signed configuration of our FITs stands: for who only looks whether there is a signature, and needs nothing
loaded that makes or checks one."""

from __future__ import annotations

CONFIGURATION = "conf"
CONFIGURATION_PATH = f"/configurations/{CONFIGURATION}"
SIGNATURE_PATH = f"{CONFIGURATION_PATH}/signature-1"
