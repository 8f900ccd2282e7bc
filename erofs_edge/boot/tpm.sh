# SPDX-License-Identifier: Apache-2.0
# Read by crypt.sh: a secret that one TPM 2.0 keeps, and gives back only while the PCRs of $PCRS (a bitmap) have the same
# values. Commands are the bytes of TPM 2.0 Part 3 as hexadecimal text; the key above the secret is made anew each time
# from the TPM's own seed, so that nothing is stored in it. The kernel forgets what is loaded when /dev/tpmrm0 is closed.

TPM=/dev/tpmrm0
PASSWORD=00000009400000090000000000 # authorization of 9 bytes: TPM_RS_PW, an empty password
# a restricted ECC P-256 key that decrypts, AES-128 CFB below it (Part 2, 12.2.4)
PARENT=0023000b00030472000000060080004300100003001000000000

# Command $2 with tag $1 and the rest $3 → $answer, the response behind its header. False where the TPM refuses.
tpm() {
    raw "$1$(printf %08x $((10 + ${#3} / 2)))$2$3" >/tpm-command
    dd if=/tpm-command bs=4096 count=1 >&3 2>/dev/null
    answer=$(dd bs=4096 count=1 <&3 2>/dev/null | hex)
    code=$(echo "$answer" | cut -c13-20)
    answer=$(echo "$answer" | cut -c21-)
    [ "$code" = 00000000 ] || {
        tpm_said="code ${code:-none} for command $2"
        return 1
    }
}

# The hexadecimal text $1 behind its length in two bytes.
sized() { printf '%04x%s' $((${#1} / 2)) "$1"; }

# The sized field at byte $2 of $1.
sized_at() {
    length=$((0x$(echo "$1" | cut -c$(($2 * 2 + 1))-$(($2 * 2 + 4)))))
    echo "$1" | cut -c$(($2 * 2 + 5))-$(($2 * 2 + 4 + length * 2))
}

# Run $@ with the TPM as file 3.
with_tpm() {
    tpm_said="there is no $TPM"
    tries=100
    until [ -e "$TPM" ]; do
        [ $tries -gt 0 ] || return 1
        tries=$((tries - 1))
        sleep 0.05
    done
    exec 3<>"$TPM" || return 1
    "$@"
    status=$?
    exec 3>&-
    return $status
}

parent() {
    tpm 8002 00000131 "40000001${PASSWORD}000400000000$(sized "$PARENT")000000000000" || return 1
    parent=$(echo "$answer" | cut -c1-8)
}

# A session in which the PCRs count → $session.
session() {
    tpm 8001 00000176 "40000007400000070010000102030405060708090a0b0c0d0e0f0000010010000b" || return 1
    session=$(echo "$answer" | cut -c1-8)
    tpm 8001 0000017f "${session}000000000001000b03$PCRS"
}

# The secret $1 → $private and $public.
seal() {
    policy='' attributes=00000452
    if [ -n "$PCRS" ]; then
        session && tpm 8001 00000189 "$session" || return 1
        policy=$(sized_at "$answer" 0) attributes=00000412
        tpm 8001 00000165 "$session" || return 1
    fi
    parent || return 1
    secret=$(sized "0000$(sized "$1")") template=$(sized "0008000b$attributes$(sized "$policy")00100000")
    tpm 8002 00000153 "$parent$PASSWORD$secret${template}000000000000" || return 1
    private=$(sized_at "$answer" 4)
    public=$(sized_at "$answer" $((6 + ${#private} / 2)))
}

# $private in $1, $public in $2 → the secret in $answer.
unseal() {
    parent && tpm 8002 00000157 "$parent$PASSWORD$(sized "$1")$(sized "$2")" || return 1
    object=$(echo "$answer" | cut -c1-8) use=$PASSWORD
    if [ -n "$PCRS" ]; then
        session || return 1
        use=00000009${session}0000000000
    fi
    tpm 8002 0000015e "$object$use" || return 1
    answer=$(sized_at "$answer" 4)
}
