"""Filter, correlate, compress: the three stages every reducer composes, as pure functions of tensors.

Rules of the stages: FP32 scores; constant counts; ties go to the lower index; no boolean-mask indexing and no
scatter with a reduction, which export to data-dependent shapes or export silently wrong.
"""
