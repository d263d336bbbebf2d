"""Times of models and artifacts side by side, and from which batch size on one of them no longer pays."""
