"""Furniture, each piece in its own frame: x along its front, y up from the floor, z from its back.

Sizes are those of the shops; every size, count and material varies. Materials come from one distribution for
all classes, so that color alone does not tell what a surface is; patterns, shapes and places do.
"""

from __future__ import annotations

import math

from nyuv2.data.belongings import clutter, lamp, lying_books, row_of_books, thing
from nyuv2.data.parts import BED, BOARD, CHAIR, CLOTH, FURNITURE, OBJECTS, SOFA, TABLE, TV, Piece
from nyuv2.data.raycast import CYLINDER, ELLIPSOID
from nyuv2.data.textures import Pattern


def bed(p: Piece) -> None:
    width, length, height = p.between(0.95, 1.9), p.between(1.9, 2.15), p.between(0.4, 0.65)
    frame = p.between(0.15, 0.3)
    p.add(BED, (0, 0, length / 2), (width, frame, length), p.material(*BOARD))
    cover = p.material(*CLOTH, period=0.2)
    p.add(BED, (0, frame, length / 2), (width - 0.04, height - frame, length - 0.04), cover)
    if p.chance(0.7):
        p.add(BED, (0, 0, -0.04), (width + 0.06, p.between(0.85, 1.3), 0.07), p.material(*BOARD))
    if p.chance(0.6):  # a blanket over the lower half
        part = length * p.between(0.35, 0.7)
        blanket = p.material(*CLOTH, period=0.25)
        p.add(BED, (0, frame + 0.02, length - part / 2), (width + 0.03, height - frame + 0.02, part), blanket)
    pillow = p.material(*CLOTH)
    for side in (-1, 1) if width > 1.3 else (0,):
        size = (p.between(0.5, 0.65), p.between(0.14, 0.22), p.between(0.32, 0.45))
        at = (side * width / 4, height - 0.03, p.between(0.22, 0.35))
        p.add(OBJECTS, at, size, pillow, shape=ELLIPSOID, yaw=p.between(-0.2, 0.2))
    clutter(p, (width * 0.4, length * 0.5, length * 0.9), height + 0.02, p.below(3))


def sofa(p: Piece) -> None:
    seats = 1 + p.below(3)
    arm, depth = p.between(0.12, 0.25), p.between(0.8, 0.95)
    width = seats * p.between(0.55, 0.68) + 2 * arm
    seat, back = p.between(0.38, 0.46), p.between(0.75, 0.95)
    cloth = p.material(*CLOTH, period=0.1)
    p.add(SOFA, (0, 0.05, depth / 2), (width, seat - 0.17, depth), cloth)
    p.add(SOFA, (0, 0.1, 0.11), (width, back - 0.1, 0.22), cloth, pitch=-0.08)
    cushion = cloth if p.chance(0.7) else p.material(*CLOTH)
    each = (width - 2 * arm) / seats
    for i in range(seats):
        x = -width / 2 + arm + (i + 0.5) * each
        p.add(SOFA, (x, seat - 0.13, depth / 2 + 0.1), (each - 0.02, 0.15, depth - 0.22), cushion)
        p.add(SOFA, (x, seat, 0.27), (each - 0.03, back - seat - 0.03, 0.16), cushion, pitch=-0.15)
    for side in (-1, 1):
        size = (arm, seat + p.between(0.1, 0.2), depth)
        p.add(SOFA, (side * (width - arm) / 2, 0.05, depth / 2), size, cloth)
    for _ in range(p.below(3)):  # throw pillows
        at = (p.between(-0.35, 0.35) * width, seat, 0.42)
        pillow = p.material(*CLOTH)
        p.add(OBJECTS, at, (0.42, 0.38, 0.14), pillow, shape=ELLIPSOID, pitch=-0.3, yaw=p.between(-0.4, 0.4))


def chair(p: Piece) -> None:
    width, depth, seat = p.between(0.4, 0.52), p.between(0.4, 0.5), p.between(0.42, 0.5)
    top = p.between(0.8, 1.05)
    cloth, frame = p.material(*CLOTH, *BOARD, period=0.08), p.material(*BOARD)
    p.add(CHAIR, (0, seat - 0.06, depth / 2), (width, p.between(0.04, 0.1), depth), cloth)
    if p.chance(0.5):  # a closed back, or a back of bars
        p.add(CHAIR, (0, seat + 0.06, 0.02), (width, top - seat - 0.06, 0.05), cloth, pitch=-0.12)
    else:
        for side in (-1, 1):
            at = (side * (width / 2 - 0.03), seat, 0.02)
            p.add(CHAIR, at, (0.04, top - seat, 0.04), frame, pitch=-0.1)
        for i in range(2 + p.below(2)):
            at = (0, seat + 0.13 + 0.13 * i, 0.01)
            p.add(CHAIR, at, (width - 0.04, 0.06, 0.025), frame, pitch=-0.1)
    if p.chance(0.35):  # an office chair: a column on a star
        p.add(CHAIR, (0, 0.05, depth / 2), (0.07, seat - 0.1, 0.07), frame, shape=CYLINDER)
        for turn in (0.3, 1.35, 2.4):
            p.add(CHAIR, (0, 0.02, depth / 2), (0.58, 0.05, 0.06), frame, yaw=turn)
    else:
        p.legs(CHAIR, (width, depth), seat - 0.05, 0.04)
    if p.chance(0.3):
        for side in (-1, 1):
            x = side * width / 2
            p.add(CHAIR, (x, seat + 0.18, depth / 2), (0.05, 0.04, depth * 0.8), frame)
            p.add(CHAIR, (x, seat - 0.02, depth * 0.8), (0.04, 0.2, 0.04), frame)


def table(p: Piece) -> None:
    """A dining table with some of its chairs, rectangular, or round on a column."""
    height, board = p.between(0.7, 0.78), p.between(0.025, 0.06)
    seats: tuple[float, ...] = (0.0,)
    if p.chance(0.25):
        width = depth = p.between(0.8, 1.3)
        top, foot = p.material(*BOARD), p.material(*BOARD)
        p.add(TABLE, (0, height - board, depth / 2), (width, board, depth), top, shape=CYLINDER)
        p.add(TABLE, (0, 0, depth / 2), (0.12, height - board, 0.12), foot, shape=CYLINDER)
        p.add(TABLE, (0, 0, depth / 2), (0.5, 0.04, 0.5), foot, shape=CYLINDER)
        reach, margin = width * 0.3, depth * 0.25
    else:
        width, depth = p.between(1.0, 2.0), p.between(0.7, 1.0)
        p.add(TABLE, (0, height - board, depth / 2), (width, board, depth), p.material(*BOARD, Pattern.CHECKS))
        p.legs(TABLE, (width, depth), height - board, p.between(0.05, 0.09))
        reach, margin = width * 0.45, depth * 0.1
        if width > 1.3:
            seats = (-width / 4, width / 4)
    clutter(p, (reach, margin, depth - margin), height, 1 + p.below(4))
    for x in seats:
        if p.chance(0.5):
            p.join(chair, (x, -p.between(0.2, 0.45)), p.between(-0.2, 0.2))
        if p.chance(0.5):
            p.join(chair, (x, depth + p.between(0.2, 0.45)), math.pi + p.between(-0.2, 0.2))


def coffee_table(p: Piece) -> None:
    width, depth, height = p.between(0.7, 1.3), p.between(0.45, 0.7), p.between(0.35, 0.5)
    p.add(TABLE, (0, height - 0.05, depth / 2), (width, 0.05, depth), p.material(*BOARD))
    if p.chance(0.4):
        p.add(TABLE, (0, 0.1, depth / 2), (width - 0.1, 0.03, depth - 0.1), p.material(*BOARD))
    p.legs(TABLE, (width, depth), height - 0.05, 0.06)
    clutter(p, (width * 0.45, depth * 0.1, depth * 0.9), height, 1 + p.below(3))


def desk(p: Piece) -> None:
    """A desk with what stands on it, and mostly its chair."""
    width, depth, height = p.between(1.0, 1.7), p.between(0.55, 0.8), p.between(0.7, 0.78)
    board = p.material(*BOARD)
    p.add(TABLE, (0, height - 0.04, depth / 2), (width, 0.04, depth), board)
    if p.chance(0.6):
        drawers = p.material(Pattern.DRAWERS, period=0.2)
        p.add(TABLE, (width / 2 - 0.22, 0, depth / 2), (0.4, height - 0.04, depth - 0.06), drawers)
        p.add(TABLE, (-width / 2 + 0.03, 0, depth / 2), (0.04, height - 0.04, depth - 0.04), board)
    else:
        p.legs(TABLE, (width, depth), height - 0.04, 0.05)
    if p.chance(0.6):  # a monitor and a keyboard
        x, wide = p.between(-0.1, 0.2) * width, p.between(0.42, 0.6)
        p.add(OBJECTS, (x, height + 0.08, depth * 0.3), (wide, wide * 0.62, 0.04), p.material(Pattern.SCREEN))
        p.add(OBJECTS, (x, height, depth * 0.28), (0.2, 0.1, 0.12), p.material(Pattern.PLAIN))
        p.add(OBJECTS, (x, height, depth * 0.75), (0.42, 0.025, 0.14), p.material(Pattern.GRID, period=0.03))
    row_of_books(p, (-width * 0.33, height, depth * 0.25), p.between(0.15, 0.4), 0.3)
    clutter(p, (width * 0.45, depth * 0.15, depth * 0.85), height, 1 + p.below(4))
    if p.chance(0.7):
        p.join(chair, (p.between(-0.2, 0.2), depth + p.between(0.2, 0.5)), math.pi + p.between(-0.4, 0.4))


def wardrobe(p: Piece) -> None:
    size = (p.between(0.8, 1.8), p.between(1.5, 2.1), p.between(0.45, 0.65))
    doors = p.material(Pattern.DRAWERS, Pattern.GRID, Pattern.WOOD, period=0.5)
    p.add(FURNITURE, (0, 0, size[2] / 2), size, doors)


def dresser(p: Piece) -> None:
    width, height, depth = p.between(0.6, 1.5), p.between(0.6, 1.2), p.between(0.4, 0.55)
    drawers = p.material(Pattern.DRAWERS, Pattern.DRAWERS, Pattern.GRID, period=0.3)
    p.add(FURNITURE, (0, 0, depth / 2), (width, height, depth), drawers)
    p.add(FURNITURE, (0, height, depth / 2), (width + 0.04, 0.03, depth + 0.03), p.material(*BOARD))
    if p.chance(0.5):
        at = (p.between(-0.2, 0.2) * width, height + 0.03, depth * 0.4)
        row_of_books(p, at, p.between(0.2, 0.5), 0.3)
    clutter(p, (width * 0.45, depth * 0.15, depth * 0.85), height + 0.03, p.below(5))


def counter(p: Piece) -> None:
    width, height, depth = p.between(1.4, 2.8), p.between(0.85, 0.95), p.between(0.55, 0.65)
    fronts = p.material(Pattern.DRAWERS, period=0.5)
    p.add(FURNITURE, (0, 0, depth / 2), (width, height - 0.04, depth - 0.03), fronts)
    p.add(FURNITURE, (0, height - 0.04, depth / 2), (width, 0.04, depth), p.material(*BOARD))
    if p.chance(0.7):
        upper = p.material(Pattern.DRAWERS, Pattern.GRID, period=0.5)
        at = (0, height + p.between(0.45, 0.6), 0.17)
        p.add(FURNITURE, at, (width, p.between(0.5, 0.75), 0.34), upper)
    clutter(p, (width * 0.45, depth * 0.3, depth * 0.85), height, 2 + p.below(5))


def night_stand(p: Piece) -> None:
    width, height, depth = p.between(0.4, 0.55), p.between(0.45, 0.65), p.between(0.35, 0.45)
    fronts = p.material(Pattern.DRAWERS, *BOARD, period=0.2)
    p.add(FURNITURE, (0, 0, depth / 2), (width, height, depth), fronts)
    if p.chance(0.8):
        lamp(p, (p.between(-0.1, 0.1), height, depth * 0.4), p.between(0.35, 0.55))
    if p.chance(0.5):
        lying_books(p, (p.between(-0.08, 0.08), height, depth * 0.7))


def shelf(p: Piece) -> None:
    """An open bookcase: two sides, a back, boards, and rows of books and things on them."""
    width, height, depth = p.between(0.7, 1.5), p.between(1.0, 2.1), p.between(0.26, 0.38)
    board = p.material(*BOARD)
    for side in (-1, 1):
        p.add(FURNITURE, (side * (width / 2 - 0.015), 0, depth / 2), (0.03, height, depth), board)
    p.add(FURNITURE, (0, 0, 0.01), (width - 0.06, height, 0.02), board)
    levels = max(2, round(height / p.between(0.34, 0.45)))
    step = (height - 0.03) / levels
    for level in range(levels + 1):
        p.add(FURNITURE, (0, level * step, depth / 2 + 0.005), (width - 0.06, 0.03, depth - 0.02), board)
        if level == levels:
            break
        left, right, floor = -width / 2 + 0.05, width / 2 - 0.05, level * step + 0.03
        if p.chance(0.75):
            filled = p.between(0.3, 1.0) * (right - left)
            row_of_books(p, (left + filled / 2, floor, depth * 0.55), filled, step - 0.07)
            left += filled + 0.04
        if right - left > 0.2 and p.chance(0.7):
            thing(p, ((left + right) / 2, floor, depth * 0.55), min(0.8, (step - 0.06) / 0.35))


def tv_stand(p: Piece) -> None:
    width, height, depth = p.between(0.9, 1.7), p.between(0.4, 0.6), p.between(0.38, 0.5)
    fronts = p.material(Pattern.DRAWERS, *BOARD, period=0.4)
    p.add(FURNITURE, (0, 0, depth / 2), (width, height, depth), fronts)
    wide = min(p.between(0.7, 1.25), width * 0.95)
    thick = p.between(0.05, 0.1) if p.chance(0.7) else p.between(0.3, 0.36)  # a flat one, or a tube
    screen = p.material(Pattern.SCREEN, glow=p.between(0.1, 0.6) if p.chance(0.4) else 0.0)
    p.add(TV, (0, height + 0.05, depth * 0.5), (wide, wide * p.between(0.56, 0.7), thick), screen)
    p.add(TV, (0, height, depth * 0.5), (wide * 0.4, 0.06, 0.2), p.material(Pattern.PLAIN))


def floor_lamp(p: Piece) -> None:
    stand, height = p.material(Pattern.PLAIN), p.between(1.3, 1.7)
    p.add(OBJECTS, (0, 0, 0.15), (0.28, 0.03, 0.28), stand, shape=CYLINDER)
    p.add(OBJECTS, (0, 0, 0.15), (0.03, height, 0.03), stand, shape=CYLINDER)
    shade = p.material(Pattern.PLAIN, Pattern.STRIPES, glow=p.between(0.0, 0.9))
    p.add(OBJECTS, (0, height - 0.05, 0.15), (0.36, 0.3, 0.36), shade, shape=CYLINDER)


def plant(p: Piece) -> None:
    p.add(OBJECTS, (0, 0, 0.18), (0.3, 0.3, 0.3), p.material(*BOARD), shape=CYLINDER)
    leaves, tall = p.material(Pattern.BLOTCHES, period=0.06), p.between(0.5, 1.1)
    for _ in range(5):
        at = (p.between(-0.12, 0.12), p.between(0.2, 0.4) * tall, p.between(0.06, 0.3))
        size = (p.between(0.1, 0.3), tall * p.between(0.5, 0.9), p.between(0.08, 0.25))
        turn, lean = p.between(0, math.pi), p.between(-0.5, 0.5)
        p.add(OBJECTS, at, size, leaves, shape=ELLIPSOID, yaw=turn, pitch=lean)


def things_on_the_floor(p: Piece) -> None:
    for i in range(1 + p.below(3)):
        at = (0.45 * i, 0.0, p.between(0.1, 0.4))
        if p.chance(0.2):
            lying_books(p, at)
        else:
            thing(p, at, p.between(0.8, 1.8))
