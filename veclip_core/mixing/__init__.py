"""What training reads of a sample: the manifest and the choice among captions."""
