"""How results are written, and what can go wrong.

=============  =======================================================================================
names          what the two sides are called
tables         on the terminal and in a report; plots: one look for all
files          written at once, never half; json_text: their text
exits          exit codes and sentences
terminal       what all commands begin with; progress: bars
templates/     pages of HTML
=============  =======================================================================================
"""
