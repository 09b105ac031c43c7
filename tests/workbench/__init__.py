"""WorkBench (olly-styles/WorkBench, MIT): its calendar and email requests as one dse task.

Requests and databases are read in place and never copied; the tools are an implementation of their own.
"""
