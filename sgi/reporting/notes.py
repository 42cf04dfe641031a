"""What a reader must know before comparing runs."""

from collections.abc import Sequence

from polyview.reporting.tables import different_protocols
from sgi.reporting.methods import kind, labels, methods_of
from sgi.reporting.read import Run
from sgi.scores import GAMES, PROTOCOL


def notes_on(runs: Sequence[Run]) -> list[str]:
    """Return what a reader must know before comparing the rows."""
    found, compared, named = [], methods_of(runs), labels(runs)
    for run in runs:
        if named[run.name] != run.start:  # a letter to explain
            alike = [set(kind(other)) for other in runs if other.start == run.start]
            own = sorted(set(kind(run)) - set.intersection(*alike))
            found.append(f"{named[run.name]}: {', '.join(own)}")
    for method in compared:
        if method.obstacle:
            found.append(f"no aggregate of {method.label}: {method.obstacle}")
    if len({m.games for m in compared if m.scores is not None}) > 1:
        found.append("the aggregates are over different games: they do not compare")
    found += different_protocols(
        {key: last.get(key) for key in ("protocol", "epsilon", "episodes", "cap")}
        for last in (run.result for run in runs)
        if last
    )
    for run in runs:
        if other := _other_than_published(run):
            found.append(
                f"{run.name} is not as the published scores are ({', '.join(other)}): "
                "its HNS does not compare with theirs"
            )
    for run in runs:
        trained = run.history[-1]["step"] if run.history else None
        if run.game not in GAMES:
            found.append(f"{run.game} has no published human score: raw scores only")
        if run.evaluated is None:
            found.append(f"{run.name} has no evaluation of the agent yet")
        elif trained is not None and trained != run.evaluated:
            found.append(
                f"{run.name} is evaluated at step {run.evaluated:,}, but trained to "
                f"{trained:,}"
            )
        if run.scores is not None and len(run.scores) == 1:
            found.append(f"{run.name} has one seed, from which no interval follows")
    return list(dict.fromkeys(found))


def _other_than_published(run: Run) -> list[str]:
    """List where a run with human-normalised scores departs from Atari 100k."""
    if run.normalised is None:
        return []
    last = run.evaluations[run.evaluated]
    return [
        f"{key} {last.get(key)} instead of {value}"
        for key, value in PROTOCOL.items()
        if last.get(key) != value
    ]
