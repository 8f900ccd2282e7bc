#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The initramfs: from the kernel's first process to the verified system. It is inside the signed FIT, and so are the
# values of /config; the only thing taken from outside is the slot's letter. A forged letter opens no other system:
# both slots of one FIT answer to the same root hash.
#
# Each stage is one line on the console; other programs wait for these lines.

export PATH=/bin DM_DISABLE_UDEV=1
MARKER='erofs-edge: formatting'

stage() { echo "erofs-edge: stage $*"; }

# A restart, not a shell: the boot loader counts the attempt and the other slot gets its turn.
fail() {
    [ ! -s /missing ] || set -- "$1" "$2 (modules that did not load: $(tr '\n' ' ' </missing))"
    echo "erofs-edge: FAILED $1: $2"
    sync
    sleep 1
    reboot -f
    while :; do sleep 60; done
}

# The directory in /sys of the partition labelled $1, of the disk $2 or of any. Disks appear late: wait 10 seconds, or
# look TRIES times.
# Reading uevent needs no udev and no program but the shell itself.
find_partition() {
    tries=${TRIES:-200}
    while [ $tries -gt 0 ]; do
        for file in ${2:-/sys/block/*}/*/partition; do
            partition=${file%/partition}
            [ -r "$partition/uevent" ] || continue
            while IFS='=' read -r key value; do
                [ "$key=$value" = "PARTNAME=$1" ] && return 0
            done <"$partition/uevent"
        done
        tries=$((tries - 1))
        sleep 0.05
    done
    return 1
}

# Sets $device to what holds the system and $disk to its disk's directory in /sys. A board that gets its system over the
# network has others of these two, in /diskless.
find_system() {
    find_partition "$label" || fail verity "no partition is labelled '$label'"
    disk=${partition%/*}
    if [ -n "$DATA" ]; then
        . /grow
        if grow_disk "$disk" "$DATA"; then
            echo "erofs-edge: the partition table covers the whole disk now"
        fi
        find_partition "$label" "$disk" || fail verity "no partition is labelled '$label'"
    fi
    device=/dev/${partition##*/}
}

# What such a board adds to the system's /run.
complete_run() { :; }

find_data() {
    find_partition "$DATA" "$disk" || fail data "no partition of ${disk##*/} is labelled '$DATA'"
    device=/dev/${partition##*/}
}

# The data partition is $device. Its last MiB is left out of the file system: a marker stands there from before the
# first write until the file system is complete, so that a power cut in between is seen at the next start.
measure_data() {
    read -r sectors <"$partition/size"
    end=$((sectors / 2 - 1024)) mark=$end place=$device
}

half_made() { [ "$(dd if="$place" bs=1024 skip=$mark count=1 2>/dev/null | tr -d '\0')" = "$MARKER" ]; }

blank() { [ -z "$(head -c 1048576 "$place" | tr -d '\0')" ]; }

# Where the board encrypts, /crypt has others of these: the file system lies in a container in the partition $place.
open_container() { :; }
new_container() { :; }

# The full path, as busybox has a mke2fs of its own.
format_data() {
    echo "$MARKER" | dd of="$place" bs=1024 seek=$mark conv=notrunc,fsync 2>/dev/null &&
        new_container &&
        /bin/mke2fs -q -F -t ext4 -L "$DATA" -m 1 -E lazy_itable_init=1,lazy_journal_init=1 "$device" ${end}k &&
        sync &&
        dd if=/dev/zero of="$place" bs=1024 seek=$mark count=1 conv=notrunc,fsync 2>/dev/null ||
        fail data "cannot make a file system on $device"
}

# What the manifest names of /etc, bound one by one; the first time it is a copy of what the system has there.
bind_etc() {
    for path in $ETC; do
        kept=/newroot/data/etc/bound$path
        if [ ! -e "$kept" ]; then
            rm -rf "$kept.new"
            mkdir -p "${kept%/*}" && cp -a "/newroot$path" "$kept.new" && sync && mv "$kept.new" "$kept" || return 1
        fi
        mount -o bind "$kept" "/newroot$path" || return 1
    done
}

# Nobody signs what is on it: no file there raises anybody's rights, and none is a device. What is bound from it to other
# places has the same options.
mount_data() { mount -t ext4 -o noatime,nosuid,nodev "$device" /newroot/data; }

mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
stage initramfs
. /config

# Numbered in the order of loading. The kernel checks each module's signature, which takes longer than all the rest, so
# what is independent loads side by side. Some modules are for certain processors only: whether one was needed shows
# later.
load() {
    for module in /modules/"$1"/*.ko; do
        options=
        case $module in *-dm_verity.ko) options=$VERITY_MODULE ;; esac
        insmod "$module" $options 2>/dev/null || echo "${module##*/}" >>/missing
    done
}
load erofs &
load disk
wait
load data &
loading=$!

slot=${SLOTS%% *} arguments=
for word in $(cat /proc/cmdline); do
    case $word in
    erofs_edge.slot=*) slot=${word#*=} ;;
    *) arguments="${arguments:+$arguments }$word" ;;
    esac
done
# The arguments come from the boot loader, for which nothing here can vouch: they must be those of the build.
[ "$arguments" = "$CMDLINE" ] || fail initramfs "the kernel's arguments are not those of this build: $arguments"
label=$SYSTEM
if [ -n "$SLOTS" ]; then
    case " $SLOTS " in *" $slot "*) ;; *) fail verity "there is no slot '$slot'" ;; esac
    label=${SYSTEM}_$slot
fi

[ ! -e /diskless ] || . /diskless
find_system
if [ -n "$STATE" ] && find_partition "$STATE" "$disk"; then
    . /rollback
    read_minimum "/dev/${partition##*/}"
    [ "$ROLLBACK_INDEX" -ge "$minimum" ] ||
        fail rollback "this build has version $ROLLBACK_INDEX, the minimum is $minimum"
    # A slot that has failed before has few starts left: it is looked through, and repaired if it can be.
    . /repair
    case $(starts_left "$slot" "/dev/${partition##*/}") in
    0 | 1) mend_slot ${FEC:+use_fec_from_device "$device" $FEC} ;;
    esac
fi
[ ! -e /vbmeta ] || . /vbmeta
table="0 $SECTORS verity 1 $device $device $BLOCK_SIZE $BLOCK_SIZE $DATA_BLOCKS $HASH_START sha256 $ROOT_HASH $SALT"
# Error correction comes first: only what it cannot repair restarts the machine or makes it panic.
set -- $VERITY_OPTIONS ${FEC:+use_fec_from_device "$device" $FEC}
# The signature of the root hash, for a kernel that has the key from its firmware and maps nothing else. Found by
# whoever has no session keyring: this script and what it starts.
if [ -s /root-hash.p7s ]; then
    reason=$(/bin/keyctl padd user erofs-edge:root @us 2>&1 </root-hash.p7s) ||
        fail verity "the signature of the root hash does not reach the kernel: $reason"
    set -- "$@" root_hash_sig_key_desc erofs-edge:root
fi
[ $# = 0 ] || table="$table $# $*"
reason=$(/bin/dmsetup create root --readonly --table "$table" 2>&1) ||
    fail verity "no mapping of $device: $reason"
# Reading one block proves the path from it to the root hash: a foreign or rolled-back slot ends here.
reason=$(dd if=/dev/mapper/root of=/dev/null bs="$BLOCK_SIZE" count=1 2>&1) ||
    fail verity "$device does not match the root hash $ROOT_HASH: $reason"
stage verity "$ROOT_HASH"

reason=$(mount -t erofs -o ro /dev/mapper/root /newroot 2>&1) || fail root "$reason"
stage root erofs

wait $loading
[ -d /newroot/data ] || fail data "the system has no directory /data"
if [ -z "$DATA" ]; then
    mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /newroot/data || fail data "no memory for /data"
else
    find_data
    measure_data
    [ ! -e /crypt ] || . /crypt
    if half_made; then format_data; else open_container; fi
    if ! reason=$(mount_data 2>&1); then
        # Never over anything: what is damaged may be all that somebody has.
        blank || fail data "$place is not blank and does not mount, it is left as it is: $reason"
        format_data
        mount_data || fail data "$device does not mount"
    fi
    # What asks for the reset goes last: a power cut in between, and the next start does it again.
    if [ -e /newroot/data/.factory-reset ]; then
        echo "erofs-edge: factory reset"
        umount /newroot/data && format_data && mount_data || fail data "$device cannot be made anew"
    elif small; then
        /bin/resize2fs "$device" ${end}k >/dev/null 2>&1 || echo "erofs-edge: $device keeps its old size"
    fi
fi
mkdir -p /newroot/data/var && mount -o bind /newroot/data/var /newroot/var ||
    fail data "/var cannot be laid over the system"
if [ -n "$ETC" ]; then
    bind_etc || fail data "$path cannot be kept on the data partition"
else
    mkdir -p /newroot/data/etc/upper /newroot/data/etc/work &&
        layers=lowerdir=/newroot/etc,upperdir=/newroot/data/etc/upper,workdir=/newroot/data/etc/work &&
        mount -t overlay -o "nosuid,nodev,$layers" overlay /newroot/etc || fail data "/etc cannot be laid over the system"
fi
stage data

mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /newroot/run &&
    mkdir /newroot/run/erofs-edge &&
    printf 'slot=%s\nroot_hash=%s\nrollback_index=%s\n' "$slot" "$ROOT_HASH" "$ROLLBACK_INDEX" \
        >/newroot/run/erofs-edge/boot ||
    fail switch-root "the system has no directory /run"
complete_run
[ -x /newroot/sbin/init ] || fail switch-root "the system has no /sbin/init"
for folder in dev proc sys; do
    mount -o move /$folder /newroot/$folder || fail switch-root "the system has no directory /$folder"
done
stage switch-root >/newroot/dev/console
exec switch_root /newroot /sbin/init
