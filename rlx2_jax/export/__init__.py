"""Policies in the forms that others run: C, ONNX, XLA and NumPy.

A policy is traced into a program of a few operations on vectors (`tracing`, `program`), which is made smaller without a
loss (`compaction`); a writer for each format takes it from there.
"""
