from compressor.measure.memory import PeakMemory


def test_the_peak_is_that_of_the_work_inside():
    with PeakMemory() as small:
        pass
    with PeakMemory() as large:
        block = bytearray(200 << 20)
        del block
    with PeakMemory() as after:
        pass
    if large.exact:
        assert large.bytes - small.bytes > 150 << 20
        assert after.bytes < large.bytes - (100 << 20)
