"""One name for each game, whatever library spelt it.

`PongNoFrameskip-v4` and `Pong-ram-v0` of gym, `ALE/Pong-v5` of gymnasium, the folder
`Pong` of DQN Replay, and `pong` of ale-py name the same game, here `pong`.
"""

import difflib
import re

from polyview.errors import InputError

# The games that ale-py 0.12.1 loads, under its own names.
NAMES = tuple(
    """
    adventure air_raid alien amidar assault asterix asteroids atlantis atlantis2
    backgammon bank_heist basic_math battle_zone beam_rider berzerk blackjack bowling
    boxing breakout carnival casino centipede chopper_command crazy_climber crossbow
    darkchambers defender demon_attack donkey_kong double_dunk earthworld
    elevator_action enduro entombed et fishing_derby flag_capture freeway frogger
    frostbite galaxian gopher gravitar hangman haunted_house hero human_cannonball
    ice_hockey jamesbond journey_escape kaboom kangaroo keystone_kapers king_kong klax
    koolaid krull kung_fu_master laser_gates lost_luggage mario_bros miniature_golf
    montezuma_revenge mr_do ms_pacman name_this_game othello pacman phoenix pitfall
    pitfall2 pong pooyan private_eye qbert riverraid road_runner robotank seaquest
    sir_lancelot skiing solaris space_invaders space_war star_gunner superman surround
    tennis tetris tic_tac_toe_3d time_pilot trondead turmoil tutankham up_n_down venture
    video_checkers video_chess video_cube video_pinball wizard_of_wor word_zapper
    yars_revenge zaxxon
    """.split()
)
# Its ROMs of games for two players; to load one ends the process.
TWO_PLAYERS = ("combat", "joust", "maze_craze", "warlords")

_GYM = re.compile(
    r"(?:ALE/)?(.+?)(?:-ram)?(?:Deterministic|NoFrameskip)?(?:-v\d+)?", re.IGNORECASE
)


def canonical_name(text: str) -> str:
    """Return ale-py's name of a game, `ms_pacman` for `ALE/MsPacman-v5`.

    Case and punctuation do not matter. What else a name of gym says, as sticky actions
    or the frame skip, has no effect. Raises InputError, with the nearest names, for an
    unknown game and one for two players.
    """
    letters = {name.replace("_", ""): name for name in (*NAMES, *TWO_PLAYERS)}
    match = _GYM.fullmatch(str(text).strip())
    wanted = "".join(filter(str.isalnum, match[1] if match else "")).lower()
    name = letters.get(wanted)
    if name in NAMES:
        return name
    if name is not None:
        raise InputError(
            f"{name} is a game for two players, which the emulator cannot load; "
            f"{_nearest(wanted, cutoff=0.4)}"
        )
    raise InputError(f"there is no game '{text}'; {_nearest(wanted, cutoff=0.6)}")


def _nearest(wanted: str, cutoff: float) -> str:
    letters = {name.replace("_", ""): name for name in NAMES}
    matches = difflib.get_close_matches(wanted, letters, n=3, cutoff=cutoff)
    if not matches:
        return "games are spelt as in ms_pacman, pong, breakout"
    return f"the nearest: {', '.join(letters[match] for match in matches)}"
