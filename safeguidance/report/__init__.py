"""What a guarded run did: the trace, the same in words, and as a picture."""
