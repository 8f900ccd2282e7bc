# SPDX-License-Identifier: Apache-2.0
"""One page about a build: what is in it, where it lies, how large it is, how to use it. Readable without JavaScript."""
