"""Images: folders of pictures and arrays."""
