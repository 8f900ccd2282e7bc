# SPDX-License-Identifier: Apache-2.0
# Read by the init script. A card is mostly larger than the image that was written to it: the partition table is laid
# out for the whole disk, and the writable partition gets what there is more. Values of the table (UEFI 2.10, 5.3) are
# hexadecimal texts, little endian, as they stand on the disk.
#
# The copy at the end is written first, then the one at the start, and the table is read from whichever is whole: a
# power cut in between is mended at the next start (`gpt` on the command line lets the kernel do without the first).

ENTRIES_SIZE=16384
MIB=1048576

hex() { od -An -v -tx1 | tr -d ' \n'; }

swap() {
    text=$1 swapped=
    while [ -n "$text" ]; do
        rest=${text#??}
        swapped=${text%"$rest"}$swapped
        text=$rest
    done
    echo "$swapped"
}

# Bytes $2 to $2+$3 of the header $1 as a number.
field() { echo $((0x$(swap "$(echo "$1" | cut -c$(($2 * 2 + 1))-$((($2 + $3) * 2)))"))); }

# The number $1 as $2 bytes.
number() { swap "$(printf "%0$(($2 * 2))x" "$1")"; }

raw() {
    text=$1
    while [ -n "$text" ]; do
        rest=${text#??}
        printf "\\$(printf %03o "0x${text%"$rest"}")"
        text=$rest
    done
}

# CRC-32 of the input: gzip ends with it (RFC 1952, 2.3.1).
checksum() { gzip -1 | tail -c 8 | head -c 4 | hex; }

# Header $1 (92 bytes) with its checksum.
sealed() {
    before=$(echo "$1" | cut -c1-32) after=$(echo "$1" | cut -c41-184)
    echo "$before$(raw "${before}00000000$after" | checksum)$after"
}

# The table whose header is in sector $1: its header in $header, its entries in /entries. False where it is damaged or
# of another shape than a build writes.
read_table() {
    header=$(dd if="$node" bs="$sector" skip="$1" count=1 2>/dev/null | head -c 92 | hex)
    case $header in 4546492050415254000001005c000000*) ;; *) return 1 ;; esac
    [ "$(sealed "$header")" = "$header" ] && [ "$(field "$header" 24 8)" = "$1" ] || return 1
    [ "$(field "$header" 80 4)" = 128 ] && [ "$(field "$header" 84 4)" = 128 ] || return 1
    dd if="$node" of=/entries bs="$sector" skip="$(field "$header" 72 8)" count=$((ENTRIES_SIZE / sector)) 2>/dev/null
    [ "$(checksum </entries)" = "$(echo "$header" | cut -c177-184)" ]
}

# /header, which stands in sector $1, its twin in $2, its entries from $3 on.
table_header() {
    raw "$(sealed "$(echo "$header" | cut -c1-48)$(number "$1" 8)$(number "$2" 8)$(echo "$header" | cut -c81-96)$(
        number "$last_usable" 8)$(echo "$header" | cut -c113-144)$(number "$3" 8)$(echo "$header" | cut -c161-176)$(
        checksum </entries)")" >/header
    head -c $((sector - 92)) /dev/zero >>/header
}

# The file $2 from sector $1 on.
put() { dd if="$2" of="$node" bs="$sector" seek="$1" conv=notrunc 2>/dev/null; }

# Lay the table out for the whole disk $1 (in /sys/block); the partition labelled $2 gets the rest. True if so.
grow_disk() {
    node=/dev/${1##*/}
    read -r sectors <"$1/size" && read -r sector <"$1/queue/logical_block_size" || return 1
    last=$((sectors * 512 / sector - 1))
    last_usable=$((last - 1 - ENTRIES_SIZE / sector))
    # mostly there is nothing to do: find that out with as few programs as can be
    at_end=$(dd if="$node" bs=1 skip=$((sector + 32)) count=8 2>/dev/null | hex)
    [ "$at_end" != "$(number "$last" 8)" ] || return 1
    old=
    if read_table 1; then
        old=$(field "$header" 32 8)
        [ "$old" -lt "$last" ] || return 1
    else
        read_table "$last" || return 1
    fi
    find_partition "$2" "$1" || return 1
    read -r index <"$partition/partition" && read -r start <"$partition/start" || return 1
    for other in "$1"/*/start; do
        read -r first <"$other"
        [ "$first" -le "$start" ] || return 1
    done
    new_end=$(((last_usable + 1) * sector / MIB * MIB / sector - 1))
    raw "$(number $new_end 8)" | dd of=/entries bs=1 seek=$(((index - 1) * 128 + 40)) conv=notrunc 2>/dev/null
    put $((last - ENTRIES_SIZE / sector)) /entries
    table_header "$last" 1 $((last - ENTRIES_SIZE / sector))
    put "$last" /header
    sync
    if [ -n "$old" ]; then protect "$old" "$last"; fi
    put 2 /entries
    table_header 1 "$last" 2
    put 1 /header
    sync
    rm -f /entries /header
    blockdev --rereadpt "$node"
}

# The protective entry of the MBR covers the disk, unless the MBR is a hybrid one: $1 sectors until now, then $2.
protect() {
    [ "$2" -le 4294967295 ] || return 0
    old_entry=$(dd if="$node" bs=1 skip=450 count=12 2>/dev/null | hex)
    [ "$(echo "$old_entry" | cut -c1-2,9-24)" = "ee01000000$(number "$1" 4)" ] || return 0
    raw "$(number "$2" 4)" | dd of="$node" bs=1 seek=458 conv=notrunc 2>/dev/null
}

# The file system on $device is smaller than the $end KiB that it may have.
small() {
    [ "$(dd if="$device" bs=1 skip=1080 count=2 2>/dev/null | hex)" = 53ef ] || return 1
    blocks=$((0x$(swap "$(dd if="$device" bs=1 skip=1028 count=4 2>/dev/null | hex)")))
    shift=$((0x$(swap "$(dd if="$device" bs=1 skip=1048 count=4 2>/dev/null | hex)")))
    [ $(((blocks << shift) + 1024)) -lt "$end" ]
}
