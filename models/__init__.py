"""What is learned: models, losses, training loops, generation. No Prefect and no MLflow."""
