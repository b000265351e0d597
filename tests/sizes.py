"""Shapes, with the layouts they are tested in, at which loops go wrong."""

# Elements per vector, from one 16-byte register of float64 to two 64-byte registers of float16.
_WIDTHS = (2, 4, 8, 16, 32, 64)
AROUND_VECTORS = sorted({1, *(n for w in _WIDTHS for n in (w - 1, w, w + 1, 2 * w + 3))})

Case = tuple[tuple[int, ...], str]


def around_vectors(size: int) -> list[Case]:
    """`size` as the spatial size and as the number of channels, aligned and one element behind."""
    matrices: list[Case] = [((5, size), layout) for layout in ("contiguous", "offset")]
    layouts = ("contiguous", "offset", "channels_last", "offset_channels_last")
    return matrices + [(shape, layout) for shape in ((3, 2, size), (3, size, 2)) for layout in layouts]


# Many channels of few values, few channels of many values, many samples, one sample: enough of each that work is cut
# into several parts along every dimension.
PROPORTIONS: list[Case] = [((64, 300), "contiguous"), ((1500, 70), "contiguous"), ((2, 9001), "contiguous")] + [
    (shape, layout)
    for shape in (
        (2, 4096, 1, 1),
        (2, 700, 5, 1),
        (3001, 3, 7, 1),
        (250, 2, 17, 17),
        (2, 67, 31, 33),
        (2, 1, 190, 191),
        (1, 2, 260, 261),
        (1, 5, 130, 71),
        (9, 4, 16, 17),
        (1, 35, 16, 20),
        (6, 8, 96, 96),
        (6, 40, 14, 14),
        (4, 90, 13, 15),
    )
    for layout in ("contiguous", "channels_last")
]


def past_the_cache(itemsize: int) -> tuple[int, ...]:
    """A result of 24 MB, written past the cache where a pass over two such tensors may fill up to 48 MB."""
    return (72 // itemsize, 66, 50, 101)


def short_past_the_cache(itemsize: int) -> tuple[int, ...]:
    """Likewise, in short runs: of inference in memory order."""
    return (128 // itemsize, 1000, 14, 14)


# Shape and strides: where a size is 1 the stride says nothing, and more than one layout fits.
AMBIGUOUS = [
    ((4, 1, 6, 5), (30, 1, 5, 1)),
    ((4, 1, 6, 5), (30, 77, 5, 1)),
    ((4, 8, 1, 1), (8, 1, 8, 8)),
    ((4, 8, 1, 1), (8, 1, 77, 3)),
    ((1, 8, 3, 3), (1, 9, 3, 1)),
    ((1, 8, 3, 3), (5, 1, 24, 8)),
    ((16, 24), (24, 1)),
    ((3, 8, 16, 1), (128, 16, 1, 16)),
    ((3, 8, 16, 1), (128, 1, 8, 2)),
]

EMPTY = [(0, 3), (0, 3, 4, 5), (2, 3, 0), (2, 3, 4, 0)]
NO_CHANNELS = [(5, 0), (2, 0, 4), (0, 0, 0)]
