"""The gate: whether a row of a ledger is good enough, decided by tests on what was measured of every token."""
