"""Printing: whole lines, flushed at once, with control characters escaped."""


def printable(text: str) -> str:
    """Return the text with non-printable characters except \\n escaped, as \\x1b."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def say(line: str) -> None:
    """Print a line, escaped, and flush it, also into a pipe."""
    print(printable(line), flush=True)


def duration(seconds: float) -> str:
    """Format seconds as 1h02m, 3m04s or 5s."""
    seconds = round(seconds)
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"
