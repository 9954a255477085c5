"""What the public modules stand on; nothing outside `helpers` imports it."""
