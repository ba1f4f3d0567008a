"""What a recipe would run, before anything is started."""
