#!/usr/bin/env bash
# Demo of zero-shot learning: unseen Han characters told by their parts.
# Usage: launch/demo_zero_shot.sh [PYTHON] [RUNS]     (run from the project root)
set -euo pipefail
python=${1:-python}
runs=${2:-runs/demo_zero_shot}

echo "== Han: characters of two parts, each drawn by eight fonts"
"$python" -m polyview.prepare han
for method in cmdim supervised; do
    echo; echo "== $method"
    "$python" -m polyview.main --workdir "$runs/$method" \
        --config "configs/zero_shot_han.py:method=$method,steps=1000"
done
echo; echo "== Unseen characters, beside an untrained encoder, pixels, HOG, patch words"
"$python" -m polyview.evaluate --run "$runs/cmdim"
"$python" -m polyview.evaluate --run "$runs/supervised" --references
echo
"$python" -m polyview.report --run "$runs/cmdim" "$runs/supervised" \
    --output "$runs/report.html"
