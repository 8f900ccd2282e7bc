#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# First process of an installer medium. It is in a signed image, and so is the root hash of what it installs, in /config:
# nothing of the medium is written to a disk that was not verified when it was read.
#
# The disk has no partition table until all else is read back from it and right: one that was left half written does not
# start. Other programs wait for the lines on the console.

export PATH=/bin DM_DISABLE_UDEV=1
say() { echo "erofs-edge: installer: $*"; }

end() {
    sync
    sleep 2
    poweroff -f
    while :; do sleep 60; done
}

fail() {
    [ ! -s /missing ] || set -- "$* (modules that did not load: $(tr '\n' ' ' </missing))"
    say "FAILED: $*"
    end
}

# Sets $partition to the directory in /sys of the partition labelled $1, and $medium to that of its disk.
find_payload() {
    for file in /sys/block/*/*/partition; do
        partition=${file%/partition}
        [ -r "$partition/uevent" ] || continue
        while IFS='=' read -r key value; do
            [ "$key=$value" = "PARTNAME=$1" ] || continue
            medium=${partition%/*}
            return 0
        done <"$partition/uevent"
    done
    return 1
}

# Sets $found to the names of all disks that could be meant: not the medium, writable, large enough.
find_targets() {
    found=
    for path in /sys/block/*; do
        name=${path##*/}
        case $name in loop* | ram* | zram* | dm-* | md* | nbd* | sr* | fd* | mtdblock* | *boot[01] | *rpmb) continue ;; esac
        [ "$path" != "$medium" ] || continue
        [ -z "$DISK" ] || [ "$name" = "$DISK" ] || continue
        read -r read_only <"$path/ro" && read -r sectors <"$path/size" || continue
        [ "$read_only" = 0 ] && [ $((sectors / 2048)) -ge "$MEBIBYTES" ] || continue
        found="${found:+$found }$name"
    done
    [ -n "$found" ]
}

# What $1 says, tried for 30 seconds: disks appear late.
await() {
    turns=300
    until "$@"; do
        turns=$((turns - 1))
        [ $turns -gt 0 ] || return 1
        sleep 0.1
    done
}

blank() { [ -z "$(head -c 1048576 "$1" | tr -d '\0')" ]; }

# Pieces of the list whose first MiB is the disk's first, or all others.
write_pieces() {
    while read -r at count digest name; do
        case $1-$at in first-0 | others-[1-9]*) ;; *) continue ;; esac
        dd if="/payload/pieces/$digest" of="$disk" bs=1M seek="$at" conv=notrunc 2>/dev/null ||
            fail "cannot write $name at MiB $at of $disk"
    done </payload/list
    sync
}

read_back() {
    blockdev --flushbufs "$disk"
    echo 3 >/proc/sys/vm/drop_caches
    while read -r at count digest name; do
        case $1-$at in first-0 | others-[1-9]*) ;; *) continue ;; esac
        is=$(dd if="$disk" bs=1M skip="$at" count="$count" 2>/dev/null | sha256sum)
        [ "${is%% *}" = "$digest" ] || fail "$disk does not keep what is written to it: $name at MiB $at"
        verified=$((verified + count))
    done </payload/list
}

mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
. /config
say "for $TITLE"
for module in /modules/*/*.ko; do insmod "$module" 2>/dev/null || echo "${module##*/}" >>/missing; done

await find_payload "$LABEL" || fail "no partition is labelled '$LABEL'"
device=/dev/${partition##*/}
table="0 $SECTORS verity 1 $device $device $BLOCK_SIZE $BLOCK_SIZE $DATA_BLOCKS $HASH_START sha256 $ROOT_HASH $SALT"
reason=$(dmsetup create payload --readonly --table "$table" 2>&1) || fail "no mapping of $device: $reason"
reason=$(mount -t erofs -o ro /dev/mapper/payload /payload 2>&1) || fail "the medium is damaged: $reason"

await find_targets || fail "no disk ${DISK:+$DISK }of $MEBIBYTES MiB that can be written"
case $found in *' '*) fail "more than one disk could be meant: $found" ;; esac
disk=/dev/$found
blank "$disk" || [ -n "$OVERWRITE" ] || fail "$disk is not blank, it is left as it is: a medium made with --overwrite installs on it"
say "writing $disk"
# the old table, and its backup, of which firmware would make it anew
read -r sectors <"/sys/block/$found/size"
for at in 0 $((sectors - 2048)); do
    dd if=/dev/zero of="$disk" bs=512 seek="$at" count=2048 conv=notrunc,fsync 2>/dev/null || fail "cannot write $disk"
done
verified=0
write_pieces others
read_back others
write_pieces first
read_back first
say "verified $verified MiB on $disk, remove the medium"
end
