#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Carries out the request of the control export: a line each, an answer each, '.' at the end of both.
export PATH=/bin
control=/run/control answers=33554432 deltas=67108864 trees=536870912
tree=/sys/firmware/devicetree/base dmi=/sys/class/dmi/id
disk=$(cat /run/disk) size=$(cat /run/size) zeros=''

# bytes of a file or the disk: FILE OFFSET LENGTH
cut_out() { dd if="$1" bs=1M iflag=skip_bytes,count_bytes,fullblock skip="$2" count="$3" 2> /dev/null; }
# the host asks for a flush when it wants it to last
put() { dd of="$disk" bs=1M iflag=fullblock oflag=seek_bytes seek="$1" conv=notrunc 2> /run/said; }
# what a piece of the disk becomes when it is packed: of zeros, many times faster to make than a digest
packed() { zstd -q -1 -c 2> /run/said | sha256sum; }
# SERIAL or a name, NUL-terminated in a file, as an answer of one line; of several the one with the number $2
told() {
    turn=0 found=''
    if [ -r "$1" ]; then
        while IFS= read -r name && [ $turn -lt "$2" ]; do turn=$((turn + 1)) found=$name; done << EOF
$(tr '\0' '\n' < "$1")
EOF
    fi
    [ $turn = "$2" ] || found=''
    printf 'is %.70s\n' "$found"
}
inside() { [ "$1" -ge 0 ] && [ "$2" -ge 0 ] && [ $(($1 + $2)) -le "$size" ]; }

one() {
    case $1 in
        hash) # OFFSET LENGTH
            inside "$2" "$3" || { echo "error outside"; return; }
            sum=$(cut_out "$disk" "$2" "$3" | sha256sum) && echo "${sum%% *}" ;;
        blocks) # SIZE OFFSET LENGTH: a hash tree without salt or superblock is a list of digests
            inside "$3" "$4" || { echo "error outside"; return; }
            rm -f /run/tree
            if cut_out "$disk" "$3" "$4" > /run/data && veritysetup format --no-superblock --salt=- --hash=sha256 \
                --data-block-size="$2" --hash-block-size=4096 /run/data /run/tree > /run/said 2>&1 \
                && dd if=/run/tree of=$control bs=1M oflag=seek_bytes seek=$trees conv=notrunc 2> /dev/null; then
                echo ok
            else
                echo "error memory"
            fi
            rm -f /run/data /run/tree ;;
        zeros) # OFFSET LENGTH: whether there is nothing else
            inside "$2" "$3" || { echo "error outside"; return; }
            [ "${zeros%% *}" = "$3" ] || zeros="$3 $(cut_out /dev/zero 0 "$3" | packed)"
            if [ "$3 $(cut_out "$disk" "$2" "$3" | packed)" = "$zeros" ]; then echo yes; else echo no; fi ;;
        copy) # SOURCE OFFSET LENGTH
            inside "$2" "$4" && inside "$3" "$4" || { echo "error outside"; return; }
            cut_out "$disk" "$2" "$4" | put "$3" && echo ok || echo "error copy" ;;
        patch) # SOURCE LENGTH OFFSET LENGTH DELTA-LENGTH; a source without a length is none
            inside "$2" "$3" && inside "$4" "$5" || { echo "error outside"; return; }
            reference=''
            if [ "$3" -gt 0 ]; then
                reference=--patch-from=/run/reference
                cut_out "$disk" "$2" "$3" > /run/reference || { echo "error memory"; return; }
            fi
            cut_out $control $deltas "$6" > /run/delta.zst || { echo "error memory"; return; }
            # shellcheck disable=SC2086  # none, or one word
            if zstd -q -d -c --long=31 --memory=2048MB $reference /run/delta.zst > /run/patched 2> /run/said \
                && [ "$(stat -c %s /run/patched)" = "$5" ]; then
                put "$4" < /run/patched && echo ok || echo "error write"
            else
                echo "error delta"
            fi
            rm -f /run/reference /run/delta.zst /run/patched ;;
        # a device tree, or what the firmware says of the machine where there is none
        serial) if [ -e $tree ]; then told $tree/serial-number 1; else told $dmi/product_serial 1; fi ;;
        compatible) if [ -e $tree ]; then told $tree/compatible "$2"; else told $dmi/product_name "$2"; fi ;;
        medium) # what is read from now on comes from the medium
            sync && echo 1 > /proc/sys/vm/drop_caches && echo ok ;;
        reboot) echo ok; (sleep 1; sync; reboot -f) > /dev/null 2>&1 & ;;
        poweroff) echo ok; (sleep 1; sync; poweroff -f) > /dev/null 2>&1 & ;;
        *) echo "error unknown" ;;
    esac
}

while read -r line; do
    [ "$line" != . ] || break
    # shellcheck disable=SC2086  # words of numbers
    one $line
done < $control > /run/answers
echo . >> /run/answers
dd if=/run/answers of=$control bs=1M oflag=seek_bytes seek=$answers conv=notrunc 2> /dev/null
