"""`polyview COMMAND ...`, or `python -m polyview COMMAND ...`: any of the commands."""

from polyview import command

COMMANDS = (
    "main",
    "prepare",
    "evaluate",
    "report",
    "embed",
    "export",
    "adopt",
    "bench",
)


def main() -> None:
    """Run the command that is named; without one, list them."""
    command.choose("polyview", COMMANDS)


if __name__ == "__main__":
    main()
