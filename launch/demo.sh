#!/usr/bin/env bash
# Demo: poly-view learning against SimCLR at equal encoder cost, on real images.
# Usage: launch/demo.sh [PYTHON] [RUNS]     (run from the project root)
set -euo pipefail
python=${1:-python}
runs=${2:-runs/demo}

data=fashion_mnist
if ! "$python" -m polyview.prepare "$data"; then
    echo "Fashion-MNIST is not available; using the digits instead."
    data=digits
    "$python" -m polyview.prepare "$data"
fi
config=configs/polyview_$data.py
# Of the config's 1,000 steps: enough for a first comparison within minutes.
steps=--config.steps=300

echo; echo "== Poly-view: 8 views of few samples"
"$python" -m polyview.main --config "$config:views=8" "$steps" --workdir "$runs/polyview"
echo; echo "== SimCLR: 2 views of four times the samples"
"$python" -m polyview.main --config "$config:views=2,objective=nt_xent" "$steps" \
    --workdir "$runs/simclr"
echo; echo "== The same probe for both runs, an untrained encoder and raw pixels"
"$python" -m polyview.evaluate --run "$runs/simclr"
"$python" -m polyview.evaluate --run "$runs/polyview" --references
echo
"$python" -m polyview.report --run "$runs/polyview" "$runs/simclr" \
    --output "$runs/report.html"
