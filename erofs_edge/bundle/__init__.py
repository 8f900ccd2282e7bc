# SPDX-License-Identifier: Apache-2.0
"""Update files for existing fleet updaters: RAUC bundles, systemd-sysupdate transfers."""
