"""Runs bundles: images and prompts in, answers out. Needs numpy and ONNX Runtime, never torch."""
