# SPDX-License-Identifier: Apache-2.0
"""What of an image was read, in which order: recorded by a server, bound to the image, used to lay the next one out."""
