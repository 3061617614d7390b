"""Which service a peer is, and whether its certificate is believed. Pure."""
