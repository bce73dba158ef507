"""Sites and servers outside one machine: Flower's own programs, started with our checks around them."""
