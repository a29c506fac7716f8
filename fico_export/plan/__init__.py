"""Will it fit, and how fast at best: estimates from config.json alone, before anything is exported.

`costs.py` counts operations and bytes of the modules that would be exported, exactly; `memory.py` and `roofline.py` turn them
into ranges by the constants of `estimates.toml`, each with its source; `points.toml` holds what others have measured, by which
the constants were set or which they were held against.
"""
