"""Updates by the official code of SGI: their seconds, and what they learn.

    PYTHON benchmarks/sgi_official.py CHECKOUT update S
    PYTHON benchmarks/sgi_official.py CHECKOUT learn FOLDER STEPS SEED [TERM ...]

PYTHON has torch, kornia and rlpyt; CHECKOUT is a clone of mila-iqia/SGI. Calls the
loss of its `SPRCategoricalDQN`, gradients, clipping and Adam, in its order, with its
settings for fine-tuning (`update`) or pre-training (`pretrain`). Packages that only
play games or log are not needed. Prints JSON.

`update` and `pretrain`, for `benchmarks.sgi --official`, measure seconds on noise.
`learn`, for `benchmarks.sgi_peer`, pre-trains the network of size S on
windows that the official loader reads from FOLDER/game, with the named terms of the
loss, and prints the terms of each 25 steps.
"""

import importlib
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from unittest import mock

TERMS = ("spr", "goal", "inverse")
ACTIONS, JUMPS, N_STEP, GOAL_WINDOW = 18, 5, 10, 50
# Of its configuration: scripts/config.yaml and scripts/experiments/sgim_pretrain.sh.
LEARNING_RATE, EPSILON, CLIP = 1e-4, 1.5e-4, 10.0
MODELS = {
    "S": {"encoder": "nature"},
    "M": {"encoder": "resnet", "blocks_per_group": 3, "expand_ratio": 2},
}
NETWORK = {
    "image_shape": (4, 1, 84, 84),
    "n_atoms": 51,
    "dueling": True,
    "jumps": JUMPS,
    "spr": 1,
    "augmentation": ["shift", "intensity"],
    "target_augmentation": ["shift", "intensity"],
    "eval_augmentation": ["none"],
    "dynamics_blocks": 0,
    "norm_type": "bn",
    "noisy_nets": 1,
    "aug_prob": 1,
    "projection": "q_l1",
    "imagesize": 84,
    "dqn_hidden_size": 512,
    "momentum_tau": 0.01,
    "renormalize": "max",
    "q_l1_type": ["value", "advantage"],
    "dropout": 0,
    "predictor": "linear",
    "bc": 0,
    "bc_from_values": True,
    "goal_n_step": 1,
    "residual_tm": 0,
    "goal_conditioning_type": ["goal_only", "film"],
}


def main() -> None:
    """Measure the seconds of some updates, or print what is learnt."""
    checkout, kind, *rest = sys.argv[1:]
    code = load(Path(checkout))
    if kind == "learn":
        folder, steps, seed, *terms = rest
        print(json.dumps(learn(code, Path(folder), int(steps), int(seed), terms)))
        return
    (size,) = rest
    # The losses of C51, self-prediction, goals and actions.
    weights = (1, 5, 0, 0) if kind == "update" else (0, 1, 1, 1)
    batch = 32 if kind == "update" else 256
    samples = noise(code.torch, batch, kind == "update")
    take = updates(code, kind, size, batch, weights, ACTIONS, lambda: samples)
    take()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        take()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": min(seconds), "torch": code.torch.__version__}))


def load(checkout: Path) -> types.SimpleNamespace:
    """Import the official modules, without what registers or plays games."""
    package = types.ModuleType("src")
    package.__path__ = [str(checkout / "src")]
    sys.modules["src"] = package
    for name in ("atari_py", "cv2", "gym", "gym.utils", "wandb"):
        sys.modules.setdefault(name, mock.MagicMock())
    modules = {
        name: importlib.import_module(module)
        for name, module in {
            "torch": "torch",
            "models": "src.models",
            "algos": "src.algos",
            "agent": "src.agent",
        }.items()
    }
    return types.SimpleNamespace(**modules)


def learn(
    code: types.SimpleNamespace, folder: Path, steps: int, seed: int, terms: list[str]
) -> dict:
    """Pre-train; return the mean of each term over each 25 steps: [[step, value]]."""
    torch = code.torch
    torch.manual_seed(seed)
    loading = importlib.import_module("src.offline_dataset")
    with mock.patch("builtins.print"):
        loader, *_ = loading.get_offline_dataloaders(
            data_path=folder,
            tmp_data_path=folder,
            games=["game"],
            checkpoints=[1],
            frames=4,
            k_step=GOAL_WINDOW + N_STEP,
            n_step_return=N_STEP,
            discount=0.99,
            samples=1_000_000,
            dataset_on_gpu=False,
            dataset_on_disk=False,
            batch_size=32,
            full_action_set=False,
            num_workers=0,
            pin_memory=False,
            prefetch_factor=None,
        )
    actions = int(loader.dataset.games[0].action.max()) + 1

    def forever():
        while True:
            yield from loader

    weights = (0, *(int(term in terms) for term in TERMS))
    windows = forever()
    take = updates(code, "pretrain", "S", 32, weights, actions, lambda: next(windows))
    found: dict[str, list] = {term: [] for term in TERMS}
    logged: list[tuple] = []
    for step in range(1, steps + 1):
        logged.append(take()[1:])
        if step % 25 == 0:
            for term, values in zip(TERMS, zip(*logged, strict=True), strict=True):
                found[term].append([step, sum(values) / len(values)])
            logged = []
    return {"curve": found, "torch": torch.__version__}


def updates(
    code: types.SimpleNamespace,
    kind: str,
    size: str,
    batch: int,
    weights: tuple[int, ...],
    actions: int,
    sample: Callable,
):
    """Return a function that takes a step of the optimiser, and returns the losses."""
    torch, fine_tuning = code.torch, kind == "update"
    make = lambda: code.models.SPRCatDqnModel(  # noqa: E731
        **NETWORK,
        **MODELS[size],
        output_size=actions,
        rl=fine_tuning,
        goal_rl=not fine_tuning,
        inverse_model=not fine_tuning,
        noisy_nets_std=0.5 if fine_tuning else 0.0,
    )
    with mock.patch("builtins.print"):
        model, target = make(), make()
    algorithm = code.algos.SPRCategoricalDQN.__new__(code.algos.SPRCategoricalDQN)
    vars(algorithm).update(
        agent=agent_of(code, model, target),
        _batch_size=batch,
        n_step_return=N_STEP,
        discount=0.99,
        double_dqn=True,
        V_min=-10,
        V_max=10,
        jumps=JUMPS,
        goal_window=GOAL_WINDOW,
        goal_n_step=1,
        goal_weight=0 if fine_tuning else 1,
        rl_weight=1 if fine_tuning else 0,
        bc_weight=0,
        goal_permute_prob=0.2,
        goal_noise_weight=0.5,
        goal_reward_scale=10.0,
        goal_all_to_all=False,
        conv_goal=True,
        goal_distance=code.algos.exp_distance,
        prioritized_replay=fine_tuning,
        model=model,
    )
    optimizer = torch.optim.Adam(
        [p for k, p in model.named_parameters() if not k.startswith("target")],
        lr=LEARNING_RATE,
        eps=EPSILON,
    )
    # The target network of fine-tuning is copied, that of pre-training an average.
    rate = 1.0 if fine_tuning else 0.01

    def take() -> list[float]:
        found = algorithm.loss(sample(), offline=not fine_tuning)
        losses = found[0], found[4], found[2], found[6]  # C51, SPR, goal, inverse
        total = sum(w * x for w, x in zip(weights, losses, strict=True) if w)
        optimizer.zero_grad()
        total.backward()
        for parameters in model.split_stem_model_params():
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        with torch.no_grad():
            new = model.state_dict()
            for name, old in target.state_dict().items():
                old.copy_(rate * new[name] + (1 - rate) * old)
        return [float(loss) for loss in losses]

    return take


def agent_of(code: types.SimpleNamespace, model, target):
    """Return the official agent of two networks, on a CPU."""
    agent = code.agent.SPRAgent.__new__(code.agent.SPRAgent)
    agent.device, agent.model, agent.target_model = "cpu", model, target
    agent.n_atoms = NETWORK["n_atoms"]
    agent.distribution = types.SimpleNamespace(to_onehot=lambda action: action)
    return agent


def noise(torch, batch: int, fine_tuning: bool):
    """Return a batch of random play in the official layout, `[time, batch, ...]`."""
    random = torch.Generator().manual_seed(0)
    times = JUMPS + 1 + N_STEP if fine_tuning else GOAL_WINDOW + N_STEP

    def frames(*shape: int):
        return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)

    done = torch.zeros(times, batch)
    return types.SimpleNamespace(
        all_observation=frames(times, batch, 4, 1, 84, 84),
        all_action=torch.randint(0, ACTIONS, (times, batch), generator=random),
        all_reward=torch.zeros(times, batch),
        return_=torch.zeros(times, batch),
        done=done,
        done_n=done,
        is_weights=torch.ones(batch),
    )


if __name__ == "__main__":
    main()
