"""Where games keep the places of what moves on the screen: addresses of their memory.

Facts, published by Anand et al. 2019 (AtariARI). Here stand those that we have seen
follow the screen in recorded play; a byte may be offset, or upside down, against the
picture, and it rests while its object is away.
"""

ADDRESSES = {
    "boxing": {"player_x": 32, "player_y": 34, "enemy_x": 33, "enemy_y": 35},
    "breakout": {"player_x": 72, "ball_x": 99, "ball_y": 101},
    "pong": {
        "player_x": 46,
        "player_y": 51,
        "enemy_x": 45,
        "enemy_y": 50,
        "ball_x": 49,
        "ball_y": 54,
    },
}
