#!/usr/bin/env bash
# Evaluate the checkpoints that have no result yet, each in its own job.
#
#   bash launch/evaluate.sh [options] RUN... [-- LAUNCHER WORDS...]
#   bash launch/evaluate.sh runs/a runs/b -- bash launch/slurm.sh --gpus 1 --batch
#
#   --python P      the interpreter (python)
#   --option WORD   pass to polyview.evaluate: --config.evaluations.frozen.knn.k=5; repeatable
#   --newest        only the newest checkpoint of each run
#   --dry-run       print the commands without running them
#
# A result is RUN/eval/STEP-NAME.json (STEP.json for a config with one evaluation).
# Results on other data sets do not count. If jobs fail, the others still run, and the
# status is that of the first failed job.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

python=python newest='' options=() runs=()
while (($#)); do
    case $1 in
        --python) python=$(value "$@"); shift 2 ;;
        --option) word=$(value "$@"); options+=("$word"); shift 2 ;;
        --newest) newest=1; shift ;;
        --dry-run) dry_run=1; shift ;;
        --help) usage; exit ;;
        --) shift; break ;;
        -*) fail "unknown option '$1'" ;;
        *) runs+=("$1"); shift ;;
    esac
done
((${#runs[@]})) || fail "name a run"
launcher=("$@")
if (($#)); then launcher+=(--); fi

evaluated() {  # RUN STEP
    local result
    for result in "$1/eval/$2.json" "$1/eval/$2"-*.json; do
        if [[ -e $result && ${result##*/} != *-on-* ]]; then return 0; fi
    done
    return 1
}

status=0
for run in "${runs[@]}"; do
    [[ -d $run/checkpoints ]] || fail "$run has no checkpoints"
    steps=()
    while IFS= read -r step; do
        steps+=("$step")
    done < <(find "$run/checkpoints" -mindepth 1 -maxdepth 1 -type d -name '[0-9]*' \
        -not -name '*[!0-9]*' -exec basename {} \; | sort -n)
    ((${#steps[@]})) || fail "$run has no checkpoints"
    if [[ -n $newest ]]; then steps=("${steps[@]: -1}"); fi
    for step in "${steps[@]}"; do
        if evaluated "$run" "$step"; then
            echo "$run: step $step has a result already" >&2
            continue
        fi
        found=0
        run "${launcher[@]}" "$python" -m polyview.evaluate --run "$run" \
            --step "$step" "${options[@]}" || found=$?
        ((status)) || status=$found
    done
done
exit "$status"
