"""Vision towers: one file each. The loop over a tower's layers belongs to `models/vision.py`, which names none."""
