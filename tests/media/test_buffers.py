"""Memory for pixels is used again once nobody can look at it, and not before."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from mmdata.media import decode, lend
from tests.media.pictures import photo, save


def place(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_when_its_last_view_is_gone() -> None:
    first = lend(100_000)
    where, view = place(first), first[10:20].reshape(2, 5)
    del first
    other = lend(100_000)
    assert place(other) != where
    view[:] = 7
    other[:] = 1
    assert (view == 7).all()
    del view
    gc.collect()
    assert where in {place(held) for held in [lend(100_000) for _ in range(2000)]}


def test_pixels_are_the_same_in_used_memory() -> None:
    data = save(Image.fromarray(photo(120, 80)), "jpeg")
    fresh = decode(data, trusted=True)
    for _ in range(3):
        assert np.array_equal(decode(data, trusted=True, num_bytes=fresh.nbytes), fresh)
    # What the size was thought to be is a hint alone.
    assert np.array_equal(decode(data, trusted=True, num_bytes=10), fresh)
    assert np.array_equal(decode(data, trusted=True, num_bytes=10 * fresh.nbytes), fresh)


def test_threads_never_share_memory() -> None:
    def work(number: int) -> bool:
        lent = lend(70_000)
        lent[:] = number
        return bool((lent == number).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, [number % 251 for number in range(4000)]))
