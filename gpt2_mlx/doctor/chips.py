"""The published peak speeds of Apple's chips."""

# name: (TFLOP/s of the GPU in float32, GB/s of memory), for the variant with the most GPU cores. Apple published the
# TFLOP/s of M1 and M2; those of M3 to M5 are 256 operations per core and cycle times a clock that others measured.
# None: no clock is known. The first number leaves out the units for matrix products that M5 also has.
PEAKS = {
    "Apple M1": (2.6, 68),
    "Apple M1 Pro": (5.2, 200),
    "Apple M1 Max": (10.4, 400),
    "Apple M1 Ultra": (20.8, 800),
    "Apple M2": (3.6, 100),
    "Apple M2 Pro": (6.8, 200),
    "Apple M2 Max": (13.6, 400),
    "Apple M2 Ultra": (27.2, 800),
    "Apple M3": (3.6, 100),
    "Apple M3 Pro": (6.4, 150),
    "Apple M3 Max": (14.3, 400),
    "Apple M3 Ultra": (28.6, 819),
    "Apple M4": (3.8, 120),
    "Apple M4 Pro": (7.5, 273),
    "Apple M4 Max": (17.2, 546),
    "Apple M5": (4.5, 153),
    "Apple M5 Pro": (None, 307),
    "Apple M5 Max": (None, 614),
}


def share_of_tflops(chip: str | None, tflops: float) -> tuple[str, float | None]:
    """The share of a chip's peak in arithmetic, in words and as a number; None where the peak is not known."""
    return _share(chip, tflops, PEAKS.get(chip, (None, None))[0], "TFLOP/s in float32")


def share_of_bandwidth(chip: str | None, gb_per_s: float) -> tuple[str, float | None]:
    """The same for the peak speed of the chip's memory."""
    return _share(chip, gb_per_s, PEAKS.get(chip, (None, None))[1], "GB/s")


def _share(chip: str | None, value: float, peak: float | None, unit: str) -> tuple[str, float | None]:
    if peak is None:
        return f"peak in {unit} not known for {chip or 'a CPU'}", None
    return f"{value / peak:.0%} of the {peak:g} {unit} of the largest {chip}", value / peak
