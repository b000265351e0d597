#!/bin/sh
# Runs a compiler and keeps what it says in a file beside its output: x.o -> x.o.log. Shows all but ptxas's report, which
# ptxas_report.py reads from there.
for argument; do
  if [ "$previous" = -o ]; then output=$argument; fi
  previous=$argument
done
"$@" 2>"$output.log"
status=$?
grep -v -e '^ptxas info' -e 'bytes stack frame' -e '^$' "$output.log" >&2
exit $status
