"""Compare runs on one offline page: table, curves, features, configs.

    python -m polyview.report --run runs/a runs/b --output report.html

Reads the files that training and `polyview.evaluate` wrote in each run (config.json,
metrics.jsonl, eval/), draws them, and embeds every figure: the page loads nothing from
the network. The table also goes to stdout.
"""

from pathlib import Path

from polyview import cli, errors, files
from polyview.terminal import say


def main() -> None:
    """Read the command line, print the table and write the page; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.report", description=cli.first_line(__doc__)
    )
    parser.add_argument("--run", metavar="DIR", required=True, nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("report.html"))
    flags = parser.parse_args()
    cli.check_output(flags.output)
    from polyview.reporting.html import encoded
    from polyview.reporting.page import html_page
    from polyview.reporting.read import read
    from polyview.reporting.tables import summary

    runs = read(flags.run)
    say(summary(runs))
    files.write_whole(flags.output, encoded(html_page(runs)))
    say(f"report: {flags.output}")


if __name__ == "__main__":
    errors.run(main)
