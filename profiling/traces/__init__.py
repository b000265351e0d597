"""Models of one's own, and traces of any: where does the time of batch norm go?

=============  =======================================================================================
trace_cli      the commands
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
history        figures against earlier ones
trace_report   one page of HTML (trace_tables, call_tables, call_figures: what it shows)
=============  =======================================================================================
"""
