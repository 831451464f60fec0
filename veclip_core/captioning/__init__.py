"""From a picture and its AltText to a VeCap: describe, fuse, select."""
