# SPDX-License-Identifier: Apache-2.0
"""A small machine that runs a system's own programs during a build: no network, no disk but an archive on the way in
and one on the way out, Debian's own kernel."""
