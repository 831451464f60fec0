"""From a shard of URLs to a shard of pictures: whom to ask and how much to take (guard), which bytes are a picture (pictures),
img2dataset's downloader for one shard (download), and the final layout (seal)."""
