"""The fusion adapter: fusion functions, the PEFT LoRA variant that applies them, adapter files."""
