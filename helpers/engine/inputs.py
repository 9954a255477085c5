"""What callers give, in the one form that the code works with, or refused in a sentence."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers import InputError

if TYPE_CHECKING:
    from torch import Tensor


def as_list(given: Any) -> Any:
    """An array, a tensor, a column of a table or what gives one after the other as a list; a lone number as it is."""
    if isinstance(given, Iterator):
        return list(given)
    return given.tolist() if hasattr(given, "tolist") else given


def as_tensor(given: Any, what: str) -> Tensor:
    """Numbers in any form as a tensor; a tensor stays what it is."""
    import torch

    try:
        found = given if isinstance(given, torch.Tensor) else torch.as_tensor(np.asarray(as_list(given)))
        if found.is_complex():
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{what} {' '.join(str(given).split())[:60]}: legal are real numbers") from None
    return found


def is_row(given: Any) -> bool:
    """Whether something holds others in an order: a list, a tuple, a range; not a text, a set or a mapping."""
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)


def as_whole(number: Any) -> int:
    """Also numpy's and torch's whole numbers; a sentence for anything else, True and False among them."""
    number = as_list(number)
    try:
        if isinstance(number, bool):
            raise TypeError
        return operator.index(number)
    except TypeError:
        raise InputError(f"{number!r} is no whole number") from None


def as_wholes(numbers: Any) -> tuple[int, ...]:
    """One whole number, or several in any kind of row."""
    numbers = as_list(numbers)
    return tuple(map(as_whole, numbers)) if is_row(numbers) else (as_whole(numbers),)


def as_count(number: Any, what: str, least: int = 1) -> int:
    """How many of something."""
    count = as_whole(number)
    if count < least:
        raise InputError(f"{what} = {count}: legal is at least {least}")
    return count


def as_mask(chosen: Any, n_rows: int, what: str) -> np.ndarray:
    """True or False for each row; numbers of rows are something else."""
    values = as_list(chosen)
    if not is_row(values) or len(values) != n_rows or not all(value in (0, 1) for value in values):
        raise InputError(f"{what} {str(values)[:60]}: legal are {n_rows} values, True or False for each row")
    return np.array(values, dtype=bool)


def as_names(names: Any, what: str) -> list[Hashable]:
    """A name for each row, such as its group: anything that is equal or not."""
    names = as_list(names)
    if not is_row(names) or not names:
        raise InputError(f"{what} {str(names)[:80]!r}: legal is a name for each row, at least one")
    names = [as_list(name) for name in names]
    try:
        hash(tuple(names))
    except TypeError:
        raise InputError(
            f"{what} that can't be told apart, such as lists: legal are texts, numbers and tuples"
        ) from None
    return names


def check_seed(seed: Any) -> int:
    """A seed, which must be given: else no run could be repeated."""
    number = as_whole(seed)
    if not 0 <= number < 2**32:
        raise InputError(f"seed {number}: legal are 0 to {2**32 - 1}")
    return number


def make_generator(seed: Any) -> np.random.Generator:
    """numpy's random numbers from a seed."""
    return np.random.default_rng(check_seed(seed))
