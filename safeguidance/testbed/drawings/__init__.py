"""The testbed's world of real words and real drawings: what is in it, how it is described, how words are encoded."""
