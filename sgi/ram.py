"""RAM addresses of the positions of moving objects, for each game.

Facts published by Anand et al. 2019 (AtariARI, the table in the authors' code), without
its other variables, such as scores, clocks and directions. A byte may be offset or
inverted relative to the picture, and does not change while its object is absent. For
`SEEN`, and for the player of Seaquest, we have checked that the bytes follow the
screen; the others are as published.
"""

SEEN = ("boxing", "breakout", "pong")

ADDRESSES = {
    "asteroids": {"player_x": 73, "player_y": 74},
    "berzerk": {"player_x": 19, "player_y": 11},
    "bowling": {"player_x": 29, "player_y": 40, "ball_x": 30, "ball_y": 41},
    "boxing": {"player_x": 32, "player_y": 34, "enemy_x": 33, "enemy_y": 35},
    "breakout": {"player_x": 72, "ball_x": 99, "ball_y": 101},
    "demon_attack": {
        "player_x": 22,
        "enemy_x1": 17,
        "enemy_x2": 18,
        "enemy_x3": 19,
        "enemy_y1": 69,
        "enemy_y2": 70,
        "enemy_y3": 71,
        "missile_y": 21,
    },
    "freeway": {"player_y": 14} | {f"enemy_car_x{n}": 107 + n for n in range(1, 11)},
    "frostbite": {"player_x": 102, "player_y": 100, "enemy_bear_x": 104},
    "hero": {"player_x": 27, "player_y": 31},
    "montezuma_revenge": {
        "player_x": 42,
        "player_y": 43,
        "enemy_skull_x": 47,
        "enemy_skull_y": 46,
    },
    "ms_pacman": {
        "player_x": 10,
        "player_y": 16,
        "enemy_sue_x": 6,
        "enemy_sue_y": 12,
        "enemy_inky_x": 7,
        "enemy_inky_y": 13,
        "enemy_pinky_x": 8,
        "enemy_pinky_y": 14,
        "enemy_blinky_x": 9,
        "enemy_blinky_y": 15,
        "fruit_x": 11,
        "fruit_y": 17,
    },
    "pitfall": {"player_x": 97, "player_y": 105, "enemy_logs_x": 98},
    "pong": {
        "player_x": 46,
        "player_y": 51,
        "enemy_x": 45,
        "enemy_y": 50,
        "ball_x": 49,
        "ball_y": 54,
    },
    "private_eye": {"player_x": 63, "player_y": 86, "dove_x": 48, "dove_y": 39},
    "qbert": {"player_x": 43, "player_y": 67},
    "riverraid": {"player_x": 51, "missile_x": 117, "missile_y": 50},
    "seaquest": {"player_x": 70, "player_y": 97, "player_missile_x": 103},
    "skiing": {"player_x": 25},
    "space_invaders": {"player_x": 28, "enemies_x": 26, "enemies_y": 24},
    "tennis": {
        "player_x": 26,
        "player_y": 24,
        "enemy_x": 27,
        "enemy_y": 25,
        "ball_x": 16,
        "ball_y": 17,
    },
    "venture": {"player_x": 85, "player_y": 26},
    "video_pinball": {"ball_x": 67, "ball_y": 68},
    "yars_revenge": {
        "player_x": 32,
        "player_y": 31,
        "enemy_qotile_x": 43,
        "enemy_qotile_y": 42,
    },
}
