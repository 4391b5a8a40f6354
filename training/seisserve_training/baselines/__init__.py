"""What a network must beat: classical methods of each task, evaluated by the same code on the same traces."""
