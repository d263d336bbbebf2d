"""The kinds of repairs, by the names that they are kept under."""

BITS, SKIP, SAMPLES = "bits", "skip", "samples"
