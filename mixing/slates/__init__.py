"""Who fills the places of a step."""
