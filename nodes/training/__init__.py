"""Nodes that train, and the runs behind them."""
