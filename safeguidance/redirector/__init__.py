"""Redirectors: what reads a prompt and proposes the unconditional conditioning that holds its harm."""
