#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of the machine that configures packages: the tree from one disk into memory, the preinst scripts,
# dpkg, the tree as an archive onto the other disk. /plan has EPOCH, /preinst lines "package name-in-info version arch".
#
# What is said goes to the console, each line after the time in seconds since the machine started. Lines that begin
# with "erofs-edge:" are for the host: "clock", "result".

/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

end() {
    sync
    echo "erofs-edge: result $*"
    sleep 0.3 # until the console has it
    poweroff -f
    while :; do sleep 60; done
}

. /plan
for module in /modules/*; do
    insmod "$module" || end "failed the kernel does not take the module ${module##*/}"
done

# The disk with the serial number $1.
disk() {
    for folder in /sys/block/vd*; do
        [ "$(cat "$folder/serial")" != "$1" ] || disk=/dev/${folder##*/}
    done
}
disk=
disk input
input=$disk
disk output
output=$disk

mount -t tmpfs -o size=100%,nr_inodes=0,mode=755 root /newroot
tar -xf "$input" -C /newroot || end "failed the tree does not fit into the memory"
for kind in proc sysfs devtmpfs; do
    case $kind in proc) place=proc ;; sysfs) place=sys ;; devtmpfs) place=dev ;; esac
    mkdir -p /newroot/$place
    mount -t $kind $kind /newroot/$place
done
mkdir -p /newroot/dev/pts /newroot/dev/shm /newroot/run /newroot/tmp
mount -t devpts -o ptmxmode=666 devpts /newroot/dev/pts
mount -t tmpfs shm /newroot/dev/shm
mount -t tmpfs -o mode=755 run /newroot/run
mount -t tmpfs -o mode=1777 tmp /newroot/tmp
ip link set lo up

# no daemon is started; and awk must be there before the package is configured that makes the link
printf '#!/bin/sh\nexit 101\n' >/newroot/usr/sbin/policy-rc.d
chmod 755 /newroot/usr/sbin/policy-rc.d
for awk in mawk gawk original-awk; do
    [ -e /newroot/usr/bin/awk ] || [ ! -e /newroot/usr/bin/$awk ] || ln -s $awk /newroot/usr/bin/awk
done

inside() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8 SOURCE_DATE_EPOCH="$EPOCH" \
        DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true DEBCONF_NOWARNINGS=yes SYSTEMD_OFFLINE=1 \
        "$@" </dev/null
}

# A daemon that a script leaves behind keeps its output open: the reader ends at a line, not at the end of the file.
mkfifo /lines
while IFS= read -r line; do
    [ "$line" != "erofs-edge: end" ] || break
    read -r up rest </proc/uptime
    echo "$up $line"
done </lines &
reader=$!
exec 3>/lines
finish() {
    echo "erofs-edge: end" >&3
    wait $reader
    exec 3>&-
}

# the machine's clock against the time since it started, by a file made at a known moment; busybox knows whole seconds
read -r up rest </proc/uptime
: >/newroot/.clock
now=$(/bin/chroot /newroot /usr/bin/stat -c %.9Z /.clock 2>/dev/null) || now=$(date +%s)
rm /newroot/.clock
echo "erofs-edge: clock $now $up"

while read -r package name version arch; do
    echo "processing: preinst: $package" >&3
    inside DPKG_MAINTSCRIPT_PACKAGE="$package" DPKG_MAINTSCRIPT_ARCH="$arch" DPKG_MAINTSCRIPT_NAME=preinst \
        DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 DPKG_ADMINDIR=/var/lib/dpkg DPKG_ROOT= \
        /bin/chroot /newroot "/var/lib/dpkg/info/$name.preinst" install >&3 2>&1
    status=$?
    if [ $status != 0 ]; then
        finish
        end "script preinst $package $status"
    fi
done </preinst

inside /bin/chroot /newroot /usr/bin/dpkg --force-confnew --force-unsafe-io --abort-after=1 --status-fd=4 \
    --configure -a >&3 2>&1 4>&3
status=$?
finish
kill -9 -1
[ $status = 0 ] || end "dpkg $status"

for place in dev/pts dev/shm dev proc sys run tmp; do
    umount /newroot/$place || umount -l /newroot/$place
done
/bin/chroot /newroot /usr/bin/tar --numeric-owner --sort=name --format=pax --pax-option=delete=atime --xattrs \
    '--xattrs-include=*' --blocking-factor=2048 -C / -cf - . >"$output" || end "failed tar cannot pack the result"
end ok
