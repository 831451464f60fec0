"""What writes text: language and vision-language models, and the sample scale's stand-in captioner."""
