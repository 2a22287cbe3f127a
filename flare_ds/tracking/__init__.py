"""Where a run can be watched: TensorBoard, and on demand Weights & Biases or MLflow."""
