"""Programs that start trainings elsewhere or as several processes, and say how far they scale."""
