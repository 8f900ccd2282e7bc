#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What udhcpc calls.
[ "$1" != bound ] || ip addr add "$ip/${mask:-24}" dev "$interface"
