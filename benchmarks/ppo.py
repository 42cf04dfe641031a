"""PPO beside CleanRL and purejaxrl on the same cores: steps a second, and returns.

    python -m benchmarks.ppo speed --cleanrl PPO.py --cleanrl_python PYTHON \\
        --envpool_python PYTHON --purejaxrl FOLDER --purejaxrl_python PYTHON
    python -m benchmarks.ppo learning --cleanrl PPO.py --cleanrl_python PYTHON
    python -m benchmarks.ppo speed --smoke    # a few steps, ours alone

PPO.py is `cleanrl/ppo.py` of github.com/vwxyzjn/cleanrl; its Python has torch,
gymnasium 0.29.1, tyro and tensorboard, and the one for envpool also envpool 1.2.5 (and
any gymnasium). FOLDER is `purejaxrl` of github.com/luchris429/purejaxrl; its Python has
JAX, flax, distrax and gymnax 0.0.9. A peer that is not named is left out.

All take turns, each run in a process of its own. None counts its compilation: ours is
timed from the first log after step 10 to the last (a log each 10 updates with rows on
the host, 40 on the device), CleanRL from its first line with "SPS" to the last, as they
arrive; purejaxrl, which has no log, by a call of its compiled program (its start
included). CleanRL runs as it is, and also told to use one thread (OMP_NUM_THREADS=1);
ratios are to the better of the two, a pair at a time.

`speed` has three tables, all with a rollout of 128, 4 passes and 4 minibatches.
cartpole: 8 rows of gymnasium on the host, and 8 on the device. device: 8 and 64 rows
on the device; purejaxrl has two towers of 64 + 64, ours shares the first two layers.
envpool: 64 rows of a level of BabyAI; CleanRL's script with what `adapted` changes.

`learning` trains CartPole for 500,000 steps, with the numbers of CleanRL but for what
configs/ppo_cartpole.py says; a score is the mean return of the episodes that end in the
last 50,000.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import spread

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CONFIG = "configs/ppo_cartpole.py"
ROLLOUT, ROWS, MANY = 128, 8, 64
LEVEL, ID = "babyai:GoToObj", "BabyAI-GoToObj-v0"
TABLES = ("cartpole", "device", "envpool")
# Updates of a run of each form, some seconds of play.
UPDATES = {
    "ours, host": 60,
    "ours, device": 400,
    "cleanrl": 6,
    "cleanrl, one thread": 40,
    "purejaxrl": 400,
    "ours, 64 rows": 120,
    "purejaxrl, 64 rows": 120,
    "ours, envpool": 20,
    "cleanrl, envpool": 3,
    "cleanrl, envpool, one thread": 8,
}
ON_DEVICE = ("ours, device", "ours, 64 rows")
LATE = 50_000  # steps whose episodes a score counts
WIDTH, HIDDEN = 64, 128  # of the networks; of the layer that reads a grid

# What reads purejaxrl's `ppo.py` and times it. That imports brax and navix for other
# environments than this one.
PEER = """
import json, sys, time, types
for name in ("brax.envs.wrappers.training", "brax.envs", "brax", "navix"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["brax"].envs = sys.modules["brax.envs"]
training = sys.modules["brax.envs.wrappers.training"]
training.EpisodeWrapper = training.AutoResetWrapper = None
sys.path.insert(0, sys.argv[1])
import jax, ppo
config = json.loads(sys.argv[2])
run = jax.jit(ppo.make_train(config)).lower(jax.random.key(0)).compile()
start = time.perf_counter()
jax.block_until_ready(run(jax.random.key(0)))
seconds = time.perf_counter() - start
print(json.dumps({"rate": config["TOTAL_TIMESTEPS"] / seconds}))
"""
VERSIONS = """
import importlib.metadata as m
names = ("torch", "gymnasium", "envpool", "jax", "flax", "gymnax", "distrax", "numpy")
found = {}
for d in m.distributions():  # the first on the path is the one that is imported
    found.setdefault(d.metadata["Name"], d.version)
print(", ".join(f"{name} {found[name]}" for name in names if name in found))
"""

# The parts of CleanRL's script that another environment needs, and what they become:
# a class that has the interface of gymnasium's rows, and our network of a grid.
AGENT = f"""class Agent(nn.Module):
    def __init__(self, envs):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 16, 8))
        self.up = nn.Linear(49 * 8, {HIDDEN})
        self.down = nn.Linear({HIDDEN}, {WIDTH})
        self.trunk = layer_init(nn.Linear({WIDTH}, {WIDTH}))
        actions = envs.single_action_space.n
        self.head = layer_init(nn.Linear({WIDTH}, actions), std=0.01)
        self.critic = nn.Sequential(
            nn.Linear({WIDTH}, {WIDTH}), nn.SiLU(), nn.Linear({WIDTH}, 1)
        )

    def see(self, x):
        x = x.long()
        cells = sum(self.table[c][x[..., c]] for c in range(3))
        y = self.down(nn.functional.silu(self.up(cells.flatten(1))))
        y = y / torch.sqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return torch.tanh(self.trunk(y))

    def get_value(self, x):
        return self.critic(self.see(x))

    def get_action_and_value(self, x, action=None):
        hidden = self.see(x)
        probs = Categorical(logits=self.head(hidden))
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action), probs.entropy(), self.critic(hidden)


class Level:
    def __init__(self, count, seed):
        import envpool

        self.pool = envpool.make_gymnasium(
            "{ID}",
            num_envs=count,
            num_threads=1,
            env_seed=[seed + i for i in range(count)],
        )
        self.single_observation_space = gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)
        self.single_action_space = gym.spaces.Discrete(7)

    def reset(self, seed):
        shown, infos = self.pool.reset()
        return shown["image"], infos

    def step(self, actions):
        shown, *rest = self.pool.step(actions.astype(np.int32))
        return shown["image"], *rest

    def close(self):
        pass


if __name__"""
CHANGES = [
    (r"class Agent\(nn\.Module\):.*?\n\n\nif __name__", AGENT),
    (
        r"envs = gym\.vector\.SyncVectorEnv\(.*?\n    \)\n",
        "envs = Level(args.num_envs, args.seed)\n",
    ),
]


def main() -> None:
    """Measure one of the two, print it, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("study", choices=["speed", "learning"])
    add("--smoke", action="store_true", help="ours alone, tiny, writes nothing")
    add("--cleanrl", type=Path, help="CleanRL's ppo.py")
    add("--cleanrl_python", help="a Python for it")
    add("--envpool_python", help="a Python for it that has envpool too")
    add("--purejaxrl", type=Path, help="the folder with purejaxrl's ppo.py")
    add("--purejaxrl_python", help="a Python for it")
    add("--tables", nargs="+", choices=TABLES, default=TABLES)
    add("--turns", type=int, default=3, help="of each (default: 3)")
    add("--seeds", type=int, default=3, help="of `learning` (default: 3)")
    add("--output", type=Path, help="JSON (default: in results/)")
    add("--form", help=argparse.SUPPRESS)
    add("--config", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.form:
        print(json.dumps(ours(flags.form, json.loads(flags.config))))
        return
    measure = {"speed": speed, "learning": learning}[flags.study]
    name = {"speed": "ppo.json", "learning": "ppo_learning.json"}[flags.study]
    output = flags.output or RESULTS / name
    found = measure(flags, output)
    if not flags.smoke:
        write(output, found, flags)


def write(output: Path, found: dict, flags: argparse.Namespace) -> None:
    """Write figures with the machine, the command and the versions."""
    from polyview import files, hosts

    peers = {}
    for name in ("cleanrl_python", "envpool_python", "purejaxrl_python"):
        if python := getattr(flags, name):
            done = [python, "-c", VERSIONS]
            peers[name] = subprocess.check_output(done, text=True).strip()
    words = [name for name in PLACES if getattr(flags, name)]
    command = f"python -m benchmarks.ppo {flags.study}"
    command += "".join(f" --{name} {PLACES[name]}" for name in words)
    command += f" --seeds {flags.seeds}" * (flags.study == "learning")
    command += f" --turns {flags.turns}" * (flags.study == "speed")
    record = {"command": command, "machine": hosts.machine(), "peers": peers, **found}
    files.write_whole(output, (json.dumps(record, indent=1) + "\n").encode())


PLACES = {
    "cleanrl": "PPO.py",
    "cleanrl_python": "PYTHON",
    "envpool_python": "PYTHON",
    "purejaxrl": "FOLDER",
    "purejaxrl_python": "PYTHON",
}


def speed(flags: argparse.Namespace, output: Path) -> dict:
    """Return steps a second of all forms, and ratios, by table."""
    tables = {}
    for table in flags.tables:
        forms = forms_of(table, flags)
        rates: dict[str, list[float]] = {form: [] for form in forms}
        for _, form in itertools.product(range(flags.turns), forms):
            rates[form].append(rate_of(form, flags))
            print(f"{table:9} {form:30} {rates[form][-1]:10,.0f} steps/s", flush=True)
        tables[table] = {"steps_per_second": {f: told(r) for f, r in rates.items()}}
        tables[table]["ratios"] = ratios(rates)
        for name, ratio in tables[table]["ratios"].items():
            low, high = ratio["range"]
            print(f"{name}: {ratio['median']:.2f}x ({low:.2f} to {high:.2f})")
        if not flags.smoke:
            write(output, {"tables": tables}, flags)
    return {"tables": tables}


def forms_of(table: str, flags: argparse.Namespace) -> list[str]:
    """Return the forms of a table, ours and the peers by turns."""
    cleanrl = bool(flags.cleanrl and flags.cleanrl_python) and not flags.smoke
    pool = bool(flags.cleanrl and flags.envpool_python) and not flags.smoke
    pure = bool(flags.purejaxrl and flags.purejaxrl_python) and not flags.smoke
    if table == "cartpole":
        peers = ["cleanrl", "cleanrl, one thread"] * cleanrl
        return ["ours, host", *peers[:1], "ours, device", *peers[1:]]
    if table == "device":
        sizes = ["ours, device", *["purejaxrl"] * pure]
        return [*sizes, "ours, 64 rows", *["purejaxrl, 64 rows"] * pure]
    peers = ["cleanrl, envpool", "cleanrl, envpool, one thread"] * pool
    return ["ours, envpool", *peers]


def ratios(rates: dict[str, list[float]]) -> dict[str, dict]:
    """Return ours to the best of the peers with as many rows, in each turn."""
    found = {}
    for form in [form for form in rates if form.startswith("ours")]:
        same = "64 rows" if "64 rows" in form else ""
        peers = [
            peer
            for peer in rates
            if not peer.startswith("ours") and ("64 rows" in peer) == bool(same)
        ]
        if not peers:
            continue
        best = max(peers, key=lambda peer: statistics.median(rates[peer]))
        pairs = zip(rates[form], rates[best], strict=True)
        found[f"{form} / {best}"] = told([own / other for own, other in pairs])
    return found


def told(values: list[float]) -> dict:
    """Return the median, the range and the values."""
    return {
        "median": statistics.median(values),
        "range": [min(values), max(values)],
        "values": values,
    }


def rate_of(form: str, flags: argparse.Namespace) -> float:
    """Return the steps a second of one run of a form."""
    updates = 30 if flags.smoke else UPDATES[form]
    rows = MANY if "64 rows" in form or "envpool" in form else ROWS
    if form.startswith("ours"):
        asked = {"rows": rows, "updates": updates}
        return apart(form, asked)["rate"]
    if form.startswith("purejaxrl"):
        config = {
            "LR": 2.5e-4,
            "NUM_ENVS": rows,
            "NUM_STEPS": ROLLOUT,
            "TOTAL_TIMESTEPS": rows * ROLLOUT * updates,
            "UPDATE_EPOCHS": 4,
            "NUM_MINIBATCHES": 4,
            "GAMMA": 0.99,
            "GAE_LAMBDA": 0.95,
            "CLIP_EPS": 0.2,
            "ENT_COEF": 0.01,
            "VF_COEF": 0.5,
            "MAX_GRAD_NORM": 0.5,
            "ACTIVATION": "tanh",
            "ENV_NAME": "CartPole-v1",
            "ANNEAL_LR": True,
        }
        words = [flags.purejaxrl_python, "-c", PEER, str(flags.purejaxrl.resolve())]
        done = subprocess.run(
            [*words, json.dumps(config)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"purejaxrl failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])["rate"]
    total = rows * ROLLOUT * updates
    lines = list(cleanrl(form, flags, total, rows, seed=1))
    times = [now for now, line in lines if line.startswith("SPS:")]
    return rows * ROLLOUT * (len(times) - 1) / (times[-1] - times[0])


def apart(form: str, asked: dict) -> dict:
    """Return what `ours` measures in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.ppo", "speed", "--form", form]
    words += ["--config", json.dumps(asked)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def cleanrl(
    form: str, flags: argparse.Namespace, total: int, rows: int, seed: int
) -> Iterator[tuple[float, str]]:
    """Run CleanRL's script; generate its lines, with the time when each came."""
    pool = "envpool" in form
    python = flags.envpool_python if pool else flags.cleanrl_python
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONPATH", None)
    if "one thread" in form:
        environment["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "ppo.py")
        text = flags.cleanrl.read_text()
        script.write_text(adapted(text) if pool else text)
        words = [python, str(script), "--num-envs", str(rows), "--seed", str(seed)]
        words += ["--total-timesteps", str(total), "--no-cuda"]
        with subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=Path(folder, "errors").open("w"),
            text=True,
            cwd=folder,
            env=environment,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield time.perf_counter(), line
        if process.returncode:
            raise SystemExit(f"CleanRL failed:\n{Path(folder, 'errors').read_text()}")


def adapted(text: str) -> str:
    """Return CleanRL's script with another environment, and our network."""
    for pattern, replacement in CHANGES:
        parts = re.split(pattern, text, flags=re.DOTALL)
        text, count = replacement.join(parts), len(parts) - 1
        if count != 1:
            raise SystemExit(f"--cleanrl: another version of ppo.py, without {pattern}")
    return text


def ours(form: str, asked: dict) -> dict:
    """Train; return steps a second, and the score of `learning`."""
    from polyview.config.file import load_config
    from polyview.rl.learner import PolicyLearner
    from polyview.runs import metrics
    from polyview.training.train import train

    rows, updates = asked["rows"], asked["updates"]
    host = form == "ours, host"
    config = load_config(
        f"{CONFIG}:rows={rows},host={host},seed={asked.get('seed', 0)}", {}
    )
    config.steps = updates
    config.log_every = asked.get("log_every", 40 if form in ON_DEVICE else 10)
    if form == "ours, envpool":
        config.environment = {
            "partial": "agents.environments.envpool:EnvPool",
            "name": LEVEL,
            "most": updates * ROLLOUT,
        }
        config.model.encoders = {
            "grid": {
                "partial": "agents.bridges:Grid",
                "shape": [7, 7, 3],
                "codes": 16,
                "features": 8,
                "whole": True,
                "hidden": HIDDEN,
            }
        }
        config.model.actions = 7
    with tempfile.TemporaryDirectory() as folder:
        train(PolicyLearner(config), Path(folder, "run"))
        lines = metrics.read(Path(folder, "run", "metrics.jsonl"))
    first = next(line for line in lines if line["step"] >= 10)
    steps = lines[-1]["step"] - first["step"]
    seconds = lines[-1]["time"]["seconds"] - first["time"]["seconds"]
    found: dict[str, Any] = {"rate": steps * rows * ROLLOUT / seconds}
    if config.log_every == 1:
        found["score"] = late_score(lines)
    return found


def late_score(lines: list[dict]) -> float:
    """Return the mean return of episodes in the last `LATE` steps.

    A log has sums of which each step keeps .9: what a step adds is the difference.
    """
    ends = np.array([line["environment_steps"] for line in lines])
    episodes = np.array([line["episodes"] for line in lines])
    returns = episodes * np.array([line["score"] for line in lines])
    late = ends[1:] > ends[-1] - LATE
    added = [(x[1:] - 0.9 * x[:-1])[late].sum() for x in (episodes, returns)]
    return float(added[1] / added[0])


def learning(flags: argparse.Namespace, output: Path) -> dict:
    """Train what is missing; return the scores of all forms, a value a seed."""
    forms = ["ours, device", "ours, host"]
    if flags.cleanrl and flags.cleanrl_python and not flags.smoke:
        forms.append("cleanrl, one thread")
    scores: dict[str, list[float]] = {form: [] for form in forms}
    if output.exists() and not flags.smoke:
        known = json.loads(output.read_text())["scores"]
        scores |= {form: known[form]["values"] for form in known}
    updates = 60 if flags.smoke else 500_000 // (ROWS * ROLLOUT)
    for seed, form in itertools.product(range(flags.seeds), forms):
        if len(scores[form]) > seed:
            continue
        if form.startswith("ours"):
            asked = {"rows": ROWS, "updates": updates, "log_every": 1, "seed": seed}
            score = apart(form, asked)["score"]
        else:
            total = ROWS * ROLLOUT * updates
            score = cleanrl_score(form, flags, total, seed)
        scores[form].append(score)
        print(f"{form:20} seed {seed}: {score:.1f}", flush=True)
        found = {"scores": {f: spread(v) for f, v in scores.items() if v}}
        if not flags.smoke:
            write(output, found, flags)
    return {"scores": {f: spread(v) for f, v in scores.items() if v}}


def cleanrl_score(form: str, flags: argparse.Namespace, total: int, seed: int) -> float:
    """Return the mean return of CleanRL's episodes in the last `LATE` steps."""
    pattern = re.compile(r"global_step=(\d+), episodic_return=\[?([-.\deE]+)")
    found = []
    for _, line in cleanrl(form, flags, total, ROWS, seed):
        match = pattern.match(line)
        if match and int(match[1]) > total - LATE:
            found.append(float(match[2]))
    return statistics.fmean(found)


if __name__ == "__main__":
    main()
