"""What is compared, on what, and how it is measured.

=============  =======================================================================================
allocator      one malloc setting for everything that is compared, by restarting under it
machine        what the run ran on
workloads      real images, real networks, and the tensors of every batch norm call in them
networks       ResNet-50 and MobileNetV2 in plain torch
peers          the implementations that are compared, as calls without arguments
correctness    every result against float64
timing         interleaved clocks, bytes, multiples of a copy; intervals: medians with bounds
gpu            what that takes on a GPU: copies beyond its cache, graphs, kernel names
bare_passes    a floor: the passes over memory without the channels
memory         the most bytes that a call holds
=============  =======================================================================================
"""
