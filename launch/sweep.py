"""Print a grid of commands, one per line, for a shell or any launcher.

    python launch/sweep.py rate=1e-3,3e-3 seed=0,1 -- \\
        python -m polyview.main --config configs/x.py --workdir 'runs/{rate}-{seed}' \\
        '--config.optimizer.learning_rate.base={rate}' '--config.seed={seed}' | sh

Give names and their values before `--`, and a command after it. Each {name} in the
command is replaced by each value in turn; the last name varies fastest. The command can
start with a launcher: `-- bash launch/slurm.sh --gpus 8 --batch -- python -m ...`. Each
line must have its own workdir.
"""

import itertools
import shlex
import sys


def main(words: list[str]) -> int:
    """Print the commands and return the exit status: 2 if `words` give no grid."""
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
    """Return the commands of `name=value,value ... -- command`, each as its words.

    Raises ValueError for a malformed or repeated name=value,value, a name that does not
    occur in the command, and commands that share a workdir.
    """
    if "--" not in words or words[-1] == "--":
        raise ValueError("no command after --")
    end = words.index("--")
    values = {}
    for word in words[:end]:
        name, equals, choices = word.partition("=")
        if not (name.isidentifier() and equals and choices) or name in values:
            raise ValueError(f"{word!r} is not a new name=value,value")
        values[name] = choices.split(",")
    command = words[end + 1 :]
    for name in values:
        if not any(f"{{{name}}}" in word for word in command):
            raise ValueError(f"{{{name}}} does not occur in the command")
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
