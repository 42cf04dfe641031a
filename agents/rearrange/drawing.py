"""The whole room drawn for people: receptacles, their contents and the agent."""

import cv2
import numpy as np

from agents.rearrange import glyphs, pictures
from agents.rearrange.environment import HAND, State
from agents.rearrange.goals import ORDERS
from agents.rearrange.words import DOORS, RECEPTACLES

_WIDE, _GAP = 112, 8  # pixels of a receptacle, and between two
_TOP, _HEIGHT = 46, 96  # of receptacles; the label is above
_FLOOR, _BOTTOM = 128, 236
_GLYPH = 4  # pixels of one of a glyph
_INK, _WOOD, _CLOTHES = (44, 50, 60), (186, 150, 112), (52, 84, 140)


def draw(state: State, tones: np.ndarray) -> np.ndarray:
    """Return uint8[236, 968, 3]. tones: of the objects; see `pictures.colours`."""
    scene = int(state.episode.scene)
    light = pictures.lights()[scene]
    wide = len(RECEPTACLES) * (_WIDE + _GAP) + _GAP
    canvas = np.empty((_BOTTOM, wide, 3), np.uint8)
    canvas[:] = _lit((236, 231, 221), light)
    canvas[_FLOOR:] = _lit(_WOOD, light)
    canvas[_FLOOR : _FLOOR + 2] = _lit((120, 94, 70), light)
    colours = np.stack([tones >> 16 & 255, tones >> 8 & 255, tones & 255], -1)
    for place, receptacle in enumerate(ORDERS[scene].tolist()):
        left = _GAP + place * (_WIDE + _GAP)
        _furniture(canvas, left, receptacle, state, light)
        _objects(canvas, left, receptacle, state, colours)
        if receptacle == state.agent:
            _agent(canvas, left + _WIDE // 2, state, colours)
    return canvas


def _lit(colour: tuple[int, ...] | np.ndarray, light: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(colour) * light, 0, 255).astype(np.uint8)


def _closed(state: State, receptacle: int) -> bool:
    return receptacle < DOORS and not state.open[receptacle]


def _furniture(
    canvas: np.ndarray, left: int, receptacle: int, state: State, light: np.ndarray
) -> None:
    main = pictures.COLOURS[receptacle]
    right, bottom = left + _WIDE, _TOP + _HEIGHT
    if receptacle >= DOORS:  # legs
        for at in (left + 8, right - 16):
            canvas[bottom : bottom + 14, at : at + 8] = _lit(0.5 * main, light)
    else:
        canvas[bottom : bottom + 6, left + 6 : right - 6] = _lit(0.5 * main, light)
    pattern = np.kron(pictures.patterns()[receptacle], np.ones((_GLYPH, _GLYPH), bool))
    pattern = pattern[:_HEIGHT, :_WIDE, None]
    canvas[_TOP:bottom, left:right] = np.where(
        pattern, _lit(0.72 * main, light), _lit(main, light)
    )
    _frame(canvas, left, _TOP, right - 1, bottom - 1)
    inside = np.s_[_TOP + 12 : bottom - 4, left + 4 : right - 4]
    if _closed(state, receptacle):
        canvas[inside] = _lit(0.85 * main, light)
        canvas[_TOP + 42 : _TOP + 66, right - 18 : right - 12] = _lit(0.3 * main, light)
    else:
        canvas[inside] = _lit(0.25 * main + 0.75 * 255, light)
    _frame(canvas, left + 4, _TOP + 12, right - 5, bottom - 5)
    _label(canvas, left, RECEPTACLES[receptacle])


def _frame(canvas: np.ndarray, *corners: int) -> None:
    left, top, right, bottom = corners
    cv2.rectangle(canvas, (left, top), (right, bottom), _INK, 1)


def _label(canvas: np.ndarray, left: int, name: str) -> None:
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.55
    (wide, _), _ = cv2.getTextSize(name, font, size, 1)
    at = (left + (_WIDE - wide) // 2, _TOP - 14)
    cv2.putText(canvas, name, at, font, size, _INK, 1, cv2.LINE_AA)


def _objects(
    canvas: np.ndarray,
    left: int,
    receptacle: int,
    state: State,
    colours: np.ndarray,
) -> None:
    """Draw the contents in the cells that the agent sees, faintly behind a door."""
    strength = 0.3 if _closed(state, receptacle) else 1.0
    for item in np.flatnonzero(state.places == receptacle):
        down, across = divmod(int(item), 3)
        at = _TOP + 16 + 38 * down, left + 6 + 34 * across
        _glyph(
            canvas, at, int(state.episode.categories[item]), colours[:, item], strength
        )


def _glyph(
    canvas: np.ndarray,
    at: tuple[int, int],
    category: int,
    tones: np.ndarray,
    strength: float = 1.0,
) -> None:
    drawn = np.kron(glyphs.OBJECTS[category], np.ones((_GLYPH, _GLYPH), np.uint8))
    part = canvas[at[0] : at[0] + 8 * _GLYPH, at[1] : at[1] + 8 * _GLYPH]
    ink = tones[np.maximum(drawn, 1) - 1]
    mixed = strength * ink + (1 - strength) * part
    part[:] = np.where(drawn[..., None] > 0, mixed, part)


def _agent(canvas: np.ndarray, middle: int, state: State, colours: np.ndarray) -> None:
    top = _TOP + _HEIGHT + 22
    cv2.ellipse(canvas, (middle, _BOTTOM - 10), (22, 5), 0, 0, 360, (120, 96, 74), -1)
    body = [(middle - 8, top + 20), (middle + 8, top + 20)]
    body += [(middle + 17, _BOTTOM - 12), (middle - 17, _BOTTOM - 12)]
    cv2.fillPoly(canvas, [np.array(body, np.int32)], _CLOTHES, cv2.LINE_AA)
    cv2.circle(canvas, (middle, top + 12), 12, (232, 190, 158), -1, cv2.LINE_AA)
    cv2.ellipse(canvas, (middle, top + 8), (12, 8), 0, 180, 360, (70, 48, 38), -1)
    held = np.flatnonzero(state.places == HAND)
    if len(held):
        item, centre = int(held[0]), (middle + 40, top + 30)
        cv2.line(canvas, (middle + 8, top + 34), (middle + 24, top + 32), _CLOTHES, 6)
        cv2.circle(canvas, centre, 24, (252, 252, 252), -1, cv2.LINE_AA)
        cv2.circle(canvas, centre, 24, _INK, 1, cv2.LINE_AA)
        at = centre[1] - 16, centre[0] - 16
        _glyph(canvas, at, int(state.episode.categories[item]), colours[:, item])
