# SPDX-License-Identifier: Apache-2.0
# A vbmeta partition, checked before anything of the system is opened. What it must be stands in the signed initramfs,
# as does the key; the kernel does the arithmetic of the signature (KEYCTL_PKEY_VERIFY). Nothing that the partition says
# of sizes is believed: they are the build's.

# $2 bytes of the image from byte $1 on.
part() { tail -c +$(($1 + 1)) /vbmeta-image | head -c "$2"; }

digest() { sha256sum | cut -c 1-64; }

# The partition labelled $1 is signed and speaks of this build.
# $2        SHA-256 of the header
# $3 $4 $5  bytes of the authentication block, of the auxiliary block, of the signature
# $6 $7     bytes of the first descriptors, which are known, and their SHA-256
check_vbmeta() {
    find_partition "$1" "$disk" || fail vbmeta "no partition is labelled '$1'"
    head -c $((256 + $3 + $4)) "/dev/${partition##*/}" >/vbmeta-image || fail vbmeta "$1 cannot be read"
    [ "$(part 0 256 | digest)" = "$2" ] || fail vbmeta "the header of $1 is not that of this build"
    part 256 32 >/vbmeta-digest
    part 288 "$5" >/vbmeta-signature
    [ "$({ part 0 256 && part $((256 + $3)) "$4"; } | digest)" = "$(od -An -v -tx1 /vbmeta-digest | tr -d ' \n')" ] ||
        fail vbmeta "$1 does not match its digest"
    [ -n "$signer" ] || signer=$(/bin/keyctl padd asymmetric '' @us </vbmeta-key) ||
        fail vbmeta "the kernel does not take the key"
    reason=$(/bin/keyctl pkey_verify "$signer" 0 /vbmeta-digest /vbmeta-signature enc=pkcs1 hash=sha256 2>&1) ||
        fail vbmeta "the signature of $1 does not match: $reason"
    [ "$6" = 0 ] || [ "$(part $((256 + $3)) "$6" | digest)" = "$7" ] ||
        fail vbmeta "$1 describes another system than that of this build"
}

signer=
