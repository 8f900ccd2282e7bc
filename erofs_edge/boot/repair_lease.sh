#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What udhcpc calls.
[ "$1" = bound ] || exit 0
ip addr add "$ip/${mask:-24}" dev "$interface"
[ -z "$router" ] || ip route add default via "${router%% *}" dev "$interface"
