"""Concept guidance: nodes and the run behind them."""
