"""Where shards run: processes of this machine."""
