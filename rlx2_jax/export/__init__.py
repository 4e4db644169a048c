"""Policies in the forms that others run: C, ONNX, XLA and NumPy.

A policy is traced into a program of a few operations on vectors (`tracing`, `program`), which is made smaller without a
loss (`compaction`); a writer for each format takes it from there. `save` does all of it (`artifacts`):

    from rlx2_jax import export, load_policy

    export.save(load_policy("runs/hopper"), "deploy", formats=["c", "onnx"])
"""

from rlx2_jax.export.artifacts import FORMATS, SUMMARY, Artifact, Export, Function, Size, available, check_formats, save

__all__ = ["FORMATS", "SUMMARY", "Artifact", "Export", "Function", "Size", "available", "check_formats", "save"]
