# SPDX-License-Identifier: Apache-2.0
# Read by the init script of a board that gets its system over the network: other ways to find the system and the data.
#
# nbdkit fetches, and gives what it has fetched to the kernel over a socket of its own. When the server is lost, it
# tries again without an end, and the kernel's reads wait; none fails. It lives on after the change of the root: what
# it opens later lies in /run of this initramfs, and by the '@' systemd lets it live until the very end.

run=/run

last() { [ ! -s "$1" ] || tail -n 1 "$1"; }

# The network: an address for the first interface that gets one. Interfaces appear late: wait 10 seconds.
find_network() {
    ip link set lo up
    turns=40
    while [ $turns -gt 0 ]; do
        for folder in /sys/class/net/*; do
            link=${folder##*/}
            [ "$link" != lo ] || continue
            ip link set "$link" up && udhcpc -f -n -q -t 5 -T 1 -i "$link" -s /bin/leased >$run/dhcp 2>&1 && return 0
        done
        turns=$((turns - 1))
        sleep 0.25
    done
    return 1
}

why_no_address() {
    if [ -e $run/dhcp ]; then last $run/dhcp; else echo "there is none but lo that can be set up"; fi
}

# /dev/nbd$1 becomes what nbdkit gives by the other arguments.
attach() {
    number=$1
    shift
    # the full path, as busybox looks for no other where the name is to be another
    (exec -a @nbdkit /bin/nbdkit -f -U $run/nbd$number "$@") >$run/nbdkit$number 2>&1 &
    turns=200
    until [ -S $run/nbd$number ]; do
        turns=$((turns - 1))
        [ $turns -gt 0 ] || return 1
        sleep 0.05
    done
    connect_device $number $number "${CONNECTIONS:-1}"
}

# /dev/nbd$1 reads by $3 connections what the nbdkit number $2 gives. The full path, as busybox has a client of this name.
connect_device() {
    /bin/nbd-client -unix $run/nbd"$2" /dev/nbd"$1" -N "" -b 4096 -C "$3" >$run/client"$1" 2>&1
}

# What the system's first readers want, in their order: into nbdkit's memory, in few large requests, two at a time. That
# goes on after the change of the root, which takes away all programs here and moves /dev: so what it needs lies on a
# file system of its own. Its program gives up its memory at the end, and nbdkit keeps nothing more: without /run/ahead it
# does not.
#
# Both streams have devices of their own: nbdkit answers the requests of one connection one after the other, and nobody
# shall have to wait for what is fetched ahead.
prefetch() {
    mkdir -p /ahead &&
        mount -t tmpfs -o mode=700,nosuid tmpfs /ahead &&
        cp /bin/busybox /ahead/dd &&
        ln /ahead/dd /ahead/nbd-client &&
        ln /ahead/dd /ahead/rm &&
        cp -a /dev/nbd2 /dev/nbd3 /dev/null /prefetch /ahead || return 0
    fetch_ahead 2 0 &
    fetch_ahead 3 1
    wait
    /ahead/rm $run/ahead
    : >/ahead/dd
}

# By the device $1, each second run from number $2 on.
fetch_ahead() {
    connect_device "$1" 0 1 || return 0
    turn=$2
    while read -r first count; do
        [ $turn = 1 ] || /ahead/dd if=/ahead/nbd"$1" of=/ahead/null iflag=direct,skip_bytes bs=$((count * 4096)) \
            skip=$((first * 4096)) count=1
        turn=$((1 - turn))
    done </ahead/prefetch >/ahead/null 2>&1
    /ahead/nbd-client -d /ahead/nbd"$1" >/ahead/null 2>&1
}

# What an earlier start has installed on the board's disk, if it is this very system. It may fail to come up twice, then
# the network has its turn again. The last 4 KiB of the partition have the state: a line of text.
find_kept() {
    TRIES=40
    find_partition "$KEEP" || return 1
    read -r sectors <"$partition/size"
    kept=/dev/${partition##*/} mark=$((sectors - 8)) action=install
    state=$(dd if="$kept" bs=512 skip=$mark count=1 2>/dev/null | tr -d '\0')
    case $state in "erofs-edge installed $ROOT_HASH "[01]) ;; *) return 1 ;; esac
    printf '%s\n' "erofs-edge installed $ROOT_HASH $((${state##* } + 1))" |
        dd of="$kept" bs=512 seek=$mark count=1 conv=notrunc,fsync,sync 2>/dev/null || return 1
    action=worked device=$kept disk=${partition%/*}
    echo "erofs-edge: the system is the one that is installed on $kept"
}

connect() {
    mkdir -p $run
    mount -t tmpfs -o mode=755,nosuid,nodev tmpfs $run || fail "$1" "no memory for $run"
    [ ! -d /tls ] || cp -a /tls $run/tls
    find_network || fail "$1" "no interface gets an address: $(why_no_address)"
}

find_system() {
    [ -z "$KEEP" ] || ! find_kept || return 0
    connect verity
    [ ! -s /prefetch ] || : >$run/ahead
    TMPDIR=$run attach 0 $SYSTEM_FILTERS $SYSTEM_FROM ||
        fail verity "the system is not to be had: $(last $run/nbdkit0) $(last $run/client0)"
    device=/dev/nbd0 disk=
    [ ! -s /prefetch ] || prefetch 2>/dev/null &
}

find_data() {
    . /grow
    if [ -z "$DATA_FROM" ]; then
        TRIES=100
        find_partition "$DATA" || fail data "no partition is labelled '$DATA'"
        device=/dev/${partition##*/}
        return
    fi
    [ -n "$link" ] || connect data
    # a disk of its own for each board, called after its network's address
    if [ "$DATA_ID" = mac ]; then
        read -r address </sys/class/net/"$link"/address
        DATA_FROM=$DATA_FROM$(echo "$address" | tr : -)
    fi
    attach 1 --filter=retry $DATA_FROM retries=1000000000 retry-delay=1 retry-exponential=no ||
        fail data "the data is not to be had: $(last $run/nbdkit1) $(last $run/client1)"
    device=/dev/nbd1 partition=/sys/block/nbd1
}

# What is done in the system for its copy on the disk: make it, or say that it has come up.
complete_keeping() {
    units=/newroot/run/systemd/system
    mkdir -p $units/multi-user.target.wants &&
        cp /keep /newroot/run/erofs-edge/keep &&
        printf "KEPT='%s'\nMARK='%s'\nROOT_HASH='%s'\n" "$kept" "$mark" "$ROOT_HASH" \
            >/newroot/run/erofs-edge/keep.values &&
        cp /keep.service $units/erofs-edge-keep.service &&
        echo "ExecStart=/bin/sh /run/erofs-edge/keep $action" >>$units/erofs-edge-keep.service &&
        ln -s ../erofs-edge-keep.service $units/multi-user.target.wants/erofs-edge-keep.service
}

# Whoever sets up the network in the system must leave the address alone that the root is read through.
complete_run() {
    # of files that are opened from now on: over a network, what nobody asks for is dearer than a second request
    echo "$READAHEAD" >/sys/block/dm-0/queue/read_ahead_kb
    [ -z "$kept" ] || complete_keeping || fail switch-root "the system has no directory /run"
    [ -n "$link" ] || return 0
    read -r address </sys/class/net/"$link"/address
    mkdir -p /newroot/run/systemd/network &&
        printf '[Match]\nMACAddress=%s\n[Network]\nDHCP=ipv4\nKeepConfiguration=yes\n' "$address" \
            >/newroot/run/systemd/network/10-diskless.network || fail switch-root "the system has no directory /run"
}
