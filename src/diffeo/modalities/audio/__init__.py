"""Audio: folders of recordings."""
