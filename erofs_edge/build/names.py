# SPDX-License-Identifier: Apache-2.0
"""Names of files in the folder of a build that are looked for before anything else of a build is loaded."""

RELEASE = "release.json"
PUBLIC_KEY = "sign.pub.pem"
