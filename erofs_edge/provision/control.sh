#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The control export, as nbdkit's sh plugin calls it: see transport/nbd/control.py for the layout. A request that was
# written is carried out by a flush; its answers are read then. Each connection has an export of its own, so that who
# only looks disturbs nobody who writes.
export PATH=/bin
control=/run/control.$2
case $1 in
    open)
        name=$$
        until (set -C && : > /run/control.$name) 2> /dev/null; do name=${name}a; done
        dd if=/dev/null of=/run/control.$name bs=1 seek=1G 2> /dev/null && echo $name ;;
    close)
        rm -f "$control"
        # who held the board holds it no more
        ! read -r holder _ 2> /dev/null < /run/holder || [ "$holder" != "$2" ] || rm -f /run/holder ;;
    get_size) echo 1073741824 ;;
    thread_model) echo serialize_all_requests ;;
    can_write | can_flush) exit 0 ;;
    pread) exec dd if="$control" bs=1M iflag=skip_bytes,count_bytes,fullblock skip="$4" count="$3" 2> /dev/null ;;
    pwrite) exec dd of="$control" bs=1M iflag=fullblock oflag=seek_bytes seek="$4" conv=notrunc 2> /dev/null ;;
    flush) exec /bin/work "$2" ;;
    *) exit 2 ;;
esac
