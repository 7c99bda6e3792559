"""The world of drawings in the lab: artwork from pinned packages, scenes, training, an oracle."""
