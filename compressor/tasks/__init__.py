"""Tasks on the user's own data: prompts from a template, answers of a model, and scores sample by sample."""
