# shellcheck shell=bash disable=SC2034
# What the launchers share; they source it. Each of them reads its options up to `--`,
# and delivers the words after it, unchanged, to every host.

dry_run=
cache=
# Of compiled programs, where the command runs on this machine or on ones like it.
home_cache=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/polyview}

# The comment at the head of the launcher.
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; }

fail() {
    echo "error: $1; see bash $0 --help" >&2
    exit 2
}

# value OPTION WORD...: the word that stands after an option.
value() {
    if (($# < 2)) || [[ $2 == -- ]]; then fail "$1 needs a value"; fi
    printf '%s\n' "$2"
}

# number OPTION WORD...: the same, 1 or more.
number() {
    local found
    found=$(value "$@") || exit
    [[ $found =~ ^[1-9][0-9]*$ ]] || fail "$1 is '$found', not a number of 1 or more"
    printf '%s\n' "$found"
}

# The words as one line, which any POSIX shell reads as the same words.
quoted() {
    local word out=()
    for word; do
        if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
            out+=("$word")
        else
            out+=("'${word//\'/\'\\\'\'}'")
        fi
    done
    echo "${out[*]}"
}

# Run a command of this host, or with --dry-run print it.
run() {
    if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# lost STATUS: whether a process was killed (137), or lost another of its run and was
# aborted by JAX (134). Says what to do, below the page of frames that JAX prints.
lost() {
    [[ $1 == 134 || $1 == 137 ]] || return 1
    echo "error: a process of this run died (status $1); the same command goes on from" \
        "its last checkpoint" >&2
}
