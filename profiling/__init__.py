"""Measures my_ops against native batch norm, in one comparison, a benchmark, or a model of your own.

``cli`` has the commands and their options; each folder says in its ``__init__.py`` what its files do.

=============  =======================================================================================
measure/       what is compared, on what, and how it is measured
comparison/    the main job: batch norm of a real network, both ways, on one page
suites/        benchmarks: many shapes, the family, whole networks, many ranks
traces/        models of one's own, and traces of any
output/        tables, plots, files, errors
examples/      a model to capture
results/       figures that were measured
gpu_*          all of it on a machine with a GPU, in one call of gpu_suite.sh
=============  =======================================================================================
"""
