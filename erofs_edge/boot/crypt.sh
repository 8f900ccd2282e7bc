# SPDX-License-Identifier: Apache-2.0
# Read by the init script of a board that encrypts its data partition. $place is the partition, a LUKS2 container but for
# its last MiB, where the init script has its marker; the file system lies in $device, which is that container opened.
#
# The key is random, so nothing is gained by making it slow to try one.

HEADER=16384 # KiB in front of the data, as luksFormat lays them
end=$((end - HEADER)) device=/dev/mapper/data

# The key from where the board says it is, into /key.
key_from_file() {
    found=$partition
    find_partition "$KEY_PARTITION" || fail data "no partition is labelled '$KEY_PARTITION', where the key should be"
    mkdir -p /keys
    reason=$(mount -o ro "/dev/${partition##*/}" /keys 2>&1) || fail data "the key's partition does not mount: $reason"
    partition=$found
    head -c 4096 "/keys$KEY_PATH" >/key 2>/dev/null || fail data "there is no key $KEY_PATH on '$KEY_PARTITION'"
    umount /keys
    [ "$(head -c 32 /key | hex | cut -c64)" ] || fail data "the key has less than 32 bytes"
}

# The key that the TPM keeps, into /key; its sealed form is a token of the container.
key_from_tpm() {
    token=$(/bin/cryptsetup token export --token-id 0 "$place" 2>&1) || fail data "$place has no key of a TPM: $token"
    private=${token#*\"private\":\"} public=${token#*\"public\":\"}
    with_tpm unseal "${private%%\"*}" "${public%%\"*}" || fail data "the TPM does not give the key: $tpm_said"
    raw "$answer" >/key
}

container() { [ "$(head -c 6 "$place" | hex)" = 4c554b53babe ]; }

mapped() { /bin/cryptsetup open --type luks2 --key-file /key "$place" data; }

open_container() {
    container || return 0 # blank, or of somebody else: the init script looks
    case $CRYPT_KEY in file) key_from_file ;; *) key_from_tpm ;; esac
    reason=$(mapped 2>&1) || fail data "$place is left as it is, the key does not open it: $reason"
    rm -f /key
}

# What was there is lost: the new volume key has never left this device's memory.
new_container() {
    [ ! -e "$device" ] || /bin/cryptsetup close data || return 1
    case $CRYPT_KEY in
    file) key_from_file ;;
    *)
        head -c 32 /dev/urandom >/key
        with_tpm seal "$(hex </key)" || fail data "the TPM does not take the key: $tpm_said"
        ;;
    esac
    /bin/cryptsetup luksFormat -q --type luks2 --cipher aes-xts-plain64 --key-size 512 --pbkdf pbkdf2 \
        --pbkdf-force-iterations 1000 --key-file /key "$place" || return 1
    if [ "$CRYPT_KEY" = tpm2 ]; then
        printf '{"type":"erofs-edge-tpm2","keyslots":["0"],"private":"%s","public":"%s"}' "$private" "$public" |
            /bin/cryptsetup token import --token-id 0 "$place" || return 1
    fi
    mapped && rm -f /key
}

mkdir -p /run
[ "$CRYPT_KEY" = file ] || . /tpm
