"""The super-networks that come with pgnas, registered like anybody else's by entry point."""
