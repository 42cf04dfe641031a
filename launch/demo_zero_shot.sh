#!/usr/bin/env bash
# Demo of zero-shot learning: unseen classes told by their parts.
# Usage: launch/demo_zero_shot.sh [PYTHON] [RUNS]     (run from the project root)
set -euo pipefail
python=${1:-python}
runs=${2:-runs/demo_zero_shot}

for method in cmdim dim; do
    echo "== $method: images of two coloured shapes, whose pairs are the classes"
    "$python" -m polyview.main --workdir "$runs/$method" \
        --config "configs/zero_shot_parts.py:method=$method"
    echo
done
echo "== Unseen pairs, beside an untrained encoder, pixels, HOG, patch words"
"$python" -m polyview.evaluate --run "$runs/cmdim" --references
"$python" -m polyview.evaluate --run "$runs/dim"
echo
"$python" -m polyview.report --run "$runs/cmdim" "$runs/dim" \
    --output "$runs/report.html"
