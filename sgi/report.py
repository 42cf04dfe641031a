"""Compare fine-tuned runs: scores, aggregates over games, learning curves.

    python -m sgi.report --run runs/a runs/b --output report.html
    python -m sgi.report --run runs/a runs/b --output curves.png

Reads the files that `sgi.finetune` wrote in each run (config.json, metrics.jsonl,
episodes.jsonl, eval/<step>.json). An .html page contains its figures and needs no
network; a .png has the learning curves only. The scores are also printed.
"""

from pathlib import Path

from polyview import cli, errors, files
from polyview.errors import InputError
from polyview.reporting.html import encoded
from polyview.terminal import say
from sgi.reporting.figures import curves_alone
from sgi.reporting.page import html_page
from sgi.reporting.read import read
from sgi.reporting.tables import summary


def main() -> None:
    """Print the scores and write the page or picture; see `--help`."""
    parser = cli.Parser(
        prog="python -m sgi.report",
        description="Compare fine-tuned runs: scores, aggregates over games, learning "
        "curves.",
    )
    parser.add_argument("--run", metavar="DIR", required=True, nargs="+", type=Path)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        help="a .html page, or the learning curves as .png (default: report.html)",
    )
    flags = parser.parse_args()
    if flags.output.suffix.lower() not in (".html", ".png"):
        raise InputError(f"--output {flags.output} must end in .html or .png")
    cli.check_output(flags.output)
    runs = read(flags.run)
    say(summary(runs))
    if flags.output.suffix.lower() == ".png":
        content = curves_alone(runs)
    else:
        content = encoded(html_page(runs))
    files.write_whole(flags.output, content)
    say(f"report: {flags.output}")


if __name__ == "__main__":
    errors.run(main)
