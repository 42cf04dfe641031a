#!/usr/bin/env bash
# Demo of language models that act: two ways to choose an action, on one BabyAI level.
# Usage: launch/demo_agents.sh [PYTHON] [RUNS]     (run from the project root)
set -euo pipefail
python=${1:-python}
runs=${2:-runs/demo_agents}

echo "== A language model of 135 M parameters, and 1,000 demonstrations"
"$python" -m agents.prepare llm
"$python" -m agents.prepare --env babyai:GoToRedBallGrey --episodes 1000
for adapter in semlang pred; do
    echo; echo "== The first four blocks learn to act by $adapter"
    about="data=babyai_gotoredballgrey,adapter=$adapter,steps=400,length=8"
    "$python" -m polyview.main --workdir "$runs/$adapter" --config.views.draws=4 \
        --config "configs/agents_policy.py:$about"
    "$python" -m polyview.evaluate --run "$runs/$adapter"
done
echo
"$python" -m agents.video --run "$runs/semlang" --output "$runs/film.gif"
"$python" -m polyview.report --run "$runs/semlang" "$runs/pred" \
    --output "$runs/report.html"
