# SPDX-License-Identifier: Apache-2.0
# Behind repair.sh where the manifest names a place (verity.repair_from): what no other slot can mend comes from a web
# server, block by block. Each is hashed, and so is every block of the tree above it up to the root hash, before it is
# written: whoever answers there can do nothing but give what is right, or nothing.

ANSWER=60 # seconds that an answer may take
WRONG=8 # answers that may be wrong: whoever gives more has another system

# An address for the first interface that gets one. Leaves $link.
open_network() {
    (load net) # which has variables of its own
    ip link set lo up
    turns=5
    while [ $turns -gt 0 ]; do
        for folder in /sys/class/net/*; do
            link=${folder##*/}
            [ "$link" != lo ] || continue
            ip link set "$link" up && udhcpc -f -n -q -t 5 -T 1 -i "$link" -s /repair-lease >/dev/null 2>&1 && return 0
        done
        turns=$((turns - 1))
        sleep 1
    done
    link=''
    return 1
}

# The system sets up its network by itself.
close_network() {
    [ -z "$link" ] || { ip addr flush dev "$link" && ip link set "$link" down; } >/dev/null 2>&1
}

# Block $1 of the image at the source into /piece. Where there is no answer that fits, $lost says why.
ask() {
    from=$(($1 * BLOCK_SIZE))
    # of an answer without end only the start is taken
    printf 'GET %s HTTP/1.0\r\nHost: %s\r\nRange: bytes=%s-%s\r\nConnection: close\r\n\r\n' \
        "$REPAIR_PATH" "$REPAIR_HOST:$REPAIR_PORT" $from $((from + BLOCK_SIZE - 1)) |
        timeout $ANSWER nc "$REPAIR_HOST" "$REPAIR_PORT" 2>/dev/null | head -c $((BLOCK_SIZE + 16384)) >/answer
    read_answer </answer
}

read_answer() {
    IFS= read -r status || status='no answer'
    case $status in
    HTTP/1.[01]\ 206*) ;;
    *)
        lost=${status%"$RETURN"}
        return 1
        ;;
    esac
    while IFS= read -r line && [ "${#line}" -gt 1 ]; do :; done
    cat >/piece
}

# The hash of the file /$1 as the tree has it, in hexadecimal: of the salt, then of the block.
hash_of() {
    sum=$({ printf "$octal" && cat "/$1"; } | sha256sum)
    echo "${sum%% *}"
}

# The hash number $1 of the block of the tree in /leaf.
named() { dd if=/leaf bs=32 skip="$1" count=1 2>/dev/null | od -An -tx1 | tr -d ' \n'; }

# Block $1 of $device, in /own, is what hashes to $2: already, or from the source.
right() {
    ! { fetch "$device" "$1" 1 own && [ "$(hash_of own)" = "$2" ]; } || return 0
    ask "$1" || return 1
    if [ "$(hash_of piece)" = "$2" ]; then
        put "$1" && cp /piece /own
        return
    fi
    wrong=$((wrong + 1))
    [ $wrong -lt $WRONG ] || lost='another system is there'
    return 1
}

# Where the levels of the tree start: start_1 is the one over the data, start_$levels the top (one block, for $top
# blocks of data at most).
measure_tree() {
    levels=0 digests=$((BLOCK_SIZE / 32)) left=$DATA_BLOCKS top=1
    while [ "$left" -gt 1 ]; do
        left=$(((left + digests - 1) / digests)) levels=$((levels + 1)) top=$((top * digests))
        eval "blocks_$levels=$left"
    done
    level=$levels at=$HASH_START
    while [ $level -gt 0 ]; do
        eval "start_$level=$at at=\$((at + blocks_$level))"
        level=$((level - 1))
    done
    octal='' rest=${SALT#-}
    while [ -n "$rest" ]; do
        pair=${rest%"${rest#??}"} rest=${rest#??}
        octal=$octal$(printf '\\%03o' "0x$pair")
    done
}

# The block over data block $1 becomes right, in /leaf, after those above it.
climb() {
    [ "$proved" != $(($1 / digests)) ] || return 0
    proved='' level=$levels wanted=$ROOT_HASH span=$top # blocks of data under one of this level
    while [ $level -gt 0 ]; do
        eval "at=\$((start_$level + $1 / span))"
        right "$at" "$wanted" || return 1
        cp /own /leaf
        level=$((level - 1)) span=$((span / digests))
        wanted=$(named $(($1 / span % digests)))
    done
    proved=$(($1 / digests))
}

# All data blocks of the windows that start with blocks $@, and what of the tree is above them.
mend_by_hash() {
    for first; do
        measure_window "$first"
        end=$((first + count)) block=$first
        while [ "$block" -lt $end ] && [ -z "$lost" ]; do
            if climb "$block"; then
                [ "$levels" = 0 ] || wanted=$(named $((block % digests)))
                right "$block" "$wanted" || :
            fi
            block=$((block + 1))
        done
    done
}

# In the place of repair.sh's: the network is the last resort. Sets $bad to what is still bad then.
mend_otherwise() {
    before=$mended lost='' wrong=0 proved='' wanted=$ROOT_HASH RETURN=$(printf '\r')
    measure_tree
    if open_network; then mend_by_hash $bad; else lost='no interface gets an address'; fi
    close_network
    [ -z "$lost" ] || echo "erofs-edge: nothing to repair slot $slot with from $REPAIR_HOST: $lost"
    [ $mended = "$before" ] ||
        echo "erofs-edge: $((mended - before)) blocks of slot $slot were repaired from $REPAIR_HOST"
    map mine "$device" "$device" $options
    bad=$(bad_windows mine)
    rm -f /answer /leaf
}
