"""`dvf COMMAND ...` or `python -m dvf COMMAND ...`: run one of the commands."""

from polyview import cli

COMMANDS = ("prepare", "weigh")


def main() -> None:
    """Run the named command; without one, list the commands."""
    cli.choose("dvf", COMMANDS)


if __name__ == "__main__":
    main()
