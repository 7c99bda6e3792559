"""The redirector in text space: loading, training, and the node that moves a conditioning."""
