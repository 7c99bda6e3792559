"""SafeCFG: nodes and the run behind them."""
