# SPDX-License-Identifier: Apache-2.0
# The minimum version, as the boot script reads it too: two records in the slot-state partition, each a U-Boot
# environment block with its checksum (disk/rollback.py). The initramfs checks by itself, so that a boot script which
# somebody has changed starts nothing old either.

# The minimum that the record of $1 (a device) at KiB $2 holds; nothing where its checksum is wrong. gzip is a CRC-32 of
# what it reads: it ends with one, little endian as the record begins with it, and 4 bytes for the length.
recorded_minimum() {
    told=$(dd if="$1" bs=1024 skip="$2" count=4 2>/dev/null | head -c 4 | od -An -tx1)
    found=$(dd if="$1" bs=1024 skip="$2" count=4 2>/dev/null | tail -c +5 | gzip -c | tail -c 8 | head -c 4 | od -An -tx1)
    [ -n "$told" ] && [ "$told" = "$found" ] || return 0
    dd if="$1" bs=1024 skip="$2" count=4 2>/dev/null | tail -c +5 | tr '\0' '\n' | while IFS='=' read -r key value; do
        [ "$key" != MIN_VERSION ] || echo "$value"
    done
}

# Sets $minimum to the higher one of the two, 0 without any.
read_minimum() {
    minimum=0
    for place in 128 192; do
        value=$(recorded_minimum "$1" $place)
        case $value in
        '' | *[!0-9]* | ??????????*) ;;
        *) [ "$value" -le "$minimum" ] || minimum=$value ;;
        esac
    done
}
