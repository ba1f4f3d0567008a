"""Judges: models that say how good an answer is, asked through one client whatever they run on."""
