"""The main job: batch norm of a real network, both ways, on one page.

==============  ======================================================================================
compare         all of it in one folder
training        a small network trained both ways
recording       torch.profiler traces of a training step both ways
analysis        in traces/: what they say, operator by operator
compare_tables  the figures as tables; figures: as plots
report          HTML and JSON
==============  ======================================================================================
"""
