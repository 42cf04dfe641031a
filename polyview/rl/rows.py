"""Rows of single environments, in this process or in several. Numpy only.

`HostRows` plays environments that take one action at a time (`Single`) as
`polyview.rl.environment:Rows`: it gives each episode its seed, cuts it off at its
limit, resets on the next step, and comes back to a saved place by playing the actions
of the episode again. `Gymnasium` is any environment of that package.
"""

import contextlib
import functools
import hashlib
import importlib
import multiprocessing
import pickle
import signal
import struct
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

import numpy as np

from polyview.errors import InputError, Stop, check_range
from polyview.rl.environment import Step

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]
_MOST = float(np.finfo(np.float32).max)  # a reward is stored in float32


class Single(Protocol):
    """An environment of one row. It is a function of its last seed and the actions
    since; no step follows the end of an episode.

    Attributes:
      name: for messages.
      actions, limit, shapes, versions: as those of `polyview.rl.environment:Rows`.
    """

    name: str
    actions: int
    limit: int
    shapes: Shapes
    versions: Mapping[str, str]

    def reset(self, seed: int) -> Mapping[str, np.ndarray]:
        """Begin an episode from a seed of 128 bits, and return what it shows."""

    def step(
        self, action: int
    ) -> tuple[Mapping[str, np.ndarray], float, bool, bool, bool]:
        """Return observation, reward, terminated, truncated, success.

        If both ends are True, the episode terminated. Success counts at an end only.
        """

    def fingerprint(self) -> np.ndarray:
        """Return a SHA-256 by which another state, or past, is seen: uint8[32]."""


def seed_of(seed: int, row: int, episode: int) -> int:
    """Return the seed of an episode, below 2^128.

    seed: of all rows, below 2^64. row, episode: below 2^32. They are its high 64 bits,
    so that no two episodes of the rows, on whatever host, have one seed. Its low 64
    bits are drawn from `np.random.SeedSequence(seed, spawn_key=(row, episode))`, for
    environments that use the seed's remainder, and so that another `seed` gives others.
    """
    stream = np.random.SeedSequence(seed, spawn_key=(row, episode))
    drawn = int(stream.generate_state(1, np.uint64)[0])
    return row << 96 | episode << 64 | drawn


class HostRows:
    """n single environments as `polyview.rl.environment:Rows`.

    Args:
      make: makes the environment of a row, the same for all. With processes it must be
        what `pickle` takes, such as a class, or a `functools.partial` of one.
      count: n.
      seed: of the rows; see `seed_of`.
      first: the number of the first row among those of all hosts.
      processes: 0 plays all rows in this process; else they are divided among so many
        others, each of which takes one message a step. What is shown is the same.

    An error in a process is raised here, with the traceback there as its cause. After
    an error only `begin`, `restore` and `close` are of use. The processes end with this
    one, however it ends.

    Raises InputError, naming environment and row, for an action that there is not, a
    reward that is not finite, and an observation of another name, shape or type than
    the environment says.
    """

    def __init__(
        self,
        make: Callable[[], Single],
        count: int,
        seed: int,
        *,
        first: int = 0,
        processes: int = 0,
    ) -> None:
        check_range(1, 2**20, count=count)
        check_range(0, 2**63, seed=seed)
        check_range(0, 2**31, first=first)
        check_range(0, min(count, 256), processes=processes)
        self.count, self._first = count, first
        self.name: str
        self.actions: int
        self.limit: int
        self.shapes: Shapes
        self.versions: Mapping[str, str]
        numbers = range(first, first + count)
        self._block: _Block | None = None
        self._workers: _Workers | None = None
        self._begun = False
        if processes:
            self._workers = _Workers(make, numbers, seed, processes)
            about = self._workers.about
        else:
            self._block = _Block(make, numbers, seed)
            about = self._block.about
        self.name, self.actions, self.limit, self.shapes, self.versions = about

    def begin(self) -> Step:
        """Begin the first episode of each row."""
        self._begun = True
        return _joined(self._ask("begin", self._parts()))

    def step(self, actions: np.ndarray) -> Step:
        """Take int[n] actions. The arrays of the result are the caller's."""
        actions = np.asarray(actions)
        check_actions(actions, self.count, self.actions, self.name, self._first)
        self._check_begun()
        return _joined(self._ask("step", self._parts(actions)))

    def saved(self) -> dict[str, np.ndarray]:
        """Return what `restore` needs; the shapes never change.

        episode      int32[n], the number of the row's episode
        steps        int32[n], since its reset
        actions      int32[n, limit], since its reset; zeros after them
        fingerprint  uint8[n, 32]
        """
        self._check_begun()
        parts = self._ask("saved", self._parts())
        return {name: np.concatenate([part[name] for part in parts]) for name in _SAVED}

    def restore(self, saved: Mapping[str, np.ndarray]) -> Step:
        """Return the step at which `saved` was called, and go on from there.

        Plays the actions since the resets. Raises InputError, with the versions of the
        packages, if that leads to another place, and for arrays of other rows.
        """
        n, limit = self.count, self.limit
        wanted = {"episode": (n,), "steps": (n,), "actions": (n, limit)}
        check_saved(saved, {**wanted, "fingerprint": (n, 32)}, self.name)
        arrays = [np.asarray(saved[name]) for name in _SAVED]
        self._begun = True
        return _joined(self._ask("restore", self._parts(*arrays)))

    def close(self) -> None:
        """End the processes."""
        if self._workers is not None:
            self._workers.close()

    def _check_begun(self) -> None:
        if not self._begun:
            raise RuntimeError("call begin or restore first")

    def _parts(self, *arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """Return the arguments of each block of rows."""
        if self._workers is None:
            return [arrays]
        return [tuple(a[part] for a in arrays) for part in self._workers.parts]

    def _ask(self, method: str, arguments: Sequence[tuple[np.ndarray, ...]]) -> Any:
        if self._workers is not None:
            return self._workers.ask(method, arguments)
        return [getattr(self._block, method)(*arguments[0])]


def check_actions(
    actions: np.ndarray, count: int, known: int, name: str, first: int
) -> None:
    """Raise InputError unless actions are int[count], each in 0 .. known - 1."""
    if actions.shape != (count,) or actions.dtype.kind not in "iu":
        raise InputError(
            f"{name}: {count} rows take integers [{count}], not "
            f"{actions.dtype}{list(actions.shape)}"
        )
    wrong = np.flatnonzero((actions < 0) | (actions >= known))
    if len(wrong):
        raise InputError(
            f"{name}, row {first + wrong[0]}: there is no action {actions[wrong[0]]}, "
            f"only 0 .. {known - 1}; give the head as many as the environment has"
        )


def check_saved(
    saved: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], name: str
) -> None:
    """Raise InputError if arrays have other names or shapes than `saved` gives."""
    found = {key: np.shape(value) for key, value in saved.items()}
    if found != dict(wanted):
        raise InputError(
            f"{name}: these rows were saved as {found}, and are {dict(wanted)} here; "
            "give the same number of rows and the same limit"
        )


def elsewhere(name: str, row: int, versions: Mapping[str, str]) -> InputError:
    """Return the error of a row whose replay does not lead to where it was saved."""
    here = ", ".join(f"{package} {version}" for package, version in versions.items())
    return InputError(
        f"{name}, row {row}: playing the saved actions leads to another state. The "
        f"seed, or a version, is another ({here} here); or more than seed and actions "
        "decide what happens there"
    )


_SAVED = ("episode", "steps", "actions", "fingerprint")


class _About(NamedTuple):
    """What the environments of all rows have in common."""

    name: str
    actions: int
    limit: int
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]]
    versions: dict[str, str]


class _Block:
    """Rows of one process. numbers: of the rows among those of all hosts."""

    def __init__(self, make: Callable[[], Single], numbers: range, seed: int):
        self._numbers, self._seed = numbers, seed
        self._singles = [make() for _ in numbers]
        self.about = _about(self._singles[0])
        for number, single in zip(numbers, self._singles, strict=True):
            if _about(single) != self.about:
                raise InputError(
                    f"{single.name}, row {number}: its actions, limit, shapes or "
                    "versions are not those of the first row; make all rows alike"
                )
        count, limit = len(numbers), self.about.limit
        self._episode = np.zeros(count, np.int32)
        self._steps = np.zeros(count, np.int32)
        self._actions = np.zeros((count, limit), np.int32)
        self._over = np.zeros(count, bool)

    def begin(self) -> Step:
        step = self._blank()
        self._episode[:] = 0
        for row in range(len(self._singles)):
            self._reset(row, step)
        return step

    def step(self, actions: np.ndarray) -> Step:
        step = self._blank()
        for row, action in enumerate(actions.tolist()):
            if self._over[row]:
                self._episode[row] += 1
                self._reset(row, step)
            else:
                self._act(row, action, step)
        return step

    def saved(self) -> dict[str, np.ndarray]:
        prints = np.stack([single.fingerprint() for single in self._singles])
        arrays = (self._episode, self._steps, self._actions, prints)
        return dict(zip(_SAVED, arrays, strict=True))  # `HostRows` copies them

    def restore(
        self,
        episode: np.ndarray,
        steps: np.ndarray,
        actions: np.ndarray,
        fingerprint: np.ndarray,
    ) -> Step:
        step = self._blank()
        known, limit = self.about.actions, self.about.limit
        for row, single in enumerate(self._singles):
            played = actions[row, : steps[row]].tolist()
            good = episode[row] >= 0 and 0 <= steps[row] <= limit
            if not good or not all(0 <= action < known for action in played):
                raise InputError(
                    f"{self._where(row)}: what was saved is damaged: {steps[row]} "
                    f"steps of episode {episode[row]}"
                )
            self._episode[row] = episode[row]
            self._reset(row, step)
            for action in played:
                if self._over[row]:
                    raise self._elsewhere(row)
                self._act(row, action, step)
            if not np.array_equal(single.fingerprint(), fingerprint[row]):
                raise self._elsewhere(row)
        return step

    def _blank(self) -> Step:
        count = len(self._singles)
        shown = {
            name: np.empty((count, *shape), dtype)
            for name, (shape, dtype) in self.about.shapes.items()
        }
        ends = (np.zeros(count, bool) for _ in range(3))
        return Step(shown, np.zeros(count, np.float32), *ends)

    def _reset(self, row: int, step: Step) -> None:
        seed = seed_of(self._seed, self._numbers[row], int(self._episode[row]))
        self._show(row, step, self._singles[row].reset(seed))
        self._steps[row], self._over[row] = 0, False
        self._actions[row] = 0

    def _act(self, row: int, action: int, step: Step) -> None:
        shown, reward, ended, cut, success = self._singles[row].step(action)
        self._show(row, step, shown)
        if not -_MOST <= reward <= _MOST:  # NaN too
            raise InputError(
                f"{self._where(row)}: the reward of action {action} is {reward}"
            )
        self._actions[row, self._steps[row]] = action
        self._steps[row] += 1
        over = ended or cut or self._steps[row] == self.about.limit
        self._over[row] = over
        step.reward[row] = reward
        step.terminated[row] = ended
        step.truncated[row] = over and not ended
        step.success[row] = over and success

    def _show(self, row: int, step: Step, shown: Mapping[str, np.ndarray]) -> None:
        if shown.keys() != step.observation.keys():
            raise InputError(
                f"{self._where(row)} shows {sorted(shown)}, and says that it shows "
                f"{sorted(step.observation)}"
            )
        for name, rows in step.observation.items():
            value = np.asarray(shown[name])
            if value.shape != rows.shape[1:] or value.dtype != rows.dtype:
                raise InputError(
                    f"{self._where(row)}: {name} is {value.dtype}{list(value.shape)}, "
                    f"and is said to be {rows.dtype}{list(rows.shape[1:])}"
                )
            rows[row] = value

    def _where(self, row: int) -> str:
        return f"{self.about.name}, row {self._numbers[row]}"

    def _elsewhere(self, row: int) -> InputError:
        return elsewhere(self.about.name, self._numbers[row], self.about.versions)


def _about(single: Single) -> _About:
    check_range(1, 2**31 - 1, actions=single.actions)
    check_range(1, 10_000_000, limit=single.limit)
    shapes = {
        name: (tuple(shape), np.dtype(dtype))
        for name, (shape, dtype) in single.shapes.items()
    }
    own = (single.name, single.actions, single.limit, shapes, dict(single.versions))
    return _About(*own)


def _joined(parts: Sequence[Step]) -> Step:
    if len(parts) == 1:
        return parts[0]
    shown = {
        name: np.concatenate([part.observation[name] for part in parts])
        for name in parts[0].observation
    }
    others = zip(*(part[1:] for part in parts), strict=True)
    return Step(shown, *(np.concatenate(arrays) for arrays in others))


class _Workers:
    """Blocks of rows in processes of their own."""

    def __init__(
        self,
        make: Callable[[], Single],
        numbers: range,
        seed: int,
        processes: int,
    ) -> None:
        try:
            pickle.dumps(make)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"{make!r:.80} cannot be sent to other processes ({error}); give a "
                "class or a function of a module, or set processes=0"
            ) from None
        cuts = np.linspace(0, len(numbers), processes + 1).astype(int).tolist()
        self.parts = [slice(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        self._numbers = numbers
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        # Before `multiprocessing` itself waits for its processes at exit: these do not
        # heed its SIGTERM.
        self.close = util.Finalize(
            self, _end, (self._connections, self._processes), exitpriority=10
        )
        context = multiprocessing.get_context("spawn")  # a fork of JAX can hang
        try:
            for part in self.parts:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work,
                    args=(theirs, make, numbers[part], seed),
                    daemon=True,
                )
                self._connections.append(ours)
                process.start()
                self._processes.append(process)
                theirs.close()  # so that its end is seen here
            abouts = self._answers()
            if any(about != abouts[0] for about in abouts):
                raise InputError(f"{abouts[0].name}: its rows are not alike")
        except BaseException:
            self.close()
            raise
        self.about: _About = abouts[0]

    def ask(self, method: str, arguments: Sequence[tuple[np.ndarray, ...]]) -> Any:
        """Return what a method of each block answers."""
        for part, argument in enumerate(arguments):
            with contextlib.suppress(OSError):  # it is gone, as its answer will say
                self._connections[part].send((method, argument))
        return self._answers()

    def _answers(self) -> list[Any]:
        """Return the answer of each process, or raise the first error among them.

        It waits for all, so that no answer is left over for the next question.
        """
        answers: list[Any] = []
        for part, connection in enumerate(self._connections):
            try:
                answers.append(connection.recv())
            except (EOFError, OSError):
                answers.append((None, self._gone(part), ""))
        for _, error, told in answers:
            if error is not None:
                raise error from (_There(told) if told else None)
        return [answer for answer, _, _ in answers]

    def _gone(self, part: int) -> Stop:
        process, rows = self._processes[part], self._numbers[self.parts[part]]
        process.join(1)
        return Stop(
            f"the process of rows {rows[0]} to {rows[-1]} has ended (exit status "
            f"{process.exitcode}), perhaps for want of memory; run the same again"
        )


class _There(Exception):
    """The traceback of an error in another process."""

    def __str__(self) -> str:
        return f"in the process of the row:\n{self.args[0]}"


def _work(
    connection: Connection, make: Callable[[], Single], numbers: range, seed: int
) -> None:
    """Answer one question after another, until the other side is gone."""
    # A signal goes to all processes of a group; the other side may yet ask for what it
    # saves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    block: _Block | None = None
    try:
        answer, block = _answer(lambda: _Block(make, numbers, seed))
        about = None if block is None else block.about
        connection.send((about, *answer))
        while block is not None:
            method, arguments = connection.recv()
            answer, value = _answer(
                functools.partial(getattr(block, method), *arguments)
            )
            connection.send((value, *answer))
    except (EOFError, ConnectionError):
        return


def _answer(call: Callable[[], Any]) -> tuple[tuple[Exception | None, str], Any]:
    """Return the error of a call, with its traceback, or None and ""; and its value."""
    try:
        return (None, ""), call()
    except Exception as error:
        return (_portable(error), traceback.format_exc()), None


def _portable(error: Exception) -> Exception:
    """Return an error as one that another process can read."""
    try:
        read = pickle.loads(pickle.dumps(error))
    except Exception:  # an error may hold anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return read if isinstance(read, Exception) else RuntimeError(str(error))


def _end(connections: list[Connection], processes: list[BaseProcess]) -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


_CAME = struct.Struct("<d??")  # reward, terminated, truncated


class Gymnasium:
    """An environment of `gymnasium.make`, with numbered actions, as `Single`.

    Args:
      name: what `gymnasium.make` takes. It can name a module to import: list this class
        in no `trusted.txt`.
      limit: the most steps of an episode; by default as registered.
      settings: more of what `gymnasium.make` takes.

    Observes `state`, float32[d], if observations are vectors; `image` if they are
    [h, w, c]; and a dict of such by its own names. Floats are made float32. `info`
    says in "success" or "is_success" whether an episode was successful; if not, it was
    if it terminated with a reward above 0, which means nothing where each step has one.

    The fingerprint is of all observations, rewards and ends since the reset: gymnasium
    has no way to ask for a state.

    Raises InputError if there is no such environment, if it has other actions or
    observations, or no limit.
    """

    def __init__(self, name: str, *, limit: int | None = None, **settings: Any):
        try:
            gymnasium = importlib.import_module("gymnasium")
        except ImportError as error:
            raise InputError(
                f"gymnasium is needed for {name} ({error}): pip install gymnasium"
            ) from error
        check_range(1, limit=limit)
        settings = {"disable_env_checker": True, **settings}
        try:
            made = gymnasium.make(name, max_episode_steps=limit, **settings)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise InputError(f"gymnasium cannot make '{name}': {error}") from error
        self.name, self._environment = name, made
        spaces, space = gymnasium.spaces, made.action_space
        if not isinstance(space, spaces.Discrete):
            raise InputError(f"{name} has the actions {space}; rows need numbered ones")
        self.actions, self._start = int(space.n), int(space.start)
        most = limit or made.spec.max_episode_steps
        if most is None:
            raise InputError(f"an episode of {name} may never end; give a limit")
        self.limit = int(most)
        seen = made.observation_space
        self._named = isinstance(seen, spaces.Dict)
        parts = dict(seen.spaces) if self._named else {_field(seen): seen}
        for part in parts.values():
            if not isinstance(part, spaces.Box):
                raise InputError(
                    f"{name} shows {seen}; rows need a Box, or a Dict of such"
                )
        self._kinds = {key: part.dtype.kind for key, part in parts.items()}
        self.shapes: Shapes = {
            key: (tuple(part.shape), _stored(key, part.dtype))
            for key, part in parts.items()
        }
        self.versions: Mapping[str, str] = _versions(type(made.unwrapped).__module__)
        self._digest = hashlib.sha256()

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Begin an episode from a seed, and return what it shows."""
        self._digest = hashlib.sha256()
        return self._shown(self._environment.reset(seed=seed)[0])

    def step(
        self, action: int
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """Return observation, reward, terminated, truncated, success."""
        raw, own, ended, cut, info = self._environment.step(action + self._start)
        reward = float(own)
        success = info.get("success", info.get("is_success"))
        if success is None:
            success = ended and reward > 0
        ended, cut = bool(ended), bool(cut)
        self._digest.update(_CAME.pack(reward, ended, cut))
        return self._shown(raw), reward, ended, cut, bool(success)

    def fingerprint(self) -> np.ndarray:
        """Return the SHA-256 of all that was shown since the reset, uint8[32]."""
        return np.frombuffer(self._digest.digest(), np.uint8)

    def _shown(self, raw: Any) -> dict[str, np.ndarray]:
        shown = {}
        for name, (_, dtype) in self.shapes.items():
            value = np.asarray(raw[name] if self._named else raw)
            self._digest.update(value.tobytes())
            # Floats where bytes are said stay what they are, for `HostRows` to refuse.
            same = value.dtype.kind == self._kinds[name]
            shown[name] = value.astype(dtype, copy=False) if same else value
        return shown


def _field(box: Any) -> str:
    return "image" if len(box.shape or ()) == 3 else "state"


def _stored(name: str, dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if name == "state" or dtype.kind == "f" else dtype


@functools.cache
def _versions(module: str) -> dict[str, str]:
    """Return {package: version} of gymnasium and the package of a module."""
    names = ["gymnasium"]
    if (top := module.partition(".")[0]) != "gymnasium":
        names += metadata.packages_distributions().get(top, [])
    return {name: metadata.version(name) for name in names}
