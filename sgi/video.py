"""Film a fine-tuned agent: one game of a checkpoint as an animated GIF, in colour.

    python -m sgi.video --run runs/b --output game.gif

Plays as in evaluation: without noise, a random action with probability 0.001, to the
end of the game or of `--steps`. A step is four console frames, a 15th of a second. GIF
times are in hundredths of a second, so the film runs at 14.3 steps a second.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from polyview import cli, errors
from polyview.errors import InputError
from polyview.rl import animation
from sgi.atari import NOOPS, Game
from sgi.playing import EpsilonGreedy, Policy, play
from sgi.scores import PROTOCOL

MILLISECONDS = 70  # each picture is shown for


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and film a game; see `--help`."""
    parser = cli.Parser(
        prog="python -m sgi.video",
        description="Film a fine-tuned agent: one game of a checkpoint as an animated "
        "GIF, in colour.",
    )
    add = parser.add_argument
    add("--run", metavar="DIR", required=True, type=Path)
    add("--output", type=Path, default=Path("game.gif"), help="default: game.gif")
    add("--seed", type=int, default=0, help="which agent of the run (default: 0)")
    add("--at", type=int, metavar="STEP", help="a checkpoint (default: the newest)")
    add("--game_seed", type=int, default=0, help="seed of the game (default: 0)")
    add("--steps", type=int, default=900, help="most steps (default: 900, a minute)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        raise InputError(f"--steps is {options.steps}; give 1 or more")
    if options.game_seed < 0:
        raise InputError(f"--game_seed is {options.game_seed}; give 0 or more")
    if options.output.suffix.lower() != ".gif":
        raise InputError(f"--output {options.output} must end in .gif")
    cli.check_output(options.output)

    # This imports JAX, so a wrong command line is reported before.
    from sgi.load import greedy, load

    model = load(options.run, options.seed, options.at)
    if "game" not in model.config:
        raise InputError(f"{options.run} is not a run of sgi.finetune: it has no game")
    game = Game(model.config.game)
    policy = EpsilonGreedy(greedy(model), PROTOCOL["epsilon"], len(game.actions))
    screens, score, over = film(game, policy, options.steps, options.game_seed)
    write(options.output, screens)
    print(
        f"{options.output}: {game.name}, {len(screens):,} steps of the agent of step "
        f"{model.step:,}, score {score:g}" + ("" if over else " so far")
    )


def film(
    game: Game, policy: Policy, steps: int, seed: int
) -> tuple[list[np.ndarray], float, bool]:
    """Play up to `steps` steps of one game; return screens, score, whether it ended."""
    screens, score = [], 0.0
    for played in play(game, policy, steps, np.random.default_rng(seed), NOOPS):
        screens.append(game.screen())
        score += played.reward
        if played.terminal:
            return screens, score, True
    return screens, score, False


def write(path: Path, screens: Iterable[np.ndarray]) -> None:
    """Write screens uint8[h, w, 3], of at most 256 colours, as a looping GIF."""
    animation.write(path, screens, MILLISECONDS)


if __name__ == "__main__":
    errors.run(main)
