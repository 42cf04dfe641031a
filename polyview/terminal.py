"""What is printed: whole lines, at once, that steer no terminal."""


def printable(text: str) -> str:
    """The text with all but letters, spaces and line ends spelt out, as \\x1b."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(printable(line), flush=True)


def duration(seconds: float) -> str:
    """Write seconds as 1h02m, 3m04s or 5s."""
    seconds = round(seconds)
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"
