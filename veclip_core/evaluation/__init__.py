"""Zero-shot evaluation of image-text models: retrieval and classification with intervals, and the report that shows them."""
