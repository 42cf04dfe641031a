"""`sgi COMMAND ...` or `python -m sgi COMMAND ...`: run one of the commands."""

from polyview import cli

COMMANDS = ("prepare", "latents", "finetune", "report", "video")


def main() -> None:
    """Run the named command; without one, list the commands."""
    cli.choose("sgi", COMMANDS)


if __name__ == "__main__":
    main()
