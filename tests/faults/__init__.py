"""Systematic fault injection: each function of the worker fails in turn on a real server, and the neighbour loses nothing. `make faults`"""
