"""`sgi COMMAND ...`, or `python -m sgi COMMAND ...`: any of the commands."""

from polyview import cli

COMMANDS = ("prepare", "finetune", "report", "video")


def main() -> None:
    """Run the command that is named; without one, list them."""
    cli.choose("sgi", COMMANDS)


if __name__ == "__main__":
    main()
