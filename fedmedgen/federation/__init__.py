"""What crosses the wire, and a site's round."""
