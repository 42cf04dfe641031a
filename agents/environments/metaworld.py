"""Tasks of Meta-World (Yu et al. 2019, version 3): a robot's arm at a table.

    state   float32[39]                hand, gripper, and positions and rotations of two
                                       objects, now and one step before, and the goal
    image   uint8[pixels, pixels, 3]   a picture from a corner, if asked for

An action is the motion of the hand along three axes and the force of the gripper, each
in [-1, 1]. Where goal and objects are follows from the seed. Meta-World shows or hides
the goal, by benchmark: here it is in the state, as in its multi-task ones, since who
imitates an expert that sees it must see it too.
"""

import ctypes.util
import importlib
import os
import sys
import warnings
import weakref
from importlib import metadata
from typing import Any

import numpy as np

from agents.environments.worlds import Observation
from polyview.errors import InputError, nearest
from polyview.rl import episodes
from polyview.rl.environment import Outcome

# Of those not listed, the words of the name are the instruction.
INSTRUCTIONS = {
    "reach": "move the gripper to the goal",
    "push": "push the block to the goal",
    "pick-place": "pick up the block and bring it to the goal",
    "drawer-open": "open the drawer",
    "drawer-close": "close the drawer",
    "button-press": "press the button from the front",
    "button-press-topdown": "press the button from above",
    "coffee-button": "press the button of the coffee machine",
    "door-open": "open the door",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-unlock": "unlock the door",
    "window-open": "open the window",
    "window-close": "close the window",
    "faucet-open": "open the faucet",
    "faucet-close": "close the faucet",
    "plate-slide": "slide the plate into the goal",
    "peg-insert-side": "insert the peg into the hole from the side",
    "dial-turn": "turn the dial",
    "lever-pull": "pull the lever up",
    "handle-press": "press the handle down",
    "handle-pull": "pull the handle up",
    "sweep-into": "sweep the block into the hole",
    "box-close": "put the lid on the box",
    "hammer": "hammer the nail into the wall",
}
BOX = (4, -1.0, 1.0)
_VERSION = "-v3"
_CAMERA, _PLACE = "corner2", (0.75, 0.075, 0.7)  # nearer than its own
_TO_DRAW = (
    "set MUJOCO_GL to egl or osmesa, and install that library (libegl1, libosmesa6)"
)
_UNUSED = {"_last_stable_obs"}  # a field of tasks: each step writes it before it reads
_FILM = 480  # pixels; no more than Meta-World's models allow


class MetaWorld(episodes.Episodes):
    """A task of Meta-World; see `agents.environments.worlds:World`.

    Args:
      task: its name, such as reach-v3; see `tasks`.
      reward: see `agents.environments.worlds`. The dense one is Meta-World's own, 0 to
        10 a step; then success does not end the episode: only the limit does.
      pixels: see `agents.environments.worlds:world`.

    An action outside the box is clipped to it, as Meta-World does.
    """

    kind = "metaworld"

    def __init__(self, task: str, *, reward: str = "success", pixels: int = 0):
        super().__init__(dense=reward == "dense")
        episodes.check_pixels(pixels, _FILM)
        known = tasks()
        if task not in known:
            raise InputError(f"Meta-World has no task '{task}'{nearest(task, known)}")
        self.environment: Any = known[task]()
        self._show_goal()
        self.environment.model.camera(_CAMERA).pos[:] = _PLACE
        self.name = f"metaworld:{task}"
        self.instruction = instruction(task)
        self.actions: tuple[str, ...] | None = None
        self.box: tuple[int, float, float] | None = BOX
        self.shapes: dict[str, tuple[int, ...]] = {"state": (39,)}
        if pixels:
            self.shapes["image"] = (pixels, pixels, 3)
        packages = ("metaworld", "mujoco")
        self.versions = {name: metadata.version(name) for name in packages}
        self.limit = int(self.environment.max_path_length)
        self._pixels = pixels
        self._renderers: dict[int, Any] = {}
        self.reset(0)

    def step(self, action: np.ndarray) -> Outcome:
        """Take an action, float[4]. Raises InputError for other shapes, and for NaN."""
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise InputError(f"{self.name} takes 4 finite numbers, not {action}")
        action = np.clip(action, *BOX[1:])
        raw, own, _, cut, information = self.environment.step(action)
        self.arrived = self._observed(raw)
        self.success = information["success"] >= 1
        return self._outcome(own, cut or self.success and not self._dense)

    def legal(self) -> None:
        """Return None: actions are continuous."""

    def fingerprint(self) -> np.ndarray:
        """Return the SHA-256 of all that determines what happens next, uint8[32]."""
        own, mujoco = self.environment, importlib.import_module("mujoco")
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        simulated = np.empty(mujoco.mj_stateSize(own.model, kind))
        mujoco.mj_getState(own.model, own.data, simulated, kind)
        plain = (bool, int, float, str, tuple, np.ndarray, np.generic)
        fields = {k: v for k, v in vars(own).items() if isinstance(v, plain)}
        # Tasks move parts of their model.
        places = (own.model.body_pos, own.model.body_quat, own.model.site_pos)
        return episodes.fingerprint(
            self._seed,
            self._episode,
            self._score,
            simulated,
            places,
            {name: fields[name] for name in fields.keys() - _UNUSED},
            own.np_random.bit_generator.state,
        )

    def render(self) -> np.ndarray:
        """Draw the table from a corner, uint8[480, 480, 3].

        Raises InputError if MuJoCo cannot draw on this machine.
        """
        return self._drawn(_FILM)

    def _show_goal(self) -> None:
        own = self.environment
        own._set_task_called = True  # it need not be one of a benchmark's 50
        own._freeze_rand_vec, own.seeded_rand_vec = False, True
        own._partially_observable = False
        del own.sawyer_observation_space  # its bounds would clip the goal to 0

    def _begin(self) -> None:
        self.environment.seed(episodes.seed_of(self._seed, self._episode))
        raw, _ = self.environment.reset()
        self._score, self._steps = 0.0, 0
        self.observation = self._observed(raw)

    def _observed(self, raw: np.ndarray) -> Observation:
        state = raw.astype(np.float32)
        observation: Observation = {"state": state, "instruction": self.instruction}
        if self._pixels:
            observation["image"] = self._drawn(self._pixels)
        return observation

    def _drawn(self, pixels: int) -> np.ndarray:
        if pixels not in self._renderers:
            self._renderers[pixels] = _renderer(self.environment.model, pixels)
            # At exit, OpenGL would be gone before it.
            weakref.finalize(self, self._renderers[pixels].close)
        renderer = self._renderers[pixels]
        renderer.update_scene(self.environment.data, camera=_CAMERA)
        # The camera hangs upside down.
        return np.ascontiguousarray(renderer.render()[::-1, ::-1])


def tasks() -> dict[str, Any]:
    """Return {name: class} of all tasks. Raises InputError without Meta-World."""
    _choose_drawing()
    try:
        module = importlib.import_module("metaworld.env_dict")
    except ImportError as error:
        raise InputError(
            f"metaworld is needed for Meta-World ({error}): pip install '.[metaworld]'"
        ) from error
    except (AttributeError, RuntimeError) as error:
        if "MUJOCO_GL" not in os.environ:
            raise
        raise InputError(
            f"MuJoCo cannot be imported with MUJOCO_GL={os.environ['MUJOCO_GL']} "
            f"({error}); {_TO_DRAW}, or unset it"
        ) from error
    return dict(module.ALL_V3_ENVIRONMENTS)


def instruction(task: str) -> str:
    """Return the instruction of a task, a short sentence."""
    name = task.removesuffix(_VERSION)
    return INSTRUCTIONS.get(name, name.replace("-", " "))


def _renderer(model: Any, pixels: int) -> Any:
    kind = importlib.import_module("mujoco").Renderer
    renderer = kind.__new__(kind)
    # Should it fail, it would look for these when it is deleted.
    renderer._gl_context = renderer._mjr_context = None
    try:
        with warnings.catch_warnings(action="ignore"):
            renderer.__init__(model, pixels, pixels)
    except Exception as error:  # each way to draw fails in its own manner
        way = os.environ.get("MUJOCO_GL") or "glfw"
        raise InputError(
            f"MuJoCo cannot draw with {way} ({error}); {_TO_DRAW}"
        ) from error
    return renderer


def _choose_drawing() -> None:
    """Let MuJoCo draw without a display, unless the user chose; it reads it once."""
    chosen = "MUJOCO_GL" in os.environ or "DISPLAY" in os.environ
    if chosen or "mujoco" in sys.modules or sys.platform != "linux":
        return
    for way, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = way
            return
