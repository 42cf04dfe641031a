"""Ask a language model to act in a world, to foresee it, and to explain it.

python -m agents.prepare llm
python -m agents.ask --env babyai:GoToObj --what policy next inverse

policy: it is shown a caption and the goal, and says the next action, the one whose
probability gains most by them; its success is told beside that of chance and of the
expert. next: which of two captions follows a caption and an action, in both orders.
inverse: which action lies between two captions. Half of the actions of the last two are
drawn. Nothing is generated: answers are compared by their probabilities.
"""

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

from polyview import cli, errors, files
from polyview.errors import InputError

WHAT = ("policy", "next", "inverse")
_RANDOM = 0.5  # of the actions of walks that are asked about


def main(arguments: list[str] | None = None) -> None:
    """Print what was found, and write it if asked to; see `--help`."""
    flags = _parse(arguments)
    # JAX is imported late, so that usage errors do not wait for it.
    from agents.feedback import reading, texts
    from agents.llm import running

    room = texts.made(flags.env, flags.permute)
    if room.actions is None:
        raise InputError(f"{flags.env} has no actions with names")
    if flags.run is None:
        speaker = running.of_model(flags.model, flags.layers)
    else:
        if flags.layers is not None:
            raise InputError("--layers is for a prepared model; a run has its own")
        reading.check_body(flags.run)
        speaker = running.of_run(flags.run, flags.model, tuple(flags.trust))
    cli.check_jax()
    found: dict[str, Any] = {
        "env": flags.env,
        "model": flags.model,
        "layers": speaker.spec["layers"],
        "run": None if flags.run is None else str(flags.run),
        "permuted": flags.permute,
        "goal_only": flags.goal_only,
        "calibrated": not flags.uncalibrated,
        "prompts": texts.VERSION,
        "split": flags.split,
        "seed": flags.seed,
        "versions": dict(room.versions),
    }
    for what in flags.what:
        begun = time.perf_counter()
        own = (_policy if what == "policy" else _walks)(what, flags, room, speaker)
        own["seconds"] = round(time.perf_counter() - begun, 1)
        found[what] = own
        print(_line(what, flags.env, own), flush=True)
    if flags.output is not None:
        files.write_whole(flags.output, (json.dumps(found, indent=1) + "\n").encode())


def _policy(
    what: str, flags: argparse.Namespace, room: Any, speaker: Any
) -> dict[str, Any]:
    from agents.data import Context
    from agents.demonstrate import seeds
    from agents.environments.captioned import Captioned, Moves
    from agents.environments.captions import captioner
    from agents.feedback import probes, texts
    from agents.llm.prompted import Asked, prompted
    from agents.playing import Lane
    from agents.recording import SPLITS

    names, caption = room.actions, captioner(flags.env, flags.goal_only)

    def prompt(goal: str, seen: str) -> str:
        return texts.acting(goal, seen, names)

    blank = None if flags.uncalibrated else prompt(texts.NOTHING, texts.NOTHING)
    asked = Asked(prompted(speaker, names), speaker.tokenizer, blank)
    drawn = seeds(flags.seed, SPLITS.index(flags.split), 0)
    episodes = list(islice(drawn, flags.episodes))
    limit = flags.limit or room.limit
    left = iter(episodes)
    rows = min(flags.rows, flags.episodes)
    own = [texts.made(flags.env, flags.permute) for _ in range(rows)]
    lanes = [Lane(Captioned(one, caption, prompt), left, limit) for one in own]
    shown = next(iter(room.shapes))  # of which nothing is read
    views = Context([shown], text=speaker.tokenizer, length=flags.length)
    found = probes.played(lanes, asked, views)
    knows = room.own if isinstance(room, Moves) else room
    return found | {
        "limit": limit,
        "prompts_read": asked.distinct,
        "chance": probes.by_chance(room, episodes, limit),
        "expert": probes.by_expert(knows, episodes, limit),
    }


def _walks(
    what: str, flags: argparse.Namespace, room: Any, speaker: Any
) -> dict[str, Any]:
    from agents.feedback import probes, texts
    from agents.llm.prompted import Asked, prompted

    names = room.actions
    options = {"seed": flags.seed, "random": _RANDOM, "goal_only": flags.goal_only}
    walks = list(texts.walks(room, flags.split, flags.episodes, **options))
    if what == "next":
        questions = probes.next_questions(walks, names, flags.seed)
        answers, blank = texts.LETTERS, None  # both orders cancel what it likes to say
    else:
        questions = probes.inverse_questions(walks, names)
        answers = names
        nothing = texts.leading(texts.NOTHING, texts.NOTHING, names)
        blank = None if flags.uncalibrated else nothing
    if not questions.asked:
        raise InputError(f"no action of {len(walks)} episodes changed what is seen")
    asked = Asked(prompted(speaker, answers), speaker.tokenizer, blank)
    if what == "next":
        found = probes.answer_next(asked, questions.asked)
    else:
        found = probes.answer_inverse(asked, questions.asked, names)
    return found | {"left_out": questions.left_out, "random": _RANDOM}


def _line(what: str, env: str, found: dict[str, Any]) -> str:
    low, high = found["interval"]
    line = f"{what:8}{env}  {found['rate']:.3f} ({low:.3f} to {high:.3f}) of "
    if what == "policy":
        beside = (f"{name} {found[name]['rate']:.3f}" for name in ("chance", "expert"))
        line += f"{found['episodes']} episodes; {', '.join(beside)}"
    elif what == "next":
        line += (
            f"{found['questions']:,} questions; chance 0.5; first order alone "
            f"{found['one_order']:.3f}, says A {found['says_first']:.2f}, orders agree "
            f"{found['orders_agree']:.2f}"
        )
    else:
        line += (
            f"{found['questions']:,} questions; the commonest "
            f"{found['commonest']:.3f}; mean over actions {found['balanced']:.3f}, by "
            f"chance {found['balanced_chance']:.3f}"
        )
    return f"{line}; {found['seconds']:.0f} s"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m agents.ask",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--env", required=True, metavar="WORLD", help="such as babyai:GoToObj")
    add("--what", nargs="+", choices=WHAT, default=WHAT, help="what to ask (all)")
    add("--model", default="smollm2_135m", help="a prepared model (smollm2_135m)")
    add("--layers", type=int, help="take the first blocks alone (all)")
    add("--run", type=Path, metavar="DIR", help="ask what this run made of the model")
    add("--uncalibrated", action="store_true", help="keep what it likes to say anyway")
    add("--episodes", type=int, default=20, help="of the world (20)")
    add("--limit", type=int, default=0, help="steps of an episode (the world's own)")
    add("--rows", type=int, default=16, help="episodes side by side (16)")
    add("--length", type=int, default=1024, help="the most tokens of a prompt (1024)")
    add("--split", choices=("validation", "test"), default="validation")
    add(
        "--permute",
        type=int,
        metavar="SEED",
        help="give BabyAI's actions other effects",
    )
    add("--goal_only", action="store_true", help="captions of the goal's objects alone")
    add("--seed", type=int, default=0, help="of the episodes (0)")
    add("--output", type=Path, metavar="FILE.json", help="write all figures")
    cli.add_trust(parser)
    flags = parser.parse_args(arguments)
    for name, least in (("episodes", 1), ("limit", 0), ("rows", 1), ("length", 1)):
        if getattr(flags, name) < least:
            raise InputError(
                f"--{name} is {getattr(flags, name)}; give {least} or more"
            )
    for name in ("seed", "permute"):
        if (getattr(flags, name) or 0) < 0:
            raise InputError(f"--{name} is {getattr(flags, name)}; give 0 or more")
    return flags


if __name__ == "__main__":
    errors.run(main)
