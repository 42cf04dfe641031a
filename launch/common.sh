# shellcheck shell=bash disable=SC2034
# Functions of the launchers, which source this file. Each launcher reads its options up
# to `--` and passes the words after it, unchanged, to every host.

dry_run=
cache=
# Cache of compiled programs for commands on this machine or on similar ones.
home_cache=${JAX_COMPILATION_CACHE_DIR-${XDG_CACHE_HOME:-$HOME/.cache}/polyview}

# Print the comment at the head of the launcher.
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; }

fail() {
    echo "error: $1; see bash $0 --help" >&2
    exit 2
}

# value OPTION WORD...: print the word after an option.
value() {
    if (($# < 2)) || [[ $2 == -- ]]; then fail "$1 needs a value"; fi
    printf '%s\n' "$2"
}

# number OPTION WORD...: the same for a whole number of at least 1.
number() {
    local found
    found=$(value "$@") || exit
    [[ $found =~ ^[1-9][0-9]*$ ]] || fail "$1 is '$found', not a whole number of 1 or more"
    printf '%s\n' "$found"
}

# Print the words as one line that any POSIX shell parses back into them.
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

# Run a command on this host, or print it with --dry-run.
run() {
    if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# lost STATUS: whether a process was killed (137), or aborted by JAX because another
# process of its run was lost (134). Prints advice below the stack frames of JAX.
lost() {
    [[ $1 == 134 || $1 == 137 ]] || return 1
    echo "error: a process of this run died (status $1); run the same command again to" \
        "resume from its last checkpoint" >&2
}
