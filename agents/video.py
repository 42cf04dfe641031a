"""Film a policy: episodes of a run's world as an animated GIF.

    python -m agents.video --run runs/semlang --output film.gif

Acts as in the run's evaluation, from seeds of its own; a frame is a step, and the last
frame of an episode stays for a while.
"""

from pathlib import Path

from polyview import cli, errors
from polyview.errors import InputError, nearest

_MILLISECONDS = 120  # each frame is shown for
_STILL = 6  # frames that the end of an episode stays
_SEEDS = 2**21  # beyond those of evaluations, below those of demonstrations


def main(arguments: list[str] | None = None) -> None:
    """Film what the command line asks for; see `--help`."""
    parser = cli.Parser(
        prog="python -m agents.video", description=cli.first_line(__doc__)
    )
    add = parser.add_argument
    add("--run", metavar="DIR", required=True, type=Path)
    add("--output", type=Path, default=Path("film.gif"), help="(film.gif)")
    add("--world", help="one of the run's worlds (the first)")
    add("--episodes", type=int, default=5, help="how many (5)")
    add("--seed", type=int, default=0, help="decides which episodes (0)")
    cli.add_checkpoint(parser)
    flags = parser.parse_args(arguments)
    if not 1 <= flags.episodes <= 1000:
        raise InputError(f"--episodes is {flags.episodes}; give 1 to 1000")
    if not 0 <= flags.seed < 2**20:
        raise InputError(f"--seed is {flags.seed}; give 0 to {2**20 - 1}")
    if flags.output.suffix.lower() != ".gif":
        raise InputError(f"--output {flags.output} must end in .gif")
    cli.check_output(flags.output)
    # JAX is imported late, so that usage errors do not wait for it.
    from agents.environments.worlds import made_of
    from agents.playing import Lane, play
    from polyview import devices
    from polyview.config.spec import build
    from polyview.config.trust import allow_list
    from polyview.rl import animation
    from polyview.runs.load import evaluated_model, load, model_at

    whole = devices.replicated(devices.make_mesh())
    trust = tuple(flags.trust)
    loaded = load(flags.run, flags.step, whole, trust, flags.weights)
    config = loaded.config
    played = [
        spec for spec in (config.get("evaluations") or {}).values() if "worlds" in spec
    ]
    if not played:
        raise InputError(f"{flags.run} has no evaluation that plays in worlds")
    known: list[str] = []
    for spec in played:
        acting = build(spec, allow_list(trust), where="evaluations")
        views = acting.views
        shown = acting.pixels if "image" in views.observations else 0
        made = {own.name: own for own in (made_of(w, shown) for w in acting.worlds)}
        name = flags.world or next(iter(made))
        if name in made:
            break
        known += made
    else:
        raise InputError(f"--world {flags.world}{nearest(flags.world, known)}")
    seeds = range(_SEEDS + flags.seed, _SEEDS + flags.seed + flags.episodes)
    lane = Lane(made[name], iter(seeds), acting.limit)
    lane.world.reset(seeds[0])
    frames = [lane.world.render()]

    def last() -> None:  # after it, `render` draws the next episode
        frames.extend([lane.world.render()] * _STILL)

    lane.world.on_end = last
    model = evaluated_model(loaded, whole)
    if acting.policy:
        model = model_at(model, acting.policy)
    for _ in play(model, [lane], views):
        if lane.ended:
            lane.over()
        if lane.playing:
            frames.append(lane.world.render())
    animation.write(flags.output, frames, _MILLISECONDS)
    won = sum(success for _, success, _ in lane.played)
    print(
        f"{flags.output}: {name}, {won} of {flags.episodes} episodes with success, "
        f"{len(frames)} frames"
    )


if __name__ == "__main__":
    errors.run(main)
