"""Measures my_ops against native batch norm: ``python -m profiling compare`` and ``python -m profiling benchmark``.

A run passes through these files in this order; each has one duty.

=============  =======================================================================================
cli            the commands and their options
allocator      one malloc setting for everything that is compared, by restarting under it
machine        what the run ran on
workloads      real images, real networks, and the tensors of every batch norm call in them
peers          the implementations that are compared, as calls without arguments
correctness    every result against float64
timing         interleaved clocks, bytes, multiples of a copy
gpu            what that takes on a GPU: copies beyond its cache, graphs, kernel names
training       a small network trained both ways
recording      torch.profiler traces of a training step both ways
traces         reads such a trace (needs no torch)
analysis       what it says, operator by operator
compare        the main job: all of the above in one folder
benchmark      the suite of shapes, dtypes, layouts and directions
networks       ResNet-50 and MobileNetV2 in plain torch
memory         the most bytes that a call holds
family         the operators around batch norm, each against torch's modules
steps          training steps of whole networks, native, converted and fused
figures        plots
*_tables       the figures as tables, on the terminal and in the report
report         HTML and JSON
json_text      figures as JSON
=============  =======================================================================================
"""
