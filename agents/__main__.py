"""`agents COMMAND ...` or `python -m agents COMMAND ...`: run one of the commands."""

from polyview import cli

COMMANDS = (
    "prepare",
    "generate",
    "export",
    "train",
    "video",
    "report",
    "judge",
    "ask",
)


def main() -> None:
    """Run the named command; without one, list the commands."""
    cli.choose("agents", COMMANDS)


if __name__ == "__main__":
    main()
