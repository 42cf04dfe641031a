#!/usr/bin/env bash
# Demo of rewards from preferences: a judge, a reward by it, a policy by that reward.
# Usage: launch/demo_rewards.sh [PYTHON] [RUNS]     (run from the project root)
set -euo pipefail
python=${1:-python}
runs=${2:-runs/demo_rewards}

# The judge knows the true values, and errs as it is told. Of the language model only
# the tokenizer is used: policy and reward read instructions by it.
echo "== Pairs of moments in BabyAI, and a judge: biased, and wrong about one in ten"
"$python" -m agents.prepare llm
"$python" -m agents.prepare --pairs babyai:GoToObj --name demo_rewards \
    --n 1000 --validation 300 --test 300 --across 0.5 --each 4
"$python" -m agents.judge --pairs demo_rewards --judge oracle --flip 0.1 --bias 2
echo; echo "== A reward from its preferences"
"$python" -m polyview.main --workdir "$runs/reward" \
    --config configs/rewards_distil.py:data=demo_rewards,ties=0.0,steps=500
echo; echo "== Policies: by success alone, and by the reward as well"
fast=$("$python" -c 'from importlib import util; print(bool(util.find_spec("envpool")))')
about=thousand=120,fast=$fast
"$python" -m agents.train --workdir "$runs/sparse" \
    --config "configs/agents_babyai.py:level=GoToObj,$about"
"$python" -m agents.train --workdir "$runs/shaped" \
    --config "configs/rewards_ppo.py:reward=$runs/reward,$about"
for policy in sparse shaped; do
    "$python" -m polyview.evaluate --run "$runs/$policy"
done
echo; echo "== judge %, asked once %: labels that are right; Spearman, truth %: of the reward"
"$python" -m polyview.report --run "$runs/reward" "$runs/sparse" "$runs/shaped" \
    --output "$runs/report.html"
