"""The embedded default: a model and pictures that need no download."""
