"""Towers, projectors, decoders and checkpoints that model families are built from."""
