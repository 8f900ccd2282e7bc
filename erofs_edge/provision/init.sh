#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of the provisioning system: network, then the board's disk on NBD's port and its control export on the
# port behind. Arguments of the kernel: edge.disk=NAME (default: the first disk), edge.ip=ADDRESS/BITS (default: DHCP).
export PATH=/bin
fail() { echo "erofs-edge: provisioning failed: $1"; sync; sleep 2; poweroff -f; }

mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t devtmpfs dev /dev || fail "no /dev"
mkdir -p /run /dev/shm && mount -t tmpfs -o size=90% tmpfs /run
# what is hashed, in large pages where the kernel has them: it makes them in a third of the time (seen in QEMU)
mkdir /run/data || fail "no /run"
mount -t tmpfs -o size=90%,huge=always tmpfs /run/data || mount -t tmpfs -o size=90% tmpfs /run/data || fail "no memory"
# whoever has no certificate of this board's authority is refused
tls=''
[ ! -d /tls ] || tls='--tls=require --tls-certificates=/tls --tls-verify-peer'
# each question of the control export that a filter answers is a process less when a host comes
filters=''
for name in exportname nozero noextents fua rotational multi-conn nocache; do filters="$filters --filter=$name"; done
# this and the drivers take a while, each on a processor of its own where there are several
# shellcheck disable=SC2086  # several words, or none
nbdkit -f -p 10810 --no-fork --keepalive -t 1 $tls $filters sh /bin/control multi-conn-mode=disable default-export=c &
for module in /modules/*.ko; do insmod "$module" || echo "erofs-edge: $module does not load"; done &
loading=$!

echo > /run/disk
echo 0 > /run/size
# what a host need not ask for: which board this is, and which digests it has besides sha256
{
    echo serial
    for number in 1 2 3 4 5 6 7 8; do echo "compatible $number"; done
    echo .
} > /run/control.who
/bin/work who
said="erofs-edge board|$(tr '|\n' '_|' < /run/answers)|blake2b"
rm -f /run/control.who /run/answers

disk='' address=''
read -r arguments < /proc/cmdline
for argument in $arguments; do
    case $argument in
        edge.disk=*) disk=/dev/${argument#*=} ;;
        edge.ip=*) address=${argument#*=} ;;
    esac
done
wait $loading
turns=0
until [ -b "${disk:-/none}" ]; do
    for name in vda mmcblk0 sda nvme0n1; do [ -n "$disk" ] || [ ! -b "/dev/$name" ] || disk=/dev/$name; done
    turns=$((turns + 1))
    [ $turns -lt 100 ] || fail "no disk ${disk:-of any kind}"
    sleep 0.1
done
echo "$disk" > /run/disk
blockdev --getsize64 "$disk" > /run/size
# shellcheck disable=SC2086
nbdkit -f -p 10809 --keepalive -t 8 $tls --filter=exportname file "$disk" "exportdesc=fixed:$said" &

ip link set lo up
link=''
for path in /sys/class/net/*; do [ "${path##*/}" = lo ] || link=${path##*/}; done
[ -n "$link" ] || fail "no network interface"
ip link set "$link" up
if [ -n "$address" ]; then ip addr add "$address" dev "$link"; else udhcpc -n -q -i "$link" -s /bin/leased || fail "no DHCP"; fi

# a host that died without a word is forgotten after a minute, so that another one may write; one that is asked for what
# it will not take, after two or so (Linux, ip-sysctl.rst)
for setting in tcp_keepalive_time=30 tcp_keepalive_intvl=10 tcp_keepalive_probes=3 tcp_retries2=8; do
    echo "${setting#*=}" > "/proc/sys/net/ipv4/${setting%=*}"
done
at=$(ip -4 -o addr show "$link" | tr -s ' ' | cut -d' ' -f4)
read -r size < /run/size
turns=0
# whether something waits for connections at PORT, in hexadecimal
listening() {
    for table in /proc/net/tcp /proc/net/tcp6; do
        [ ! -r $table ] || while read -r _ here _ state _; do
            [ "${here##*:} $state" != "$1 0A" ] || return 0
        done < $table
    done
    return 1
}
until listening 2A39 && listening 2A3A; do # the two ports
    turns=$((turns + 1))
    [ $turns -lt 200 ] || fail "the exports do not start"
    sleep 0.05
done
# an emulated machine starts with one processor, as all that is up to here takes half as long again with two
for processor in /sys/devices/system/cpu/cpu*/online; do [ ! -e "$processor" ] || echo 1 > "$processor"; done
grep -c ^processor /proc/cpuinfo > /run/cpus
echo "erofs-edge: provisioning ready: $disk, $size bytes, on $at"
wait
fail "the exports ended"
