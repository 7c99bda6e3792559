"""Safety report of a workflow: prompts in every arm with the same seeds, judges on the pictures, figures and a page."""
