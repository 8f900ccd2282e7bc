# SPDX-License-Identifier: Apache-2.0
"""File names in a build's folder that are needed before other modules of the build are loaded."""

RELEASE = "release.json"
PUBLIC_KEY = "sign.pub.pem"
