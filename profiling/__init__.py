"""Measures my_ops against native batch norm, in one comparison, a benchmark, or a model of your own.

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
compare        the main job: all of the above in one folder
benchmark      the suite of shapes, dtypes, layouts and directions (suite_tables, suite_figures: what it shows)
networks       ResNet-50 and MobileNetV2 in plain torch
memory         the most bytes that a call holds
family         the operators around batch norm, each against torch's modules (some rows: family_norms)
steps          training steps of whole networks, native, converted and fused
lean           a ResNet that keeps less for the backward pass

trace_cli      the commands for models and traces of one's own
models         the user's model, from a function, a file or a library's configuration
conversion     any such model with my_ops batch norm, and its layers' names in the trace
capture        both ways: steps in turns, traces, copies
trace_file     reads the file of a trace (this and what follows needs no torch)
traces         as trees of intervals
analysis       what they say, operator by operator
operators      which operators are batch norm, whose, and the bytes they need
calls          every call of batch norm
breakdown      a whole trace in figures
differences    two traces matched call by call
findings       one trace, or two and their difference: JSON, tables, sentences
intervals      medians with bounds
history        figures against earlier ones

plots          one look for all; figures: those of the comparison, call_figures: those of traces
*_tables       the figures as tables, on the terminal and in the report
report         HTML and JSON of the comparison; trace_report: of traces
exits          what can go wrong; files, json_text, progress, terminal: how results are written
=============  =======================================================================================
"""
