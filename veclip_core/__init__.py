"""VeCLIP's operations: URL lists to captions, mixed training and evaluation. Independent of the orchestrator."""
