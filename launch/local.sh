#!/usr/bin/env bash
# Run a command on this host: unchanged, or as several connected CPU processes, to try
# a distributed run without a cluster.
#
#   bash launch/local.sh [options] -- python -m polyview.main --config ... --workdir ...
#
#   --processes N   number of processes (1); several get --distributed and their number
#   --devices D     virtual CPU devices of each of several processes (1)
#   --restarts R    most restarts after the run saved and stopped, status 75 (0)
#   --port P        port where several processes connect (random)
#   --cache DIR     compilation cache ($JAX_COMPILATION_CACHE_DIR, else ~/.cache/polyview)
#   --dry-run       print the commands without running them
#
# The status is the command's; of several processes, the first that is not 0. SIGTERM is
# forwarded, and then nothing restarts. If one process fails, the others are stopped; if
# it was killed or aborted, the status is 75.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

processes=1 devices=1 restarts=0 port=$((20000 + RANDOM % 20000))
while (($#)); do
    case $1 in
        --processes) processes=$(number "$@"); shift 2 ;;
        --devices) devices=$(number "$@"); shift 2 ;;
        --restarts) restarts=$(number "$@"); shift 2 ;;
        --port) port=$(number "$@"); shift 2 ;;
        --cache) cache=$(value "$@"); shift 2 ;;
        --dry-run) dry_run=1; shift ;;
        --help) usage; exit ;;
        --) shift; break ;;
        *) fail "unknown option '$1'" ;;
    esac
done
(($#)) || fail "no command after --"
cache=${cache:-$home_cache}

# Set `words` to the command "${@:2}" for process $1.
of_process() {
    local process=$1
    shift
    words=(env "JAX_COMPILATION_CACHE_DIR=$cache")
    if ((processes > 1)); then
        words+=("JAX_PLATFORMS=cpu" "JAX_NUM_CPU_DEVICES=$devices" "$@" --distributed)
        words+=(--coordinator "127.0.0.1:$port")
        words+=(--processes "$processes" --process "$process")
    else
        words+=("$@")
    fi
}

if [[ -n $dry_run ]]; then
    for ((process = 0; process < processes; process++)); do
        of_process "$process" "$@"
        run "${words[@]}"
    done
    exit
fi

children=() told=
trap 'told=1; kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT

# Start all processes, wait for all, and return the status of the first that failed.
attempt() {
    local process child status=0 found still ended=0
    children=()
    for ((process = 0; process < processes; process++)); do
        of_process "$process" "$@"
        "${words[@]}" &
        children+=($!)
    done
    while ((${#children[@]})); do
        still=()
        for child in "${children[@]}"; do
            if kill -0 "$child" 2>/dev/null; then
                still+=("$child")
                continue
            fi
            found=0
            wait "$child" || found=$?
            ((status)) || status=$found
        done
        children=("${still[@]}")
        ((${#children[@]})) || break
        # The others would wait a minute or more for a dead process.
        if ((status && status != 75)); then
            ((++ended))
            if ((ended == 1)); then kill -TERM "${children[@]}" 2>/dev/null || true; fi
            if ((ended == 50)); then kill -KILL "${children[@]}" 2>/dev/null || true; fi
        fi
        sleep 0.2
    done
    return "$status"
}

while :; do
    status=0
    attempt "$@" || status=$?
    if ((processes > 1)) && lost "$status"; then status=75; fi
    if ((status != 75 || restarts == 0)) || [[ -n $told ]]; then exit "$status"; fi
    ((restarts--)) || true
    echo "status 75: starting it again from its last checkpoint" >&2
done
