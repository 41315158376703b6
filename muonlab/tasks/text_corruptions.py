"""What may happen to text, as functions of how often: bytes (B, T) of any integer type, whose number stays T.

Each takes the bytes, a rate, and a source of random numbers: `uniform(n)` gives n of them in (0, 1) for every text,
float64. What leaves a text is made up for by spaces at its end; what does not fit is cut off there.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["deleted", "dropped", "inserted", "masked", "mistyped", "swapped"]

Uniform = Callable[[int], Tensor]  # numbers per text -> (B, that many) float64

SPACE = 0x20
WHITE = (0x20, 0x09, 0x0A, 0x0D)
MASK = ord("_")  # a byte that models of text know, and that means nothing by itself
LETTERS = (0x61, 26)
KEYBOARD = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")


def swapped(text: Tensor, rate: float, uniform: Uniform) -> Tensor:
    """Neighbours change places: a byte is moved with this probability, but for the first and the last."""
    draws, length = uniform(text.shape[1] + 1), text.shape[1]
    place = torch.arange(length)
    odd = (draws[:, :1] < 0.5).long()  # which of the two ways to pair neighbours
    first = place - (place + odd) % 2
    hit = draws[:, 1:].gather(1, first.clamp(min=0)) < rate
    inside = (first >= 0) & (first + 1 < length)
    source = torch.where(hit & inside, 2 * first + 1 - place, place)
    return text.gather(1, source.to(text.device))


def deleted(text: Tensor, rate: float, uniform: Uniform) -> Tensor:
    """Each byte with this probability."""
    return _without(text, uniform(text.shape[1]) < rate)


def inserted(text: Tensor, rate: float, uniform: Uniform) -> Tensor:
    """Before each byte, with this probability, a small letter."""
    length = text.shape[1]
    draws = uniform(2 * length)
    new = draws[:, :length] < rate
    place = torch.arange(length) + new.cumsum(1)  # of each byte in the longer text
    letters = LETTERS[0] + (draws[:, length:] * LETTERS[1]).long()
    longer = torch.empty(len(text), 2 * length, dtype=torch.int64)
    longer.scatter_(1, (place - 1).clamp(min=0), letters)  # where nothing is new, the byte before covers it
    longer.scatter_(1, place, text.cpu().long())
    return longer[:, :length].to(text)


def mistyped(text: Tensor, rate: float, uniform: Uniform) -> Tensor:
    """Letters and digits become a neighbour on a keyboard, left or right, with this probability; case is kept."""
    length = text.shape[1]
    draws = uniform(2 * length)
    side = (draws[:, length:] < 0.5).long()
    typed = _neighbours()[text.cpu().long(), side]
    return torch.where((draws[:, :length] < rate).to(text.device), typed.to(text), text)


def dropped(text: Tensor, rate: float, uniform: Uniform) -> Tensor:
    """Each word with the white space after it, with this probability."""
    white = torch.isin(text.cpu(), torch.tensor(WHITE, dtype=text.dtype))
    before = torch.cat((torch.ones(len(text), 1, dtype=torch.bool), white[:, :-1]), dim=1)
    word = (~white & before).cumsum(1)  # which word each byte belongs to, from 1; 0 = white space at the start
    draws = torch.cat((torch.ones(len(text), 1, dtype=torch.float64), uniform(text.shape[1])), dim=1)
    return _without(text, draws.gather(1, word) < rate)


def masked(text: Tensor, rate: float, uniform: Uniform) -> Tensor:
    """Each byte becomes `_` with this probability."""
    return text.masked_fill((uniform(text.shape[1]) < rate).to(text.device), MASK)


def _without(text: Tensor, gone: Tensor) -> Tensor:
    """The bytes that stay, moved together."""
    order = gone.long().argsort(dim=1, stable=True)
    place, kept = torch.arange(text.shape[1]), (~gone).sum(1, keepdim=True)
    moved = text.gather(1, order.to(text.device))
    return moved.masked_fill((place >= kept).to(text.device), SPACE)


def _neighbours() -> Tensor:
    """Byte -> the keys to its left and to its right, at an end the one that there is: (256, 2)."""
    found = torch.arange(256)[:, None].repeat(1, 2)
    for row in (row for line in KEYBOARD for row in {line, line.upper()}):
        for place, key in enumerate(row):
            sides = (row[place - 1] if place else row[1], row[place + 1] if place + 1 < len(row) else row[-2])
            found[ord(key)] = torch.tensor([ord(side) for side in sides])
    return found
