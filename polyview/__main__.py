"""The program `polyview COMMAND ...`, or `python -m polyview COMMAND ...`."""

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
    """Run the named command; without a name, list the commands."""
    cli.choose("polyview", COMMANDS)


if __name__ == "__main__":
    main()
