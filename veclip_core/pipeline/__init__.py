"""The chain of one scale: each asset as one function over the stages, for Dagster and for the command line alike."""
