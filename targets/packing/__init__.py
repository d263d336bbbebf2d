"""One bit layout a file."""
