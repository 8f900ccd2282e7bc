# SPDX-License-Identifier: Apache-2.0
# Read by the init script: a slot that has failed is looked through before it is started again, and what error
# correction cannot repair comes from the other slot. dm-verity has the last word: a block is only taken from a mapping
# of the other slot that opens with the root hash of this one, so it does not matter what that slot is said to hold.
#
# A repair that is cut short leaves each block as it was, or right.

WINDOW=1048576 # bytes that are read at a time; where that fails, single blocks are

# The starts that are left to slot $1, as the boot script has just written them to the device $2. The checksum is not
# looked at: who lies here makes the start slower.
starts_left() {
    wanted=BOOT_$(echo "$1" | tr a-z A-Z)_LEFT
    dd if="$2" bs=1024 count=1 2>/dev/null | tr '\0' '\n' | while IFS='=' read -r key value; do
        [ "$key" != "$wanted" ] || echo "$value"
    done
}

# /dev/mapper/$1: the data of device $2 under the tree of device $3; what does not match cannot be read. Further
# arguments: options of dm-verity.
map() {
    name=$1 data=$2 tree=$3
    shift 3
    [ ! -e "/dev/mapper/$name" ] || /bin/dmsetup remove --retry "$name"
    rows="0 $SECTORS verity 1 $data $tree $BLOCK_SIZE $BLOCK_SIZE $DATA_BLOCKS $HASH_START sha256 $ROOT_HASH $SALT"
    [ $# = 0 ] || rows="$rows $# $*"
    /bin/dmsetup create "$name" --readonly --table "$rows" >/dev/null 2>&1
}

# Blocks [$2, $2 + $3) of the file $1 into /$4. False where one of them cannot be read.
fetch() { dd if="$1" of="/$4" bs="$BLOCK_SIZE" skip="$2" count="$3" 2>/dev/null; }

# /piece becomes block $1 of $device, if it is another one there.
put() {
    ! { fetch "$device" "$1" 1 own && cmp -s /piece /own; } || return 0
    dd if=/piece of="$device" bs="$BLOCK_SIZE" seek="$1" conv=notrunc,fsync 2>/dev/null && mended=$((mended + 1))
}

# Sets $count to the blocks of the window that starts with block $1.
measure_window() {
    count=$((WINDOW / BLOCK_SIZE))
    [ $(($1 + count)) -le "$DATA_BLOCKS" ] || count=$((DATA_BLOCKS - $1))
}

# The first blocks of the windows of /dev/mapper/$1 in which anything cannot be read. First all of it at a stretch,
# which is fast where there is nothing to be found.
bad_windows() {
    ! dd if="/dev/mapper/$1" of=/dev/null bs=$WINDOW 2>/dev/null || return 0
    first=0
    while [ $first -lt "$DATA_BLOCKS" ]; do
        measure_window $first
        fetch "/dev/mapper/$1" $first $count piece || echo $first
        first=$((first + count))
    done
}

# The windows that start with blocks $@ of $device from /dev/mapper/source: what can be read there is right.
mend_windows() {
    for first; do
        measure_window "$first"
        if fetch /dev/mapper/source "$first" $count piece && fetch "$device" "$first" $count own &&
            cmp -s /piece /own; then continue; fi
        end=$((first + count)) block=$first
        while [ $block -lt $end ]; do
            ! fetch /dev/mapper/source $block 1 piece || put $block
            block=$((block + 1))
        done
    done
}

# All of the tree of $device from $1, whose tree proves every block of it.
mend_tree() {
    block=$HASH_START level=$DATA_BLOCKS digests=$((BLOCK_SIZE / 32))
    while [ "$level" -gt 1 ]; do
        level=$(((level + digests - 1) / digests))
        end=$((block + level))
        while [ "$block" -lt $end ]; do
            ! fetch "$1" "$block" 1 piece || put "$block"
            block=$((block + 1))
        done
    done
}

# Repair $device, slot $slot, from the device $1, which is called $2. True when all of it can be read then.
mend_from() {
    map source "$1" "$1" || return 1
    mend_windows $bad
    map mine "$device" "$device" $options
    bad=$(bad_windows mine)
    # what is still bad lies under a damaged tree: that of the source will do if it proves all there is
    if [ -n "$bad" ] && map source "$device" "$1" && [ -z "$(bad_windows source)" ]; then
        mend_tree "$1"
        map mine "$device" "$device" $options
        bad=$(bad_windows mine)
    fi
    /bin/dmsetup remove --retry source
    [ $mended = 0 ] || echo "erofs-edge: $mended blocks of slot $slot were repaired from $2"
    [ -z "$bad" ]
}

# What is tried when no other slot has all that is missing. repair_net.sh has another, that lowers $bad.
mend_otherwise() { :; }

# Look through $device, the slot $slot of $disk, and repair it. Options of dm-verity but for what it does with damage.
mend_slot() {
    options=$* mended=0
    map mine "$device" "$device" $options || return 0
    bad=$(bad_windows mine)
    if [ -z "$bad" ]; then
        echo "erofs-edge: slot $slot has failed before, but nothing in it is damaged"
    else
        for other in $SLOTS; do
            if [ "$other" != "$slot" ] && find_partition "${SYSTEM}_$other" "$disk"; then
                ! mend_from "/dev/${partition##*/}" "slot $other" || break
            fi
        done
        [ -z "$bad" ] || mend_otherwise
        [ -z "$bad" ] || echo "erofs-edge: slot $slot is damaged and cannot be repaired"
    fi
    /bin/dmsetup remove --retry mine
    rm -f /piece /own
}
