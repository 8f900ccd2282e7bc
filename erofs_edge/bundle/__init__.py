# SPDX-License-Identifier: Apache-2.0
"""Update files for fleets that exist: RAUC bundles, systemd-sysupdate transfers."""
