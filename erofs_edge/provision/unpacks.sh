#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# How long it takes to unpack what has come through a pipe, as `patch` of work.sh does it, but to memory: by the clock or
# by what the processor had to do, whatever is less, and of two times where that was long, for the board may be busy with
# something else. Says `unpacks BYTES HUNDREDTHS`, the latter of a second. Argument: what its files in memory end in.
export PATH=/bin
# hundredths of a second by the clock, and of processors for the programs that ended (proc(5): stat, 16 and 17)
hundredths() {
    read -r now _ < /proc/uptime
    now=${now%.*}${now#*.}
    now=${now#0}
    read -r stat < /proc/self/stat
    # shellcheck disable=SC2086  # words
    set -- $stat
    shift 15
    spent=$(($1 + $2))
}
least() { [ "$1" -ge "$took" ] || took=$1; }

packed=/run/packed.$1 twice=/run/twice.$1 delta=/run/sample.$1 unpacked=/run/unpacked.$1 out=/run/out.$1
zstd -q -1 -c /bin/busybox > "$packed" && cat "$packed" "$packed" > "$twice"
took=1000000
for turn in 1 2; do
    hundredths && started=$now before=$spent
    # shellcheck disable=SC2002  # the pipe counts
    cat "$twice" | dd of="$delta" bs=1M iflag=fullblock 2> /dev/null
    zstd -q -d -c "$delta" > "$unpacked"
    dd if="$unpacked" of="$out" bs=1M 2> /dev/null
    hundredths && least $((now - started)) && least $((spent - before))
    [ $took -ge 10 ] || break
done
echo "unpacks $(stat -c %s "$unpacked") $took"
rm -f "$packed" "$twice" "$delta" "$unpacked" "$out"
