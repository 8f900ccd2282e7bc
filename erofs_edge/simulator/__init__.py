# SPDX-License-Identifier: Apache-2.0
"""Devices that are not there: they speak the real protocols and fail on demand. For our tests and for yours.

Each is checked against the real tool of its protocol, so that a test against it says something about hardware.
"""
