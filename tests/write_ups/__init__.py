"""Errors of published write-ups, reproduced to be measured beside the correct form; commands in
RESULTS.md.
"""
