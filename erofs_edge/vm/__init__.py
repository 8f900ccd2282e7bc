# SPDX-License-Identifier: Apache-2.0
"""A small machine that runs a system's own programs during a build: no network, no disk except an archive for input and
one for output, Debian's own kernel."""
