"""Benchmarks: many cases, one table.

=============  =======================================================================================
benchmark      shapes, dtypes, layouts and directions (suite_tables, suite_figures: what it shows)
family         the operators around batch norm, each against torch's modules (some rows: family_norms)
steps          training steps of whole networks, native, converted and fused
lean           a ResNet that keeps less for the backward pass
scale          what synchronization costs on 2 to 4,096 ranks, predicted and measured (rival: naive_sync)
=============  =======================================================================================
"""
