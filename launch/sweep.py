"""Print a grid of commands, one a line, for a shell or any launcher.

    python launch/sweep.py rate=1e-3,3e-3 seed=0,1 -- \\
        python -m polyview.main --config configs/x.py --workdir 'runs/{rate}-{seed}' \\
        '--config.optimizer.learning_rate.base={rate}' '--config.seed={seed}' | sh

Before `--` stand names and their values, after it a command in which {name} is replaced
by each value in turn; the last name varies fastest. The command may begin with a
launcher: `-- bash launch/slurm.sh --gpus 8 --batch -- python -m ...`. Every line must
have a workdir of its own.
"""

import itertools
import shlex
import sys


def main(words: list[str]) -> int:
    """Print the commands; 2 where the words make no grid."""
    if "--help" in words[: words.index("--") if "--" in words else None]:
        print(__doc__.strip())
        return 0
    try:
        lines = grid(words)
    except ValueError as error:
        print(f"error: {error}; see sweep.py --help", file=sys.stderr)
        return 2
    print(*map(shlex.join, lines), sep="\n")
    return 0


def grid(words: list[str]) -> list[list[str]]:
    """The commands of `name=value,value ... -- command`, each as its words.

    Raises ValueError for a word that names no values, a {name} without values, values
    that stand nowhere in the command, and commands that share a workdir.
    """
    if "--" not in words or words[-1] == "--":
        raise ValueError("no command after --")
    end = words.index("--")
    values = {}
    for word in words[:end]:
        name, equals, of = word.partition("=")
        if not (name.isidentifier() and equals and of) or name in values:
            raise ValueError(f"{word!r} is no new name=value,value")
        values[name] = of.split(",")
    command = words[end + 1 :]
    for name in values:
        if not any(f"{{{name}}}" in word for word in command):
            raise ValueError(f"{{{name}}} stands nowhere in the command")
    lines = [
        [_filled(word, dict(zip(values, chosen, strict=True))) for word in command]
        for chosen in itertools.product(*values.values())
    ]
    workdirs = [_workdir(line) for line in lines]
    for workdir in workdirs:
        if workdir is not None and workdirs.count(workdir) > 1:
            raise ValueError(
                f"{workdirs.count(workdir)} commands have the workdir {workdir}; put "
                "every name of the grid into it"
            )
    return lines


def _filled(word: str, chosen: dict[str, str]) -> str:
    for name, value in chosen.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def _workdir(line: list[str]) -> str | None:
    for word, following in zip(line, [*line[1:], ""], strict=True):
        if word == "--workdir":
            return following
        if word.startswith("--workdir="):
            return word.partition("=")[2]
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
