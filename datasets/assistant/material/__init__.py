"""The hand-written material of the assistant dataset; see ops.py for how a scenario is written."""
