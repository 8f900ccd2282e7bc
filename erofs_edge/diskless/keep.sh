#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# In the running system of a diskless board that keeps what it gets: copies the system to its disk while it runs, and
# proves every block of the copy before the next start may use it. Interrupted, it goes on where it was.
#
# usage: keep install|worked; the values are in /run/erofs-edge/keep.values

. /run/erofs-edge/keep.values # KEPT (device) MARK (its sector for the state) ROOT_HASH

write_state() { printf '%s\n' "$*" | dd of="$KEPT" bs=512 seek="$MARK" count=1 conv=notrunc,fsync,sync 2>/dev/null; }

read_state() { dd if="$KEPT" bs=512 skip="$MARK" count=1 2>/dev/null | tr -d '\0'; }

copy() {
	at=0
	case $(read_state) in "erofs-edge installing $ROOT_HASH "*) at=$(read_state) at=${at##* } ;; esac
	pieces=$((($(blockdev --getsize64 /dev/nbd0) + 1048575) / 1048576))
	while [ "$at" -lt "$pieces" ]; do
		dd if=/dev/nbd0 of="$KEPT" bs=1M skip="$at" seek="$at" count=1 iflag=direct conv=notrunc,fsync 2>/dev/null || return 1
		at=$((at + 1))
		[ $((at % 8)) -gt 0 ] || write_state "erofs-edge installing $ROOT_HASH $at" || return 1
	done
}

# A mapping of the copy without the root's options: what does not match is an error here, and no reason to start again.
prove() {
	set -- $(dmsetup table root)
	dmsetup create kept --readonly --table "$1 $2 $3 $4 $KEPT $KEPT $7 $8 $9 ${10} ${11} ${12} ${13}" || return 1
	dd if=/dev/mapper/kept of=/dev/null bs=1M iflag=direct 2>/dev/null
	proved=$?
	dmsetup remove kept
	return $proved
}

case $1 in
install)
	if copy && prove; then
		write_state "erofs-edge installed $ROOT_HASH 0"
		echo "erofs-edge: the system is installed on $KEPT" >/dev/console
	else
		write_state "erofs-edge blank"
		echo "erofs-edge: the system could not be installed on $KEPT" >/dev/console
		exit 1
	fi
	;;
worked) write_state "erofs-edge installed $ROOT_HASH 0" ;;
esac
