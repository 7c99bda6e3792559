"""SAFREE: nodes and the runs behind them."""
