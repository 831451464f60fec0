"""Where pictures and their AltText come from: URL lists, folders, and the sample world."""
