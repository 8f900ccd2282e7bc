#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Carries out the request of a connection to the control export: a line each, an answer each, '.' at the end of both.
# Argument: the connection.
export PATH=/bin
control=/run/control.$1 connection=$1 answers=33554432 deltas=67108864 trees=536870912
tree=/sys/firmware/devicetree/base dmi=/sys/class/dmi/id
cpus=1 teller='' filled=''
read -r disk < /run/disk
read -r size < /run/size
[ ! -r /run/cpus ] || read -r cpus < /run/cpus

# bytes of a file or the disk: FILE OFFSET LENGTH
cut_out() { dd if="$1" bs=1M iflag=skip_bytes,count_bytes,fullblock skip="$2" count="$3" 2> /dev/null; }
# FILE becomes some of the disk, OFFSET LENGTH: past the kernel's cache, as far as the disk has sectors of that size. A file
# of that length is written over, for new memory takes as long as reading; then all of it must come from the disk
fill() {
    if [ "$3" = "$filled" ]; then
        copied=$(gdd if="$disk" of="$1" bs=1M iflag=skip_bytes,count_bytes,fullblock,direct conv=notrunc \
            skip="$2" count="$3" 2>&1) && whole "$3"
    else
        dd if="$disk" of="$1" bs=1M iflag=skip_bytes,count_bytes,fullblock,direct skip="$2" count="$3" 2> /dev/null
    fi || cut_out "$disk" "$2" "$3" > "$1"
}
# what GNU's dd has said counts LENGTH bytes: a disk that ends before gives fewer
whole() {
    case $copied in *"
$1 byte"*) ;; *) return 1 ;; esac
}
# the host asks for a flush when it wants it to last
put() { dd of="$disk" bs=1M iflag=fullblock oflag=seek_bytes seek="$1" conv=notrunc 2> /run/said; }
# which digest: NAME. An older host names none
by() {
    case ${1:-sha256} in
        sha256) sum=sha256sum algorithm=sha256 width=32 ;;
        blake2b) sum=b2sum algorithm=blake2b-512 width=64 ;;
        *) return 1 ;;
    esac
}
# what is hashed goes through a file in memory: through a pipe it takes four times as long (seen in QEMU)
# digest of some of the disk, FILE OFFSET LENGTH; what is larger than the memory may be has to take the pipe
hashed() {
    if [ "$3" -gt 67108864 ]; then
        cut_out "$disk" "$2" "$3" | $sum
    else
        fill "$1" "$2" "$3" && $sum < "$1"
    fi
}
# whether OFFSET LENGTH of the disk are zeros: the first that are none would be written to a device that takes nothing,
# which is the end of it. Past the kernel's cache, where they are whole sectors
zeros() {
    past=,direct
    [ $((($1 | $2) % 4096)) = 0 ] || past=''
    copied=$(gdd if="$disk" of=/dev/full bs=4M iflag=skip_bytes,count_bytes,fullblock$past conv=sparse \
        skip="$1" count="$2" 2>&1) || return 1
    whole "$2" # a disk that ends before says nothing of what is behind
}
# blocks of a hash tree that stand before its leaves: COUNT of leaves
before() {
    above=0 level=$((($1 * width + 4095) / 4096))
    while [ $level -gt 1 ]; do level=$(((level * width + 4095) / 4096)) above=$((above + level)); done
}
# digests of each SIZE bytes, COUNT of them, two at least, from OFFSET on, to PLACE of the control export, with files that
# end in NAME. A hash tree without salt or superblock is a list of digests
leaves() {
    fill "/run/data/$5" "$3" $(($1 * $2)) \
        && veritysetup format --no-superblock --salt=- --hash="$algorithm" --data-block-size="$1" --hash-block-size=4096 \
            "/run/data/$5" "/run/tree.$5" > "/run/said.$5" 2>&1 \
        && before "$2" \
        && dd if="/run/tree.$5" of=$control bs=1M iflag=skip_bytes,count_bytes,fullblock oflag=seek_bytes \
            skip=$((above * 4096)) count=$((width * $2)) seek="$4" conv=notrunc 2> /dev/null
}
# the same of COUNT of SIZE from OFFSET on, a part on each processor, where the leaves of one tree would be
blocks() {
    parts=$cpus
    [ $(($1 / parts)) -ge 16 ] || parts=1
    before "$1"
    each=$(($1 / parts)) left=$1 from=$3 place=$((trees + above * 4096)) part=0 running=''
    while [ $left -gt 0 ]; do
        part=$((part + 1))
        [ $part -lt $parts ] || each=$left
        leaves "$2" $each $from $place $part &
        running="$running $!" left=$((left - each)) from=$((from + each * $2)) place=$((place + each * width))
    done
    for job in $running; do wait "$job" || left=-1; done
    rm -f /run/data/* /run/tree.*
    [ $left = 0 ]
}
# SERIAL or a name, NUL-terminated in a file, as an answer of one line; of several the one with the number $2. The file is
# read once for all that is asked of it
told() {
    if [ "$1" != "$teller" ]; then
        teller=$1 names=''
        [ ! -r "$1" ] || names=$(tr '\0' '\n' < "$1")
    fi
    turn=0 found=''
    while IFS= read -r name && [ $turn -lt "$2" ]; do turn=$((turn + 1)) found=$name; done << EOF
$names
EOF
    [ $turn = "$2" ] || found=''
    printf 'is %.70s\n' "$found"
}
# nobody else has said that he writes
alone() { ! read -r holder who 2> /dev/null < /run/holder || [ "$holder" = "$connection" ]; }
inside() { [ "$1" -ge 0 ] && [ "$2" -ge 0 ] && [ $(($1 + $2)) -le "$size" ]; }

one() {
    case $1 in copy | patch | reboot | poweroff) alone || { echo "error held"; return; } ;; esac
    case $1 in
        hold) # NAME: of who writes from now on, until the connection ends
            if (set -C && echo "$connection $2" > /run/holder) 2> /dev/null || alone; then
                echo ok
            else
                printf 'held %.70s\n' "$who"
            fi ;;
        hash) # OFFSET LENGTH DIGEST
            inside "$2" "$3" || { echo "error outside"; return; }
            by "$4" || { echo "error digest"; return; }
            if found=$(hashed "/run/data/$runner" "$2" "$3"); then
                filled=$3
                echo "${found%% *}"
            else
                filled=''
                echo "error memory"
            fi ;;
        zeros) # OFFSET LENGTH
            inside "$2" "$3" || { echo "error outside"; return; }
            if zeros "$2" "$3"; then echo zeros; else echo data; fi ;;
        blocks) # SIZE OFFSET LENGTH DIGEST
            inside "$3" "$4" || { echo "error outside"; return; }
            by "$5" || { echo "error digest"; return; }
            [ "$2" -ge 512 ] && [ "$4" -ge $((2 * $2)) ] || { echo "error size"; return; }
            if blocks $(($4 / $2)) "$2" "$3"; then echo ok; else echo "error memory"; fi ;;
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
        unpacks) /bin/unpacks "$connection" < /dev/null ;;
        reboot) echo ok; (sleep 1; sync; reboot -f) > /dev/null 2>&1 & ;;
        poweroff) echo ok; (sleep 1; sync; poweroff -f) > /dev/null 2>&1 & ;;
        *) echo "error unknown" ;;
    esac
}

# JOB…: each one is done by whichever of the runners, one on each processor, is free first; then their answers, in order
settle() {
    [ $# -gt 0 ] || return 0
    rm -f /run/taken.*
    runner=0
    while [ $runner -lt "$cpus" ] && [ $runner -lt $# ]; do
        runner=$((runner + 1))
        run "$@" &
    done
    wait
    turn=0
    while [ $turn -lt $# ]; do
        turn=$((turn + 1)) said=''
        read -r said < /run/answer.$turn
        : > /run/answer.$turn # what was answered once is no answer to anything else
        echo "${said:-error memory}"
    done
}
run() {
    turn=0
    for job; do
        turn=$((turn + 1)) mine=yes
        set -C # of several runners one makes this file
        { true > /run/taken.$turn; } 2> /dev/null || mine=''
        set +C
        [ -n "$mine" ] || continue
        # shellcheck disable=SC2086  # words of numbers
        one $job > /run/answer.$turn
    done
}

set --
while read -r line; do
    [ "$line" != . ] || break
    case $line in
        hash* | zeros*)
            set -- "$@" "$line"
            [ $# -lt 64 ] || { settle "$@"; set --; } ;;
        *)
            settle "$@"
            set --
            # shellcheck disable=SC2086  # words of numbers
            one $line ;;
    esac
done < $control > /run/answers
settle "$@" >> /run/answers
rm -f /run/data/*
echo . >> /run/answers
dd if=/run/answers of=$control bs=1M oflag=seek_bytes seek=$answers conv=notrunc 2> /dev/null
