"""`polyview COMMAND ...`, or `python -m polyview COMMAND ...`: any of the commands."""

from polyview import cli

COMMANDS = (
    "main",
    "prepare",
    "evaluate",
    "report",
    "embed",
    "export",
    "import_weights",
    "bench",
)


def main() -> None:
    """Run the command that is named; without one, list them."""
    cli.choose("polyview", COMMANDS)


if __name__ == "__main__":
    main()
