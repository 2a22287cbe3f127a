"""What runs a model on ranks: the processes and how they agree, the engine, its memory and its costs."""
