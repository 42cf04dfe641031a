"""Notes on runs that are not directly comparable."""

from collections.abc import Sequence

from polyview.reporting.tables import different_protocols
from sgi.reporting.methods import kind, labels, methods_of
from sgi.reporting.read import PROTOCOL_KEYS, Run
from sgi.reporting.seeds import pooled
from sgi.scores import GAMES, PROTOCOL


def notes_on(runs: Sequence[Run]) -> list[str]:
    """Return notes to read before comparing the rows of a table."""
    notes, compared, named = [], methods_of(runs), labels(runs)
    for run in runs:
        if named[run.name] != run.start:  # a letter to explain
            alike = [set(kind(other)) for other in runs if other.start == run.start]
            own = sorted(set(kind(run)) - alike[0].intersection(*alike))
            notes.append(f"{named[run.name]}: {', '.join(own)}")
    for method in compared:
        if method.obstacle:
            notes.append(f"no aggregate of {method.label}: {method.obstacle}")
    starts: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        where = named[run.name], run.game
        starts.setdefault(where, set()).add(str(run.config.get("init_from")))
    for (label, game), donors in starts.items():
        if len(donors) > 1:
            notes.append(
                f"aggregates of {label} pool runs of {game} that start from different "
                f"runs: {', '.join(sorted(donors))}"
            )
    if len({m.games for m in compared if m.scores is not None}) > 1:
        notes.append("the aggregates are over different games, so do not compare them")
    notes += different_protocols(
        {key: last.get(key) for key in PROTOCOL_KEYS}
        for last in (run.result for run in runs)
        if last
    )
    rows = pooled(runs)
    for row in rows:
        if other := _other_than_published(row):
            notes.append(
                f"{row.name} differs from the published protocol ({', '.join(other)}): "
                "do not compare its HNS with published scores"
            )
    for run in runs:
        trained = run.history[-1]["step"] if run.history else None
        if run.game not in GAMES:
            notes.append(f"{run.game} has no published human score: raw scores only")
        if run.evaluated is None:
            notes.append(f"{run.name} has no evaluation of the agent yet")
        elif trained is not None and trained != run.evaluated:
            notes.append(
                f"{run.name} is evaluated at step {run.evaluated:,}, but trained to "
                f"{trained:,}"
            )
    for row in rows:
        if row.scores is not None and len(row.scores) == 1:
            notes.append(f"{row.name} is one run: no interval over seeds")
    return list(dict.fromkeys(notes))


def _other_than_published(run: Run) -> list[str]:
    """List how a run with human-normalised scores deviates from Atari 100k."""
    if run.normalised is None:
        return []
    result = run.result
    return [
        f"{key} {result.get(key)} instead of {value}"
        for key, value in PROTOCOL.items()
        if result.get(key) != value
    ]
